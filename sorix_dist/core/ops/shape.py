"""Other shapes of the same elements."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from sorix_dist.core import rules
from sorix_dist.core.batch_numbers import here, of_all, sized
from sorix_dist.core.op import op
from sorix_dist.core.ops.axes import (
    axes_of,
    axis_of,
    mixed,
    mixes_rows,
    named_by_number,
    refused,
    reshape_rule,
    reshaped_rows,
)
from sorix_dist.core.placement import REPLICATE, Partial, Shard, shard_of, tagged
from sorix_dist.core.rules import Answer, Apply, Inputs, Options, bare, beside, collective, linear_place, whole
from sorix_dist.core.tensor import shape_of

# -- where the rows of a batch are afterwards


def permute_rule(apply: Apply, inputs: Inputs, options: Options) -> Answer:
    """The dimensions in the order `axes`: the rows' moves with them."""
    place = inputs[0].place
    return place.moved(options["axes"].index(place.axis)) if isinstance(place, Shard) else linear_place(place)


def expand_rule(apply: Apply, inputs: Inputs, options: Options) -> Answer:
    """Repeated to a larger shape: the rows' axis moves if dimensions come in front. A sum is made whole, because it may
    be repeated for each row of this rank, as other ranks do for theirs."""
    x, place = inputs[0], inputs[0].place
    if isinstance(place, Partial) and not place.group.single and not place.group.isolated:
        return apply(whole(x, "expand"), **options)
    if not isinstance(place, Shard):
        return linear_place(place)
    axis = place.axis + len(options["shape"]) - x.array.ndim
    if options["shape"][axis] != x.array.shape[place.axis]:
        return apply(refused(x, "expand"), **options)
    return place.moved(axis)


# -- the operations


@op(rule=rules.linear)
def alias(x: Any) -> Any:
    """The same array as a new tensor."""
    return x, (lambda g, out: g,)


@op(numpy=np.copy, rule=rules.linear)
def clone(x: Any) -> Any:
    """A copy."""
    return np.array(x), (lambda g, out: g,)


@op(rule=reshape_rule, called="reshape")
def reshape_to(x: Any, *, shape: Any) -> Any:
    """The elements in another shape, without a copy where possible."""
    was = x.shape
    return np.reshape(x, shape), (lambda g, out: np.reshape(g, was),)


@op(rule=permute_rule, called="permute")
def permute_to(x: Any, *, axes: Any) -> Any:
    """The dimensions in another order."""
    back = tuple(sorted(range(len(axes)), key=axes.__getitem__))
    return np.transpose(x, axes), (lambda g, out: np.transpose(g, back),)


@op(rule=expand_rule, called="expand")
def expand_to(x: Any, *, shape: Any) -> Any:
    """The elements repeated to a larger shape, without a copy; the walk adds the gradients up again."""
    return np.broadcast_to(x, shape), (lambda g, out: g,)


@op(rule=mixes_rows, called="flip")
def flip_over(x: Any, *, axis: Any) -> Any:
    """The elements in reverse order along the axes."""
    return np.flip(x, axis), (lambda g, out: np.flip(g, axis),)


@op(rule=mixes_rows, called="roll")
def roll_over(x: Any, *, shift: Any, axis: Any) -> Any:
    """The elements moved along the axes; those that leave at one end come back at the other."""
    back = tuple(-s for s in shift) if isinstance(shift, tuple) else -shift
    return np.roll(x, shift, axis), (lambda g, out: np.roll(g, back, axis),)


# -- what users call


def reshape(input: Any, *shape: Any) -> Any:
    """The elements of `input` in another shape; one entry may be -1, also when there are no elements."""
    was, place = shape_of(input), shard_of(input)
    if place is not None and (named := named_by_number(input, _unpacked(shape))) is not None:
        return with_rows(input, *named)
    sizes = _sizes_that_fit(input, _unpacked(shape))
    full = _without_unknown(was, sizes, place)
    if place is None or sizes.count(-1) != 1:
        return reshape_to(input, shape=full)
    rows = reshaped_rows(place, was, full, sizes.index(-1))
    if rows is None:
        return reshape_to(mixed(input, full), shape=full)
    return with_rows(input, tuple(rows.held if i == rows.axis else n for i, n in enumerate(full)), rows)


def sizes_of(name: str, sizes: tuple[Any, ...]) -> tuple[int, ...]:
    """Sizes that were given as `2, 3` or `(2, 3)`; TypeError (for the function `name`) unless they are integers."""
    sizes = _unpacked(sizes)
    try:
        return tuple(here(n).__index__() for n in sizes)
    except AttributeError:
        raise TypeError(f"{name}: sizes must be integers, got {sizes}") from None


def _sizes_that_fit(input: Any, sizes: tuple[Any, ...]) -> tuple[int, ...]:
    """The sizes of a reshape. For what has the rows of all ranks x.shape[0] is their number, if that fits."""
    own = sizes_of("reshape", sizes)
    if shard_of(input) is not None or all(getattr(n, "everywhere", None) is None for n in sizes):
        return own
    everywhere, count = sizes_of("reshape", of_all(sizes)), prod(shape_of(input))
    first, second = (everywhere, own) if getattr(input, "place", None) is REPLICATE else (own, everywhere)
    fits = count % max(1, abs(prod(first))) == 0 if -1 in first else count == prod(first)
    return first if fits else second


def _unpacked(sizes: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes


def _without_unknown(was: tuple[int, ...], shape: tuple[int, ...], place: Shard | None = None) -> tuple[int, ...]:
    """`shape` with -1 replaced by the length that it denotes; NumPy itself refuses that for arrays of no elements."""
    if shape.count(-1) != 1:
        return shape
    if 0 not in was:
        unknown, left = divmod(prod(was), max(1, -prod(shape)))
        return shape if left or 0 in shape else tuple(unknown if n == -1 else n for n in shape)
    known = [n for n in shape if n != -1]
    unknown, rows = 0, 0 if place is None else place.axis
    if 0 in known and was[rows] == 0:
        # Any number fits; the rows have their own 0, so the unknown is made of the features of a row.
        merged = 1 if place is None else place.outer * place.inner
        unknown = merged * prod(n for i, n in enumerate(was) if i != rows) // max(1, prod([n for n in known if n]))
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
    """A matrix transposed; vectors and 0-d tensors as they are. RuntimeError for more dimensions."""
    if len(shape_of(input)) > 2:
        raise RuntimeError(f"t: input must have at most two dimensions, got shape {shape_of(input)}")
    return transpose(input)


def permute(input: Any, *dims: Any) -> Any:
    """The dimensions in the order `dims`, which names each once."""
    order = sizes_of("permute", dims)
    axes = tuple(axis_of("permute", input, d) for d in order)
    if sorted(axes) != list(range(len(shape_of(input)))):
        raise ValueError(f"permute: dims must name each of {len(shape_of(input))} dimensions once, got {order}")
    return permute_to(input, axes=axes)


def movedim(input: Any, source: Any, destination: Any) -> Any:
    """The dimension `source`, or several, moved to the index `destination`; the others keep their order."""
    pairs = [(source, destination)] if np.ndim(source) == 0 else list(zip(source, destination, strict=True))
    to = {axis_of("movedim", input, new): axis_of("movedim", input, old) for old, new in pairs}
    others = iter([i for i in range(len(shape_of(input))) if i not in to.values()])
    return permute_to(input, axes=tuple(to[i] if i in to else next(others) for i in range(len(shape_of(input)))))


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
    place, sizes = shard_of(input), _unpacked(sizes)
    if place is not None and place.batch.known is not None and not place.group.isolated:
        sizes = of_all(sizes)
    own, rows = sized(sizes) if place is None else (sizes, None)
    wanted, shape = sizes_of("expand", tuple(own)), shape_of(input)
    extra = len(wanted) - len(shape)
    if extra < 0:
        raise ValueError(f"expand: sizes must have at least {len(shape)} entries for shape {shape}, got {wanted}")
    if rows is not None:
        return _expand_to_rows(input, wanted, rows)
    global_shape = (*wanted[:extra], *extents(input))  # the global number of rows means this rank's rows
    full = tuple(shape[i - extra] if i >= extra and n in (-1, global_shape[i]) else n for i, n in enumerate(wanted))
    return _expanded(input, full, wanted)


def _expanded(input: Any, full: tuple[int, ...], wanted: tuple[int, ...]) -> Any:
    shape = shape_of(input)
    pairs = zip(shape, full[len(full) - len(shape) :], strict=True)
    if any(n < 0 for n in full) or any(n not in (1, m) for n, m in pairs):
        raise ValueError(f"expand: sizes must fit the shape {shape} where that is not 1, got {wanted}")
    return expand_to(input, shape=full)


def _expand_to_rows(input: Any, wanted: tuple[int, ...], rows: Shard) -> Any:
    """What every rank has alike, repeated for each row of a batch: it becomes rows."""
    input, at = whole(input, "expand"), len(wanted) - rows.axis
    input = beside(input, rows, at)
    if shard_of(input) is None and rows.group.ordered and getattr(input, "origin", None) is not None:
        input = collective().spread(input, rows, at, len(wanted))
    shape = (1,) * (len(wanted) - len(shape_of(input))) + shape_of(input)
    full = tuple(m if n == -1 else n for n, m in zip(wanted, shape, strict=True))
    return tagged(_expanded(bare(input), full, wanted), rows)


def expand_as(input: Any, other: Any) -> Any:
    """Repeated to the shape of `other`."""
    place, rows, shape = shard_of(input), shard_of(other), shape_of(other)
    if rows is None or (place is not None and len(shape) - rows.axis == len(shape_of(input)) - place.axis):
        return expand(input, *shape)
    return _expand_to_rows(input, shape, rows)


def broadcast_to(input: Any, size: Any) -> Any:
    """Repeated to the shape `size`, without a copy."""
    return expand(input, size)


def repeat(input: Any, *sizes: Any) -> Any:
    """The tensor set side by side with itself: `sizes` says how often along each dimension; new ones come in front."""
    sizes, place = _unpacked(sizes), shard_of(input)
    if place is not None and place.batch.known is not None and not place.group.isolated:
        sizes = of_all(sizes)
    own, lead = sized(sizes) if place is None else (sizes, None)
    times = sizes_of("repeat", tuple(own))
    shape: tuple[int, ...] = shape_of(input)
    if isinstance(input, np.ndarray):  # as in sorix and np.tile
        times = (1,) * (len(shape) - len(times)) + tuple(times)
    if len(times) < len(shape):
        raise ValueError(f"repeat: sizes must have at least {len(shape)} entries for shape {shape}, got {times}")
    if any(n < 0 for n in times):
        raise ValueError(f"repeat: sizes must not be negative, got {times}")
    extra = len(times) - len(shape)
    if place is not None:  # all rows, then all rows again
        axis = place.axis + extra
        rows = place.batch.at(axis, place.outer * times[axis], place.inner)
        return tagged(repeat(bare(input), times), rows)
    shape = (1,) * extra + shape
    pairs = reshape_to(input, shape=tuple(n for size in shape for n in (1, size)))
    full = tuple(n for both in zip(times, shape, strict=True) for n in both)
    joined = tuple(n * size for n, size in zip(times, shape, strict=True))
    if lead is None:
        return reshape_to(expand_to(pairs, shape=full), shape=joined)
    wide = bare(_expand_to_rows(pairs, full, lead.moved(2 * lead.axis)))
    return with_rows(wide, joined, lead.batch.at(lead.axis, lead.outer, lead.inner * shape[lead.axis]))


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


def extents(input: Any) -> tuple[int, ...]:
    """The shape of a tensor in the global batch."""
    shape, place = shape_of(input), shard_of(input)
    if place is None or place.group.single:
        return shape
    return (*shape[: place.axis], place.total, *shape[place.axis + 1 :])
