"""PyTorch's functions that arrange elements anew: joined, repeated, cut out, and written by index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, combinations_with_replacement
from itertools import combinations as _combinations
from typing import Any

import numpy as np

from sorix_dist.core import functions as f
from sorix_dist.core.arguments import as_int, one_of
from sorix_dist.core.batch_numbers import is_just, is_of_batch, of_all
from sorix_dist.core.capture import of_shapes
from sorix_dist.core.create import full_like, zeros_like
from sorix_dist.core.op import as_operand
from sorix_dist.core.ops.axes import along, axis_of, rows_named_by
from sorix_dist.core.ops.indexing import scatter_add_to, scattered
from sorix_dist.core.ops.indexing import take as take_index
from sorix_dist.core.placement import REPLICATE, shard_of, tagged
from sorix_dist.core.rules import aligned_operands, bare, whole, whole_sums
from sorix_dist.core.tensor import Size, Tensor, array_of, as_array, shape_of

# -- joined and repeated


def _along(name: str, input: Any, dim: int, index: Any = None) -> tuple[Any, int]:
    """The input as a tensor, and `dim` counted from 0. If rows of a batch lie along it, the index must follow from the
    batch."""
    at, place = axis_of(name, input, dim), shard_of(input)
    return (rows_named_by(index, input, name) if place is not None and place.axis == at else _tensor(input)), at


def _tensor(x: Any) -> Any:
    return x if isinstance(x, Tensor) else Tensor(as_operand(x))


def atleast_1d(*tensors: Any) -> Any:
    """The tensors with at least one dimension."""
    return _at_least(tensors, lambda x: f.reshape(x, 1) if x.ndim == 0 else x)


def atleast_2d(*tensors: Any) -> Any:
    """The tensors with at least two dimensions; a vector becomes a row."""
    return _at_least(tensors, lambda x: f.unsqueeze(atleast_1d(x), 0) if x.ndim < 2 else x)


def atleast_3d(*tensors: Any) -> Any:
    """The tensors with at least three dimensions; new ones come last, for a vector also first."""
    return _at_least(tensors, lambda x: f.unsqueeze(atleast_2d(x), -1) if x.ndim < 3 else x)


def _at_least(tensors: tuple[Any, ...], changed: Callable[[Any], Any]) -> Any:
    if len(tensors) == 1 and not isinstance(tensors[0], list | tuple):
        return changed(_tensor(tensors[0]))
    several = tensors[0] if len(tensors) == 1 else tensors
    return tuple(changed(_tensor(x)) for x in several)


def hstack(tensors: Sequence[Any]) -> Any:
    """The tensors side by side: along dim 1, vectors along dim 0."""
    parts = atleast_1d(*tensors) if len(tensors) > 1 else (atleast_1d(tensors[0]),)
    return f.cat(parts, 0 if parts[0].ndim == 1 else 1)


def vstack(tensors: Sequence[Any]) -> Any:
    """The tensors one below the other; a vector is a row."""
    return f.cat([atleast_2d(x) for x in tensors], 0)


def dstack(tensors: Sequence[Any]) -> Any:
    """The tensors one behind the other, along dim 2."""
    return f.cat([atleast_3d(x) for x in tensors], 2)


def column_stack(tensors: Sequence[Any]) -> Any:
    """The tensors side by side; a vector is a column."""
    return f.cat([f.reshape(x, -1, 1) if np.ndim(x) < 2 else x for x in map(_tensor, tensors)], 1)


def tile(input: Any, *dims: Any) -> Any:
    """The tensor repeated `dims` times along its last dimensions; more entries than dimensions make new ones."""
    times = tuple(dims[0]) if len(dims) == 1 and isinstance(dims[0], tuple | list) else dims
    return f.repeat(input, *(1,) * (len(shape_of(input)) - len(times)), *times)


def repeat_interleave(input: Any, repeats: Any, dim: int | None = None, *, output_size: int | None = None) -> Any:
    """Each element, or each slice along `dim`, repeated: all as often, or as often as a vector says."""
    if dim is None:
        input, dim = ravel(input), 0
    at = axis_of("repeat_interleave", input, dim)
    times = as_array(whole(repeats))
    if times.ndim and times.size > 1:
        input, at = _along("repeat_interleave", input, dim)
        indices = np.repeat(np.arange(shape_of(input)[at]), times)
        return take_index(_tensor(input), index=along(at, indices))
    wide, shape = f.unsqueeze(input, at + 1), shape_of(input)
    full = (*shape[: at + 1], int(times.item()), *shape[at + 1 :])
    return f.flatten(_tensor(wide).expand(full), at, at + 1)


def meshgrid(*tensors: Any, indexing: str = "ij") -> tuple[Any, ...]:
    """The coordinates of a grid over vectors, one tensor for each; "xy" exchanges the first two dimensions."""
    one_of("meshgrid: indexing", indexing, "ij", "xy")
    vectors = [
        f.reshape(whole(x, "meshgrid"), -1) for x in (tensors[0] if isinstance(tensors[0], list | tuple) else tensors)
    ]
    sizes = tuple(len(v) for v in vectors)
    shapes = [tuple(n if i == k else 1 for i in range(len(sizes))) for k, n in enumerate(sizes)]
    grids = [f.broadcast_to(f.reshape(v, shape), sizes) for v, shape in zip(vectors, shapes, strict=True)]
    return tuple(f.transpose(g, 0, 1) if indexing == "xy" and len(sizes) > 1 else g for g in grids)


def cartesian_prod(*tensors: Any) -> Any:
    """All combinations of one element of each vector, as rows."""
    grids = meshgrid(*tensors)
    return grids[0] if len(grids) == 1 else f.stack([ravel(g) for g in grids], 1)


def combinations(input: Any, r: int = 2, with_replacement: bool = False) -> Any:
    """All combinations of `r` elements of a vector, as rows."""
    choose = combinations_with_replacement if with_replacement else _combinations
    as_int("combinations: r", r, 0)
    chosen = np.array(list(choose(range(len(input)), r)), np.int64).reshape((-1, r) if r else 0)
    return take_index(_tensor(input), index=chosen)


def broadcast_tensors(*tensors: Any) -> tuple[Any, ...]:
    """The tensors broadcast to one shape."""
    parts, rows = aligned_operands("broadcast_tensors", whole_sums([_tensor(x) for x in tensors], "broadcast_tensors"))
    shape = np.broadcast_shapes(*map(shape_of, parts))
    if rows is None:
        return tuple(f.broadcast_to(x, shape) for x in parts)
    return tuple(tagged(f.broadcast_to(bare(x), shape), rows) for x in parts)


def broadcast_shapes(*shapes: Any) -> Size:
    """The shape that tensors of these shapes, each a tuple or an integer, broadcast to."""
    return Size(np.broadcast_shapes(*shapes))


def block_diag(*tensors: Any) -> Any:
    """A matrix with the tensors, of at most two dimensions, along its diagonal and zeros elsewhere."""
    blocks = [atleast_2d(whole(x, "block_diag")) for x in tensors]
    ends = [*accumulate((x.shape[1] for x in blocks), initial=0)]
    return f.cat([f.pad(x, (start, ends[-1] - start - x.shape[1])) for x, start in zip(blocks, ends, strict=False)])


def rot90(input: Any, k: int = 1, dims: Sequence[int] = (0, 1)) -> Any:
    """The tensor turned `k` times by 90 degrees, from the first of two dimensions to the second."""
    first, second = dims
    if k % 2 == 0:
        return f.flip(input, first, second) if k % 4 else f.clone(input)
    turned = f.transpose(input, first, second)
    return f.flip(turned, first if k % 4 == 1 else second)


def diag_embed(input: Any, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Any:
    """Matrices in two new dimensions, with the last dimension of `input` on a diagonal and zeros elsewhere."""
    square = f.where(f.eye(shape_of(input)[-1], dtype="bool"), f.unsqueeze(input, -1), f.zeros((), dtype=input.dtype))
    above, below = max(offset, 0), max(-offset, 0)
    return f.movedim(f.pad(square, (above, below, below, above)), (-2, -1), (dim1, dim2))


# -- cut out


def ravel(input: Any) -> Any:
    """The elements as a vector."""
    return f.reshape(input, -1)


def unflatten(input: Any, dim: int, sizes: Sequence[int]) -> Any:
    """The dimension `dim` as several of these sizes; one may be -1."""
    at, shape = axis_of("unflatten", input, dim), shape_of(input)
    return f.reshape(input, *shape[:at], *sizes, *shape[at + 1 :])


def narrow(input: Any, dim: int, start: Any, length: int) -> Any:
    """`length` slices along `dim`, from `start`."""
    input, at = _along("narrow", input, dim)
    size, first = shape_of(input)[at], int(start)
    first = first + size if first < 0 else first
    if not (length >= 0 and 0 <= first <= size - length):
        raise IndexError(f"narrow: start and length must fit the size {size} of dim {at}, got {start} and {length}")
    return take_index(_tensor(input), index=along(at, slice(first, first + length)))


def select(input: Any, dim: int, index: Any) -> Any:
    """The slice `index` along `dim`, without that dimension."""
    if not shape_of(input):
        raise IndexError("select: input must have at least one dimension, got a 0-d tensor")
    return take_index(_tensor(input), index=along(axis_of("select", input, dim), int(index)))


def diagonal(input: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    """The diagonal of the matrices in two dimensions, `offset` above the main one, as the last dimension."""
    first, second = axis_of("diagonal", input, dim1), axis_of("diagonal", input, dim2)
    if first == second:
        raise ValueError(f"diagonal: dim1 and dim2 must differ, got {dim1} and {dim2}")
    place = shard_of(input)
    input = whole(input, "diagonal") if place is not None and place.axis in (first, second) else input
    others = [i for i in range(len(shape_of(input))) if i not in (first, second)]
    matrices = f.permute(_tensor(input), *others, first, second)
    rows, columns = shape_of(matrices)[-2:]
    indices = np.arange(max(0, min(rows + min(offset, 0), columns - max(offset, 0))))
    down, right = of_shapes(indices - min(offset, 0)), of_shapes(indices + max(offset, 0))
    return take_index(matrices, index=(..., down, right))


def fliplr(input: Any) -> Any:
    """In reverse order along dim 1."""
    return f.flip(input, 1)


def flipud(input: Any) -> Any:
    """In reverse order along dim 0."""
    return f.flip(input, 0)


def tensor_split(input: Any, indices_or_sections: Any, dim: int = 0) -> tuple[Any, ...]:
    """Cut along `dim` into a number of parts, the first ones longer by 1 where needed, or before the given indices."""
    input, at = _along("tensor_split", input, dim)
    parts = np.array_split(np.arange(shape_of(input)[at]), as_array(whole(indices_or_sections)).tolist(), 0)
    return f.split(input, [len(part) for part in parts], at)


def diff(input: Any, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> Any:
    """The differences of consecutive elements along `dim`, taken `n` times; of bools, whether they differ.

    prepend, append: what comes in front and behind first.
    """
    at = axis_of("diff", input, dim)
    if n and (prepend is not None or append is not None):
        input = f.cat([x for x in (prepend, input, append) if x is not None], at)
    for _ in range(n):
        size = shape_of(input)[at]
        later, earlier = narrow(input, at, min(1, size), max(0, size - 1)), narrow(input, at, 0, max(0, size - 1))
        input = later != earlier if array_of(input).dtype == np.bool_ else f.sub(later, earlier)
    return input


def sliding_windows(input: Any, dimension: int, size: int, step: int) -> Any:
    """The windows of `size` elements along a dimension, a `step` apart; they become the last dimension."""
    input, at = _along("unfold", input, dimension)
    if not shape_of(input):
        return sliding_windows(f.reshape(input, 1), 0, size, step)[0]
    length = shape_of(input)[at]
    if not (0 <= size <= length and step > 0):
        raise ValueError(f"unfold: size must be in [0, {length}] and step positive, got {size} and {step}")
    indices = of_shapes(np.arange(0, length - size + 1, step)[:, None] + np.arange(size))
    return f.movedim(take_index(_tensor(input), index=along(at, indices)), at + 1, -1)


def take(input: Any, index: Any) -> Any:
    """The elements of the flattened input that integers name."""
    return take_index(ravel(_tensor(input)), index=as_array(whole(index)))


def tril_indices(row: int, col: int, offset: int = 0, *, dtype: Any = np.int64, device: Any = "cpu") -> Tensor:
    """The rows and the columns (2, n) of the lower triangle of a matrix."""
    found = Tensor(np.stack(np.tril_indices(of_all(row), offset, of_all(col))), device, dtype=dtype)
    return tagged(found, REPLICATE) if is_of_batch(row) else found


def triu_indices(row: int, col: int, offset: int = 0, *, dtype: Any = np.int64, device: Any = "cpu") -> Tensor:
    """The rows and the columns (2, n) of the upper triangle of a matrix."""
    found = Tensor(np.stack(np.triu_indices(of_all(row), offset, of_all(col))), device, dtype=dtype)
    return tagged(found, REPLICATE) if is_of_batch(row) else found


# -- written by index


def scatter(input: Any, dim: int, index: Any, src: Any = None, *, value: Any = None, reduce: str | None = None) -> Any:
    """`input` with `src`, a tensor or a number, where `gather` with these arguments would read.

    reduce: "add" adds there. Of several elements for one index the last counts; each gets the gradient at that index.
    """
    src = value if src is None else src
    one_of("scatter: reduce", reduce, None, "add")
    number = not isinstance(src, Tensor | np.ndarray)
    if reduce == "add":
        return f.scatter_add(input, dim, index, full_like(index, src, dtype=input.dtype) if number else src)
    hits = scattered("scatter", zeros_like(input, dtype=np.int64), dim, index, full_like(index, 1))
    new = Tensor(np.asarray(src, input.dtype)) if number else scattered("scatter", input, dim, index, src, last=True)
    return f.where(hits > 0, new, input)


def index_add(input: Any, dim: int, index: Any, source: Any, *, alpha: float = 1) -> Any:
    """`input` with the slices of alpha * `source` added at the indices along `dim` in a vector."""
    input, at = _along("index_add", input, dim, index)
    return input + _spread("index_add", input, at, index, source if is_just(alpha, 1) else source * alpha)


def index_copy(input: Any, dim: int, index: Any, source: Any) -> Any:
    """`input` with the slices of `source` at the indices along `dim` in a vector; of several the last counts."""
    input, at = _along("index_copy", input, dim, index)
    return index_fill(input, at, index, 0) + _spread("index_copy", input, at, index, source, last=True)


def index_fill(input: Any, dim: int, index: Any, value: Any) -> Any:
    """`input` with a number in the slices along `dim` that a vector names."""
    input, at = _along("index_fill", input, dim, index)
    shape = shape_of(input)
    flags = np.zeros(shape[at] if shape else 1, bool)
    flags[as_array(whole(index))] = True
    flags = flags.reshape([-1 if i == at else 1 for i in range(len(shape))])
    filled = value if isinstance(value, Tensor) else Tensor(np.asarray(value))
    return f.where(Tensor(flags), filled.astype(input.dtype), input)


def _spread(name: str, input: Any, at: int, index: Any, source: Any, last: bool = False) -> Any:
    """Zeros of the shape of `input` with the slices of `source`, or the `last` for one index, along the axis `at`."""
    shape, place, source = shape_of(input), shard_of(input), _tensor(source)
    if place is None:
        source = whole(source, name)
    else:  # each row for itself
        source = aligned_operands(name, [input, *whole_sums([source], name)])[0][1]
    if not shape:
        flat = as_array(index).reshape(-1)
        return scatter_add_to(f.reshape(source, 1), index=flat, shape=(1,), last=last).reshape(())
    indices = as_array(whole(index)).reshape(-1)
    expected = (*shape[:at], len(indices), *shape[at + 1 :])
    if shape_of(source) != expected:
        raise ValueError(f"{name}: source must have shape {expected}, got {shape_of(source)}")
    spread = scatter_add_to(bare(source), index=along(at, indices), shape=shape, last=last)
    return spread if place is None else tagged(spread, place)


concat = concatenate = f.cat
swapaxes = swapdims = f.transpose
moveaxis = f.movedim
row_stack = vstack

__all__ = [
    "atleast_1d", "atleast_2d", "atleast_3d", "block_diag", "broadcast_shapes", "broadcast_tensors", "cartesian_prod",
    "column_stack", "combinations", "concat", "concatenate", "diag_embed", "diagonal", "diff", "dstack", "fliplr",
    "flipud", "hstack", "index_add", "index_copy", "index_fill", "meshgrid", "moveaxis", "narrow", "ravel",
    "repeat_interleave", "rot90", "row_stack", "scatter", "select", "swapaxes", "swapdims", "take", "tensor_split",
    "tile", "tril_indices", "triu_indices", "unflatten", "vstack",
]  # fmt: skip
METHODS: dict[str, Callable[..., Any]] = {f.__name__: f for f in (
    tile, repeat_interleave, ravel, unflatten, narrow, select, diagonal, fliplr, flipud, tensor_split, diff, take,
    scatter, index_add, index_copy, index_fill, rot90, diag_embed,
)} | {"moveaxis": f.movedim, "swapdims": f.transpose, "unfold": sliding_windows}  # fmt: skip
