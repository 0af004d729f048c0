"""Other shapes and other parts of the same elements."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from sorix_dist.core import rules
from sorix_dist.core.op import in_kind, op
from sorix_dist.core.ops.axes import axes_of, axis_of, shape_of
from sorix_dist.core.placement import Shard, shard_of, tagged
from sorix_dist.core.rules import bare, whole
from sorix_dist.core.tensor import Tensor

# -- the operations


@op(rule=rules.linear)
def alias(x: Any) -> Any:
    """The same array as a new tensor."""
    return x, (lambda g, out: g,)


@op(numpy=np.copy, rule=rules.linear)
def clone(x: Any) -> Any:
    """A copy."""
    return np.array(x), (lambda g, out: g,)


@op(rule=rules.reshaped)
def reshape_to(x: Any, *, shape: Any) -> Any:
    """The elements in another shape, without a copy where possible."""
    was = x.shape
    return np.reshape(x, shape), (lambda g, out: np.reshape(g, was),)


@op(rule=rules.reordered)
def permute_to(x: Any, *, axes: Any) -> Any:
    """The dimensions in another order."""
    back = tuple(sorted(range(len(axes)), key=axes.__getitem__))
    return np.transpose(x, axes), (lambda g, out: np.transpose(g, back),)


@op(rule=rules.expanded)
def expand_to(x: Any, *, shape: Any) -> Any:
    """The elements repeated to a larger shape, without a copy; the walk adds the gradients up again."""
    return np.broadcast_to(x, shape), (lambda g, out: g,)


@op(rule=rules.mixes_rows)
def flip_over(x: Any, *, axis: Any) -> Any:
    """The elements in reverse order along the axes."""
    return np.flip(x, axis), (lambda g, out: np.flip(g, axis),)


@op(rule=rules.mixes_rows)
def roll_over(x: Any, *, shift: Any, axis: Any) -> Any:
    """The elements moved along the axes; those that leave at one end come back at the other."""
    back = tuple(-s for s in shift) if isinstance(shift, tuple) else -shift
    return np.roll(x, shift, axis), (lambda g, out: np.roll(g, back, axis),)


@op(rule=rules.indexed)
def take(x: Any, *, index: Any) -> Any:
    """The elements that a NumPy index names; an element named twice gets both gradients."""
    shape = x.shape
    return x[index], (lambda g, out: scatter(g, index=index, shape=shape),)


@op(rule=rules.scattered)
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
    sizes, was, place = sizes_of("reshape", shape), shape_of(input), shard_of(input)
    full = _without_unknown(was, sizes, place)
    if place is None or sizes.count(-1) != 1:
        return reshape_to(input, shape=full)
    rows = rules.reshaped_rows(place, was, full, sizes.index(-1))
    if rows is None:
        return reshape_to(rules.mixed(input, full), shape=full)
    return with_rows(input, tuple(rows.held if i == rows.axis else n for i, n in enumerate(full)), rows)


def sizes_of(name: str, sizes: tuple[Any, ...]) -> tuple[int, ...]:
    """Sizes that were given as `2, 3` or `(2, 3)`; TypeError (for the function `name`) unless they are integers."""
    if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
        sizes = tuple(sizes[0])
    try:
        return tuple(n.__index__() for n in sizes)
    except AttributeError:
        raise TypeError(f"{name}: sizes must be integers, got {sizes}") from None


def _without_unknown(was: tuple[int, ...], shape: tuple[int, ...], place: Shard | None = None) -> tuple[int, ...]:
    """`shape` with -1 replaced by what it stands for; NumPy itself refuses that for arrays of no elements."""
    if shape.count(-1) != 1:
        return shape
    if 0 not in was:
        unknown, left = divmod(prod(was), max(1, -prod(shape)))
        return shape if left or 0 in shape else tuple(unknown if n == -1 else n for n in shape)
    known = [n for n in shape if n != -1]
    unknown, rows = 0, 0 if place is None else place.axis
    if 0 in known and was[rows] == 0:
        # Any number fits; the rows have their own 0, so the unknown is made of the features of a row.
        unknown = prod(n for i, n in enumerate(was) if i != rows) // max(1, prod([n for n in known if n]))
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
    shape, place = shape_of(input), shard_of(input)
    first, last = axis_of("flatten", input, start_dim), axis_of("flatten", input, end_dim)
    if first > last:
        raise ValueError(f"flatten: start_dim must not come after end_dim, got {start_dim} and {end_dim}")
    merged = (*shape[:first], prod(shape[first : last + 1]), *shape[last + 1 :])
    if place is None or place.axis < first:
        return with_rows(input, merged, place)
    if place.axis > last:
        return with_rows(input, merged, place.moved(place.axis - (last - first)))
    outer = place.outer * prod(shape[first : place.axis])
    inner = place.inner * prod(shape[place.axis + 1 : last + 1])
    return with_rows(input, merged, place.batch.at(first, outer, inner))


def with_rows(input: Any, shape: tuple[int, ...], place: Shard | None) -> Any:
    """`reshape_to`, where it is known which axis the rows have afterwards."""
    if place is None:
        return reshape_to(input, shape=shape)
    return tagged(reshape_to(bare(input), shape=shape), place)


def squeeze(input: Any, dim: Any = None, *, axis: Any = None) -> Any:
    """Without the dimensions of size 1, or without those of them that `dim` names."""
    shape, place = extents(input), shard_of(input)
    axes = axes_of("squeeze", input, dim, axis)
    kept = [i for i, n in enumerate(shape) if n != 1 or (axes is not None and i not in axes)]
    if place is not None and place.axis not in kept:  # a single row in the global batch
        input, place = whole(input, "squeeze"), None
    rows = None if place is None else place.moved(kept.index(place.axis))
    return with_rows(input, tuple(shape_of(input)[i] for i in kept), rows)


def unsqueeze(input: Any, dim: Any = None, *, axis: Any = None) -> Any:
    """With a new dimension of size 1 at `dim`."""
    at = axis_of("unsqueeze", input, axis if dim is None else dim, more=1)
    shape, place = shape_of(input), shard_of(input)
    rows = None if place is None else place.moved(place.axis + (at <= place.axis))
    return with_rows(input, (*shape[:at], 1, *shape[at:]), rows)


def expand(input: Any, *sizes: Any) -> Any:
    """Dimensions of size 1 repeated, without a copy; -1 keeps a size, new dimensions come in front."""
    wanted, shape = sizes_of("expand", sizes), shape_of(input)
    extra = len(wanted) - len(shape)
    if extra < 0:
        raise ValueError(f"expand: sizes must have at least {len(shape)} entries for shape {shape}, got {wanted}")
    global_shape = (*wanted[:extra], *extents(input))  # all rows of the batch are all of this rank's
    full = tuple(shape[i - extra] if i >= extra and n in (-1, global_shape[i]) else n for i, n in enumerate(wanted))
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
    place, extra = shard_of(input), len(times) - len(shape)
    if place is not None:  # all rows, then all rows again
        axis = place.axis + extra
        rows = place.batch.at(axis, place.outer * times[axis], place.inner)
        return tagged(repeat(bare(input), times), rows)
    shape = (1,) * extra + shape
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
    parts, place = key if isinstance(key, tuple) else (key,), shard_of(input)
    if place is not None and any(map(_is_mask, parts)):
        key = parts = tuple(_with_masks_of_rows(place, _of_each_axis([*parts], len(shape_of(input)))))
    pairs = place is not None and len(parts) == 2 and all(isinstance(part, Tensor | np.ndarray) for part in parts)
    if pairs or any(isinstance(part, Tensor) and part.place is not None for part in parts):
        return _index_by_rows(input, parts)
    return take(input, index=key_of(key))


def _index_by_rows(input: Any, key: tuple[Any, ...]) -> Any:
    """`input[key]` where a tensor in the key is rows of a batch."""
    arrays = [part for part in key if isinstance(part, Tensor | np.ndarray | list)]
    chosen = next((part for part in arrays if isinstance(part, Tensor) and part.place is not None), None)
    rows, place = shard_of(chosen), shard_of(input)
    alone = len(arrays) == 1 and not any(isinstance(part, int | np.integer) for part in key)
    if chosen is not None and rows is not None and alone:
        before = _axes_before(input, key, next(i for i, part in enumerate(key) if part is chosen))
        mask = chosen.array.dtype == np.bool_
        ordered = rows.group.ordered and input.requires_grad
        if place is None and not mask and not ordered:  # rows that say what they want of what is the same everywhere
            return tagged(take(input, index=key_of(key)), rows.moved(before + rows.axis))
        if mask and place is not None and before + rows.axis == place.axis:
            return take(input, index=key_of(key))
    if place is not None and len(key) == len(arrays) == 2 and place.axis == 0 and (rows is None or rows.axis == 0):
        own, other = (part.array if isinstance(part, Tensor) else np.asarray(part) for part in key)
        # Of each row what its index names.
        if own.shape == other.shape == (place.held,) and np.array_equal(own, np.arange(place.held)):
            return tagged(take(bare(input), index=(own, other)), place)
    return take(input, index=key_of(tuple(whole(part, "an index") for part in key)))


def _axes_before(input: Any, key: tuple[Any, ...], at: int) -> int:
    """How many dimensions the result of an index has before the part number `at` of its key."""
    named = sum(getattr(p, "ndim", 1) if _is_mask(p) else p is not None for p in key if p is not Ellipsis)
    hidden = len(shape_of(input)) - named
    return sum(hidden if part is Ellipsis else 1 for part in key[:at])


def _is_mask(part: Any) -> bool:
    return getattr(getattr(part, "array", part), "dtype", None) == np.bool_


def _of_each_axis(parts: list[Any], ndim: int) -> list[Any]:
    """The parts of an index with a slice for each of the `ndim` dimensions that it leaves out."""
    named = sum(p.ndim if _is_mask(p) else 1 for p in parts if p is not None and p is not Ellipsis)
    dots = next((i for i, p in enumerate(parts) if p is Ellipsis), None)
    hidden: list[Any] = [slice(None)] * (ndim - named)
    return [*parts, *hidden] if dots is None else [*parts[:dots], *hidden, *parts[dots + 1 :]]


def _with_masks_of_rows(place: Shard, parts: list[Any]) -> list[Any]:
    """The parts of an index, one for each axis or more, with this rank's part of masks over the rows of all ranks."""
    axis, found = 0, []
    for part in parts:
        covers = part.ndim if _is_mask(part) else int(part is not None)
        if _is_mask(part) and axis <= place.axis < axis + covers and shard_of(part) is None:
            part = rules.rows_beside(part, place, covers + axis - place.axis)
        axis += covers
        found.append(part)
    return found


def rows_in_index(place: Shard, shape: tuple[int, ...], key: Any) -> Shard | None:
    """Where rows are after NumPy's indexing; None if it names them by their places."""
    parts = _of_each_axis([*key] if isinstance(key, tuple) else [key], len(shape))
    arrays = [i for i, p in enumerate(parts) if isinstance(p, np.ndarray)]
    advanced = [i for i, p in enumerate(parts) if isinstance(p, np.ndarray) or (arrays and _is_integer(p))]
    together = bool(advanced) and advanced == list(range(advanced[0], advanced[-1] + 1))
    dims = max((1 if _is_mask(parts[i]) else parts[i].ndim for i in arrays), default=0)
    axis, after = 0, 0 if together or not arrays else dims  # axes of the input and of the result so far
    for i, part in enumerate(parts):
        if together and i == advanced[0]:
            first, after = after, after + dims
        covers = part.ndim if _is_mask(part) else int(part is not None)
        if axis <= place.axis < axis + covers:
            if isinstance(part, slice):
                return _sliced_rows(place, part, after)
            if not _is_mask(part) or len(arrays) > 1 or part.shape[place.axis - axis] != place.held:
                return None
            each = int(np.count_nonzero(part))
            if axis == place.axis and place.outer == 1:
                each = part.reshape(place.batch.held, part.size // max(1, place.batch.held)).sum(axis=1)
            return place.batch.selected(each).at(first if together else 0)
        axis += covers
        after += part is None or isinstance(part, slice)
    return None


def _is_integer(part: Any) -> bool:
    return isinstance(part, int | np.integer) and not isinstance(part, bool)


def _sliced_rows(place: Shard, part: slice, axis: int) -> Shard | None:
    """All rows, or all rows of some of those that lie one after the other; None for other slices."""
    if part.step not in (None, 1):
        return None
    length = place.held // place.outer
    if part.stop is None and (part.start is None or (part.start == 0 and (length or place.outer == 1))):
        return place.moved(axis)
    if place.outer == 1:
        return None
    if not length and (part.start or part.stop):  # a number of the user's, which is not that of this rank's rows
        return None
    if not length:  # a rank without rows can't tell where one ends
        outer = 1 if part.stop == 0 and part.start in (None, 0) and place.outer > 1 else place.outer - 1
        return place.batch.at(axis, outer, place.inner)
    start, stop, _ = part.indices(place.held)
    if start % length or stop % length or stop <= start:
        return None
    return place.batch.at(axis, (stop - start) // length, place.inner)


def extents(input: Any) -> tuple[int, ...]:
    """The shape of a tensor in the global batch."""
    shape, place = shape_of(input), shard_of(input)
    if place is None or place.group.alone:
        return shape
    return (*shape[: place.axis], place.total, *shape[place.axis + 1 :])


def key_of(key: Any) -> Any:
    """An index with arrays in the place of tensors and lists."""
    if isinstance(key, tuple):
        return tuple(key_of(k) for k in key)
    if isinstance(key, list):
        array = np.asarray(key)
        return array if array.size else array.astype(np.int64)
    return getattr(key, "array", key)
