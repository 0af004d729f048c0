"""Other shapes and other parts of the same elements."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from sorix_dist.core import kept_rows
from sorix_dist.core.op import in_kind, op
from sorix_dist.core.ops.axes import axes_of, axis_of, shape_of
from sorix_dist.core.tensor import Tensor

# -- the operations


@op()
def alias(x: Any) -> Any:
    """The same array as a new tensor."""
    return x, (lambda g, out: g,)


@op(numpy=np.copy)
def clone(x: Any) -> Any:
    """A copy."""
    return np.array(x), (lambda g, out: g,)


@op(keeps_rows=kept_rows.reshaped)
def reshape_to(x: Any, *, shape: Any) -> Any:
    """The elements in another shape, without a copy where possible."""
    was = x.shape
    return np.reshape(x, shape), (lambda g, out: np.reshape(g, was),)


@op(keeps_rows=kept_rows.reordered)
def permute_to(x: Any, *, axes: Any) -> Any:
    """The dimensions in another order."""
    back = tuple(sorted(range(len(axes)), key=axes.__getitem__))
    return np.transpose(x, axes), (lambda g, out: np.transpose(g, back),)


@op(keeps_rows=kept_rows.expanded)
def expand_to(x: Any, *, shape: Any) -> Any:
    """The elements repeated to a larger shape, without a copy; the walk adds the gradients up again."""
    return np.broadcast_to(x, shape), (lambda g, out: g,)


@op(keeps_rows=kept_rows.along_axis)
def flip_over(x: Any, *, axis: Any) -> Any:
    """The elements in reverse order along the axes."""
    return np.flip(x, axis), (lambda g, out: np.flip(g, axis),)


@op(keeps_rows=kept_rows.along_axis)
def roll_over(x: Any, *, shift: Any, axis: Any) -> Any:
    """The elements moved along the axes; those that leave at one end come back at the other."""
    back = tuple(-s for s in shift) if isinstance(shift, tuple) else -shift
    return np.roll(x, shift, axis), (lambda g, out: np.roll(g, back, axis),)


@op(keeps_rows=kept_rows.indexed)
def take(x: Any, *, index: Any) -> Any:
    """The elements that a NumPy index names; an element named twice gets both gradients."""
    shape = x.shape
    return x[index], (lambda g, out: scatter(g, index=index, shape=shape),)


@op(keeps_rows=kept_rows.never)
def scatter_add_to(x: Any, *, index: Any, shape: Any) -> Any:
    """Zeros of `shape` with the elements of x added at a NumPy index: the transpose of `take`."""
    zeros = np.zeros(shape, x.dtype)
    if _names_each_once(index):
        zeros[index] = x
    else:
        np.add.at(zeros, index, x)
    return zeros, (lambda g, out: g[index],)


def scatter(x: Any, *, index: Any, shape: Any) -> Any:
    """`scatter_add_to` for a tensor or an array, answering in kind."""
    return in_kind(scatter_add_to, x, index=index, shape=shape)


def _names_each_once(index: Any) -> bool:
    """Whether an index can't name an element twice: slices, integers, and one array of bools."""
    parts = index if isinstance(index, tuple) else (index,)
    masks = [i for i in parts if isinstance(i, np.ndarray) and i.dtype == np.bool_]
    simple = [i for i in parts if i is None or i is Ellipsis or isinstance(i, slice | int | np.integer)]
    return len(simple) + len(masks) == len(parts) and len(masks) <= 1


# -- what users call


def reshape(input: Any, *shape: Any) -> Any:
    """The elements of `input` in another shape; one entry may be -1, also when there are no elements."""
    return reshape_to(input, shape=_without_unknown(shape_of(input), sizes_of("reshape", shape)))


def sizes_of(name: str, sizes: tuple[Any, ...]) -> tuple[int, ...]:
    """Sizes that were given as `2, 3` or `(2, 3)`; TypeError (for the function `name`) unless they are integers."""
    if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
        sizes = tuple(sizes[0])
    try:
        return tuple(n.__index__() for n in sizes)
    except AttributeError:
        raise TypeError(f"{name}: sizes must be integers, got {sizes}") from None


def _without_unknown(was: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """`shape` with -1 replaced by what it stands for; NumPy itself refuses that for arrays of no elements."""
    if shape.count(-1) != 1 or 0 not in was:
        return shape
    known = [n for n in shape if n != -1]
    unknown = 0
    if 0 in known and was[:1] == (0,):
        # Any number fits; the rows have their own 0, so the unknown is made of the features of a row.
        unknown = prod(was[1:]) // prod([n for n in known if n])
    return tuple(unknown if n == -1 else n for n in shape)


def transpose(input: Any, *axes: Any) -> Any:
    """The dimensions reversed; with two integers, those two exchanged; with one for each or a tuple, in that order."""
    if not axes or axes == (None,):
        return permute_to(input, axes=tuple(reversed(range(len(shape_of(input))))))
    if len(axes) == 2:
        return swapaxes(input, *axes)
    return permute(input, *axes)


def swapaxes(input: Any, dim0: int, dim1: int) -> Any:
    """The dimensions with `dim0` and `dim1` exchanged."""
    order = list(range(len(shape_of(input))))
    first, second = axis_of("transpose", input, dim0), axis_of("transpose", input, dim1)
    if order:
        order[first], order[second] = second, first
    return permute_to(input, axes=tuple(order))


def t(input: Any) -> Any:
    """A matrix transposed; vectors and 0-d tensors as they are. ValueError for more dimensions."""
    if len(shape_of(input)) > 2:
        raise ValueError(f"t: input must have at most two dimensions, got shape {shape_of(input)}")
    return transpose(input)


def permute(input: Any, *dims: Any) -> Any:
    """The dimensions in the order `dims`, which names each once."""
    order = sizes_of("permute", dims)
    axes = tuple(axis_of("permute", input, d) for d in order)
    if sorted(axes) != list(range(len(shape_of(input)))):
        raise ValueError(f"permute: dims must name each of {len(shape_of(input))} dimensions once, got {order}")
    return permute_to(input, axes=axes)


def movedim(input: Any, source: int, destination: int) -> Any:
    """The dimension `source` moved to the place `destination`; the others keep their order."""
    order = list(range(len(shape_of(input))))
    order.insert(axis_of("movedim", input, destination), order.pop(axis_of("movedim", input, source)))
    return permute_to(input, axes=tuple(order))


def flatten(input: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    """The dimensions from `start_dim` to `end_dim` joined into one."""
    shape = shape_of(input)
    first, last = axis_of("flatten", input, start_dim), axis_of("flatten", input, end_dim)
    if first > last:
        raise ValueError(f"flatten: start_dim must not come after end_dim, got {start_dim} and {end_dim}")
    return reshape_to(input, shape=(*shape[:first], prod(shape[first : last + 1]), *shape[last + 1 :]))


def squeeze(input: Any, dim: Any = None, *, axis: Any = None) -> Any:
    """Without the dimensions of size 1, or without those of them that `dim` names."""
    shape = shape_of(input)
    axes = axes_of("squeeze", input, dim, axis)
    kept = tuple(n for i, n in enumerate(shape) if n != 1 or (axes is not None and i not in axes))
    return reshape_to(input, shape=kept)


def unsqueeze(input: Any, dim: Any = None, *, axis: Any = None) -> Any:
    """With a new dimension of size 1 at `dim`."""
    at = axis_of("unsqueeze", input, axis if dim is None else dim, more=1)
    shape = shape_of(input)
    result = reshape_to(input, shape=(*shape[:at], 1, *shape[at:]))
    if at == 0 and isinstance(result, Tensor):
        result.rows = None  # a single row would still look like one
    return result


def expand(input: Any, *sizes: Any) -> Any:
    """Dimensions of size 1 repeated, without a copy; -1 keeps a size, new dimensions come in front."""
    wanted, shape = sizes_of("expand", sizes), shape_of(input)
    extra = len(wanted) - len(shape)
    if extra < 0:
        raise ValueError(f"expand: sizes must have at least {len(shape)} entries for shape {shape}, got {wanted}")
    full = tuple(shape[i - extra] if n == -1 and i >= extra else n for i, n in enumerate(wanted))
    if any(n < 0 for n in full) or any(n not in (1, m) for n, m in zip(shape, full[extra:], strict=True)):
        raise ValueError(f"expand: sizes must fit the shape {shape} where that is not 1, got {wanted}")
    return expand_to(input, shape=full)


def expand_as(input: Any, other: Any) -> Any:
    """Repeated to the shape of `other`."""
    return expand(input, *shape_of(other))


def broadcast_to(input: Any, size: Any) -> Any:
    """Repeated to the shape `size`, without a copy."""
    return expand(input, *size)


def repeat(input: Any, *sizes: Any) -> Any:
    """The tensor set side by side with itself: `sizes` says how often along each dimension; new ones come in front."""
    times = sizes_of("repeat", sizes)
    shape: tuple[int, ...] = shape_of(input)
    if len(times) < len(shape):
        raise ValueError(f"repeat: sizes must have at least {len(shape)} entries for shape {shape}, got {times}")
    if any(n < 0 for n in times):
        raise ValueError(f"repeat: sizes must not be negative, got {times}")
    shape = (1,) * (len(times) - len(shape)) + shape
    apart = reshape_to(input, shape=tuple(n for size in shape for n in (1, size)))
    wide = expand_to(apart, shape=tuple(n for pair in zip(times, shape, strict=True) for n in pair))
    return reshape_to(wide, shape=tuple(n * size for n, size in zip(times, shape, strict=True)))


def flip(input: Any, *dims: Any) -> Any:
    """In reverse order along each of `dims`."""
    axes = tuple(axis_of("flip", input, d) for d in sizes_of("flip", dims))
    return flip_over(input, axis=axes if shape_of(input) else ())


def roll(input: Any, shifts: Any, dims: Any = None) -> Any:
    """Moved by `shifts` along `dims` (flattened without), what leaves at one end comes in at the other."""
    if dims is None:
        return roll_over(input, shift=shifts, axis=None)
    shifts = tuple(shifts) if isinstance(shifts, tuple | list) else (shifts,)
    axes = axes_of("roll", input, dims) or ()
    if len(shifts) != len(axes):
        raise ValueError(f"roll: shifts must have one entry per dimension in dims, got {shifts} and {dims}")
    return roll_over(input, shift=shifts, axis=axes)


def index(input: Any, key: Any) -> Any:
    """`input[key]` as NumPy indexes; tensors in the key stand for their arrays."""
    return take(input, index=key_of(key))


def key_of(key: Any) -> Any:
    """An index with arrays in the place of tensors and lists."""
    if isinstance(key, tuple):
        return tuple(key_of(k) for k in key)
    if isinstance(key, list):
        array = np.asarray(key)
        return array if array.size else array.astype(np.int64)
    return getattr(key, "array", key)
