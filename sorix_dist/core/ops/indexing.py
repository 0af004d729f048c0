"""Elements by their indices: NumPy's indexing, PyTorch's gather and scatter, rows of a table."""

from __future__ import annotations

from typing import Any

import numpy as np

from sorix_dist.core import rules
from sorix_dist.core.arguments import is_integer, raise_for_device
from sorix_dist.core.batch_numbers import is_of_batch, of_all
from sorix_dist.core.capture import host, of_shapes, outside, recorders
from sorix_dist.core.expected import beside_rows
from sorix_dist.core.op import like_input, op
from sorix_dist.core.ops.axes import along, axis_of, refused, rows_named_by
from sorix_dist.core.ops.elementwise import add, cast
from sorix_dist.core.ops.index_parts import (
    is_mask,
    key_of,
    names_rows_of_all,
    numbers_of,
    of_each_axis,
    rows_in_index,
    with_masks_of_rows,
    with_numbers,
)
from sorix_dist.core.ops.shape import expand, expand_to, extents, reshape
from sorix_dist.core.own_numbers import warn_of_own_positions
from sorix_dist.core.placement import REPLICATE, Shard, shard_of, tagged
from sorix_dist.core.rules import Answer, Apply, Inputs, Options, aligned_operands, bare, beside, linear_place, whole
from sorix_dist.core.tally import of_everyone
from sorix_dist.core.tensor import Array, Tensor, ndarray_of, shape_of


def take_rule(apply: Apply, inputs: Inputs, options: Options) -> Answer:
    """NumPy's indexing: along the rows' axis only what takes each row for itself, which is `:`, None and masks."""
    x, place = inputs[0], inputs[0].place
    if not isinstance(place, Shard):
        return linear_place(place)
    found = rows_in_index(place, x.array.shape, options["index"])
    return apply(refused(x, "indexing"), **options) if found is None else found


def scatter_rule(apply: Apply, inputs: Inputs, options: Options) -> Answer:
    """The rule of a scatter: rows are gathered."""
    place = inputs[0].place
    return apply(whole(inputs[0], "scatter_add"), **options) if isinstance(place, Shard) else linear_place(place)


@op(rule=take_rule, called="indexing")
def take(x: Any, *, index: Any) -> Any:
    """The elements that a NumPy index names; an element named twice gets both gradients."""
    shape = x.shape
    return x[index], (lambda g, out: like_input(scatter_add_to, g, index=index, shape=shape),)


@op(rule=scatter_rule, called="scatter_add")
def scatter_add_to(x: Any, *, index: Any, shape: Any, last: bool = False) -> Any:
    """Zeros of `shape` with the elements of x added at a NumPy index: the transpose of `take`.

    last: the last of several elements for one index counts, and each gets the gradient there, as in PyTorch.
    """
    zeros = np.zeros(shape, x.dtype)
    if last or _names_each_once(index):
        zeros[index] = x
    else:
        np.add.at(zeros, index, x)
    return zeros, (lambda g, out: g[index],)


@op(called="an assignment")
def put(x: Any, value: Any, *, index: Any, apart: bool = False, own: bool = False) -> Any:
    """x with `value` at a NumPy index.

    apart: everything in x that has a gradient was put there at other indices, so all of the gradient passes to it, and
    a loop over the elements of x is linear. own: nothing else has the array of x, which becomes that of the result.
    """
    whole = x if own else x.copy()
    whole[index] = value
    return whole, (
        lambda g, out: g if apart else like_input(put, g, 0.0, index=index),
        lambda g, out: like_input(take, g, index=index),
    )


def _names_each_once(index: Any) -> bool:
    """Whether an index can't name an element twice: slices, integers, and one array of bools."""
    parts = index if isinstance(index, tuple) else (index,)
    masks = [i for i in parts if isinstance(i, np.ndarray) and i.dtype == np.bool_]
    simple = [i for i in parts if i is None or i is Ellipsis or isinstance(i, slice | int | np.integer)]
    return len(simple) + len(masks) == len(parts) and len(masks) <= 1


def index(input: Any, key: Any) -> Any:
    """`input[key]` as NumPy indexes; tensors in the key stand for their arrays."""
    parts, place = key if isinstance(key, tuple) else (key,), shard_of(input)
    if place is None and getattr(input, "place", None) is REPLICATE:
        warn_of_own_positions(shape_of(input), parts)
    if any(map(is_of_batch, parts)):
        key = parts = with_numbers(place, of_each_axis([*parts], len(shape_of(input))))
    if place is not None:
        key = parts = tuple(numbers_of(parts))
    if place is not None and any(map(is_mask, parts)):
        key = parts = tuple(with_masks_of_rows(place, of_each_axis([*parts], len(shape_of(input)))))
    pairs = place is not None and len(parts) == 2 and all(isinstance(part, Tensor | np.ndarray) for part in parts)
    if pairs or any(isinstance(part, Tensor) and part.place is not None for part in parts):
        return _index_by_rows(input, parts)
    return take(input, index=key_of(key))


def _index_by_rows(input: Any, key: tuple[Any, ...]) -> Any:
    """`input[key]` where a tensor in the key is rows of a batch."""
    arrays = [part for part in key if isinstance(part, Tensor | np.ndarray | list)]
    chosen = next((part for part in arrays if shard_of(part) is not None), None)
    rows, place = shard_of(chosen), shard_of(input)
    parts = of_each_axis([*key], len(shape_of(input)))
    masks = any(map(is_mask, arrays))
    if rows is not None and place is None and not masks and not (rows.group.ordered and input.requires_grad):
        return _looked_up(_table(input, "indexing", rows), parts)
    if masks and rows is not None and len(arrays) == 1 and not any(map(is_integer, key)):
        axis = next(i for i, part in enumerate(parts) if part is chosen) + rows.axis
        if place is not None and axis == place.axis:
            return take(input, index=key_of(key))
    if place is not None and len(key) == len(arrays) == 2 and place.axis == 0 and (rows is None or rows.axis == 0):
        other = ndarray_of(key[1])
        if place.batch.known is not None and other.shape == (place.total,) != (place.held,):
            other = other[place.rows.start : place.rows.stop]
        elif rows is None:
            rules.refuse_own_numbers("indexing", input, key[1], place)
        if other.shape == (place.held,) and _numbers_each(place, key[0]):
            if recorders and shard_of(key[0]) is None:
                _must_number_each(place, ndarray_of(key[0]))
            return tagged(take(bare(input), index=(of_shapes(np.arange(place.held)), other)), place)
    if place is not None and names_rows_of_all(place, parts):
        return index(whole(input, "indexing"), key)
    return take(input, index=key_of(tuple(whole(part, "indexing") for part in key)))


def gather(input: Any, dim: int, index: Any) -> Any:
    """`out[i][j] = input[index[i][j]][j]` for dim 0, and so on: elements by their index along `dim`.

    index: integers, as many dimensions as input, no larger than it in the others. The result has its shape.
    """
    if not shape_of(input):
        return reshape(take(reshape(input, 1), index=_indices("gather", index, 1)), shape_of(index))
    input, index = _of_each_row("gather", input, dim, index)
    rows = shard_of(input) or shard_of(index)
    result = take(input if rows is None else bare(input), index=_grid_along("gather", input, dim, index))
    return result if rows is None else tagged(result, rows)


def _numbers_each(place: Shard, numbers: Any) -> bool:
    """Whether an index along the rows holds their numbers in order, on this rank or in the global batch."""
    array, rows = ndarray_of(numbers), shard_of(numbers)
    if rows is not None:
        return rules.on_every_rank(rows, np.array_equal(array - place.rows.start, np.arange(place.held)))
    of_all = place.batch.known is not None and array.shape == (place.total,)
    return np.array_equal(array, np.arange(place.total if of_all else place.held))


@host
def _must_number_each(place: Shard, numbers: Any) -> None:
    if not _numbers_each(place, numbers):
        raise RuntimeError(
            "compile: an index along the rows of the batch must hold their numbers in order, as it did when the step "
            "was captured: set SORIX_DIST_COMPILE=off"
        )


def _looked_up(table: Any, parts: list[Any]) -> Any:
    """`table[parts]` for integers that are rows of a batch, beside others: each row looks up for itself."""
    at = [i for i, part in enumerate(parts) if part is not None and not isinstance(part, slice)]
    integers = rules.whole_sums(numbers_of(parts[i] for i in at), "indexing")
    operands, lead = aligned_operands("indexing", integers)
    for i, operand in zip(at, operands, strict=True):
        parts[i] = operand
    result = take(table, index=key_of(tuple(parts)))
    first = at[0] if at[-1] - at[0] < len(at) else 0  # indices that are apart come first in the result
    return result if lead is None else tagged(result, lead.moved(first + lead.axis))


def _table(x: Any, name: str, rows: Shard) -> Any:
    """What rows look up in: numbers of the global batch, complete, and the same on every rank."""
    beside_rows(rows, x)
    return x if shard_of(x) is not None else whole(of_everyone(x), name)


def _of_each_row(name: str, input: Any, dim: int, *others: Any) -> tuple[Any, ...]:
    """The operands of a lookup along `dim`: as they are if each row of a batch looks up in itself, or in a Replicate;
    else with the rows of all ranks."""
    at, place = axis_of(name, input, dim), shard_of(input)
    if place is not None and place.axis != at:
        for other in others:
            rules.refuse_own_numbers(name, input, other, place)
        others = tuple(beside(other, place, len(shape_of(input)) - place.axis) for other in others)
    rows = [p for other in others if (p := shard_of(other)) is not None]
    if place is None and not rows:
        return (input, *others)
    input = _table(input, name, place or rows[0])
    fits = all(p.axis == rows[0].axis and p.like(rows[0]) for p in rows)
    if place is not None:
        fits = fits and place.axis != at and all(p.axis == place.axis and p.like(place) for p in rows)
    else:
        fits = fits and len(rows) == len(others) and rows[0].axis == at and not rows[0].group.ordered
    return (input, *others) if fits else tuple(whole(x, name) for x in (input, *others))


def take_along_dim(input: Any, indices: Any, dim: int | None = None) -> Any:
    """`gather` with the arguments in NumPy's order, which broadcast except along `dim` (None: of the flat input).

    Negative indices count from the end.
    """
    if dim is None:
        return take_along_dim(reshape(input, -1), reshape(indices, -1), 0)
    at = axis_of("take_along_dim", input, dim)
    sizes = [extents(x) for x in (input, indices)]
    others = [(*shape[:at], 1, *shape[at + 1 :]) for shape in sizes]
    if len(sizes[0]) == len(sizes[1]) and others[0] != others[1]:
        common = np.broadcast_shapes(*others)
        input, indices = (
            expand(x, *common[:at], shape[at], *common[at + 1 :])
            for x, shape in zip((input, indices), sizes, strict=True)
        )
    return gather(input, at, indices + (indices < 0) * sizes[0][at])


def scatter_add(input: Any, dim: int, index: Any, src: Any) -> Any:
    """`input` with the elements of `src` added where `gather` with the same `dim` and `index` would read."""
    return add(input, scattered("scatter_add", input, dim, index, src))


def scattered(name: str, input: Any, dim: int, index: Any, src: Any, *, last: bool = False) -> Any:
    """Zeros in the shape of `input` with the elements of `src` where `gather` with the same `dim` and `index` would
    read: their sum, or only the `last` for one index. name: that of the function, for errors."""
    input, index, src = _of_each_row(name, input, dim, index, src)
    rows = shard_of(input) or shard_of(src)
    if rows is not None and shard_of(input) is None:
        input, index, src = (whole(x, name) for x in (input, index, src))
    elif rows is not None:
        return tagged(scattered(name, bare(input), dim, bare(index), bare(src), last=last), rows)
    key = _grid_along(name, input, dim, index)
    shape = shape_of(index)
    if len(shape_of(src)) != len(shape) or any(n > m for n, m in zip(shape, shape_of(src), strict=True)):
        raise ValueError(f"{name}: src must be at least of index's shape {shape}, got {shape_of(src)}")
    part = take(src, index=tuple(slice(0, n) for n in shape))
    return scatter_add_to(part, index=key, shape=shape_of(input), last=last)


def index_select(input: Any, dim: int, index: Any) -> Any:
    """The slices of `input` that a vector of integers names, along `dim`."""
    at, rows = axis_of("index_select", input, dim), shard_of(index)
    place = shard_of(input)
    if rows is not None and place is None and not rows.group.ordered:
        return tagged(index_select(_table(input, "index_select", rows), at, bare(index)), rows.moved(at))
    if place is not None and place.axis == at:
        input = rows_named_by(index, input, "index_select")
    index = whole(index, "index_select")
    shape = shape_of(input)
    chosen = _indices("index_select", index, shape[at] if shape else 1)
    if chosen.ndim > 1:
        raise ValueError(f"index_select: index must be a vector, got shape {chosen.shape}")
    if not shape:
        return reshape(take(reshape(input, 1), index=chosen.reshape(-1)), ())
    return take(input, index=along(at, chosen if chosen.ndim else chosen.reshape(1)))


def masked_select(input: Any, mask: Any) -> Any:
    """The elements where `mask` is true, as a vector; both broadcast."""
    (input, mask), place = aligned_operands("masked_select", rules.whole_sums((input, mask), "masked_select"))
    flags = ndarray_of(mask)
    if flags.dtype != np.bool_:
        raise TypeError(f"masked_select: mask must hold bools, got dtype {flags.dtype}")
    shape = np.broadcast_shapes(shape_of(input), flags.shape)
    outside("elements are selected by a mask, so that their number follows from values: use where()")
    full = expand_to(bare(input), shape=shape)
    return take(full if place is None else tagged(full, place), index=np.broadcast_to(flags, shape))


def one_hot(input: Any, num_classes: int = -1) -> Any:
    """Integers in [0, num_classes) as vectors of zeros with a 1 at that index (int64); -1: the largest one plus 1."""
    rows, num_classes = shard_of(input), of_all(num_classes)
    input = whole(input, "one_hot") if rows is None else input
    if num_classes == -1:
        everywhere = np.asarray(whole(input, "one_hot"))
        if not everywhere.size:
            raise ValueError("one_hot: num_classes must be given for an input without elements")
        num_classes = int(everywhere.max()) + 1
    result = Tensor.of(_of_classes(input, num_classes))
    return result if rows is None else tagged(result, rows)


@host
def _of_classes(labels: Any, count: int) -> Array:
    return np.equal(_indices("one_hot", labels, count)[..., None], np.arange(count)).astype(np.int64)


def diag(input: Any, diagonal: int = 0, device: Any = "cpu", requires_grad: bool = False, dtype: Any = None) -> Any:
    """The matrix with a vector on its `diagonal` (above the main one if positive), or the diagonal of a matrix.

    With `requires_grad` the result is a new leaf, without a history.
    """
    raise_for_device(device)
    input, diagonal = whole(input, "diag"), of_all(diagonal)
    shape = shape_of(input)
    if len(shape) not in (1, 2):
        raise ValueError(f"diag: input must be a vector or a matrix, got shape {shape}")
    above, below = max(diagonal, 0), max(-diagonal, 0)
    vector = len(shape) == 1
    indices = np.arange(shape[0] if vector else max(0, min(shape[0] - below, shape[1] - above)))
    places = of_shapes(indices + below), of_shapes(indices + above)
    if vector:
        size = shape[0] + above + below
        result = scatter_add_to(input, index=places, shape=(size, size))
    else:
        result = take(input, index=places)
    if dtype is not None:
        result = cast(result, dtype)
    return result.detach().requires_grad_() if requires_grad else result


@host
def _indices(name: str, index: Any, limit: int) -> Array:
    """The index as integers in range; TypeError or IndexError (for the function `name`) otherwise."""
    array = ndarray_of(index)
    if array.dtype.kind not in "iu":
        if array.size:
            raise TypeError(f"{name}: indices must be integers, got dtype {array.dtype}")
        array = array.astype(np.int64)
    if array.size and not (array.min() >= 0 and array.max() < limit):
        outside = array[(array < 0) | (array >= limit)].ravel()[0]
        raise IndexError(f"{name}: indices must be in [0, {limit}), got {outside}")
    return array


@host
def _grid_along(name: str, input: Any, dim: int, index: Any) -> tuple[Array, ...]:
    """The NumPy index that takes elements by `index` along `dim` and stays in place along the others."""
    shape = shape_of(input)
    at = axis_of(name, input, dim)
    array = _indices(name, index, shape[at] if shape else 1)
    if array.ndim != len(shape) or any(
        n > m for i, (n, m) in enumerate(zip(array.shape, shape, strict=True)) if i != at
    ):
        raise ValueError(
            f"{name}: index must have as many dimensions as input, and be no larger except along dim {at}, "
            f"got shape {array.shape} for input of shape {shape}"
        )
    return tuple(array if i == at else grid for i, grid in enumerate(np.ogrid[tuple(slice(n) for n in array.shape)]))


_FEW = 16  # numbers that are worth a summation each


@op(rule=rules.gathers, called="embedding")
def table_rows(table: Any, *, index: Array, skip: int | None, blank: bool = False) -> Any:
    """The rows of `table` (count, features) that the integers `index` name.

    Row `skip` (None: no row) gets no gradient; with `blank`, zeros stand where it is named.
    """
    count = len(table)
    value = table[index]
    if blank and skip is not None:
        value[index == skip] = 0

    def to_table(g: Any, out: Any) -> Any:
        if isinstance(g, Tensor):
            return sum_of_rows(g, index=index, count=count, skip=skip)
        return _add_up(g, index, skip, np.empty((count, *g.shape[index.ndim :]), g.dtype) if out is None else out)

    return value, (to_table,)


@op(rule=rules.gathers)
def sum_of_rows(rows: Any, *, index: Array, count: int, skip: int | None) -> Any:
    """A table of `count` rows: row i is the sum of the `rows` with index i; row `skip` is 0."""
    table = _add_up(rows, index, skip, np.empty((count, *rows.shape[index.ndim :]), rows.dtype))
    return table, (lambda g, out: like_input(table_rows, g, index=index, skip=skip, blank=True),)


def _add_up(rows: Array, index: Array, skip: int | None, table: Array) -> Array:
    table[...] = 0
    rows = rows.reshape(index.size, *rows.shape[index.ndim :])
    order = np.argsort(index, axis=None, kind="stable")
    numbers = index.reshape(-1)[order]
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    lengths = np.diff(starts, append=len(numbers))
    # The first row of every number at once, then the second ones, as long as many numbers have another: `+=` is
    # right for numbers that differ, and several times as fast as np.add.at and np.add.reduceat.
    done = 0
    while len(starts) > _FEW:
        table[numbers[starts]] += rows[order[starts + done]]
        done += 1
        starts, lengths = starts[lengths > done], lengths[lengths > done]
    for start, length in zip(starts, lengths, strict=True):
        table[numbers[start]] += rows[order[start + done : start + length]].sum(axis=0)
    if skip is not None:
        table[skip] = 0
    return table
