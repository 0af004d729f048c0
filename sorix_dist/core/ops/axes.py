"""Dimensions that users name: checked, counted from 0; and where rows of a batch are after operations along them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from math import prod
from typing import Any

import numpy as np

from sorix_dist.core.batch_numbers import BatchInt
from sorix_dist.core.placement import Shard
from sorix_dist.core.rules import Answer, Apply, Inputs, Options, Rule, bare, gathers, linear_place, whole
from sorix_dist.core.tensor import Array, Tensor, shape_of


def broadcasts_to(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether an array of `shape` can be repeated to the shape `whole`."""
    try:
        return np.broadcast_shapes(shape, whole) == tuple(whole)
    except ValueError:
        return False


def axis_of(name: str, input: Any, dim: Any, more: int = 0) -> int:
    """`dim` counted from 0; IndexError (for the function `name`) if `input`, with `more` dimensions, has it not."""
    shape = shape_of(input)
    count = len(shape) + more
    try:
        axis = None if isinstance(dim, bool) else dim.__index__()
    except (AttributeError, TypeError):
        axis = None
    if axis is None:
        raise TypeError(f"{name}: dim must be an integer, got {dim!r}")
    # A 0-d tensor is taken as a row of one element where that makes sense, as in PyTorch.
    limit = max(1, count)
    if not -limit <= axis < limit:
        raise IndexError(f"{name}: dim must be in [{-limit}, {limit}) for a tensor of shape {shape}, got {axis}")
    return int(axis) % limit


def axes_of(name: str, input: Any, dim: Any, axis: Any = None, empty_is_all: bool = False) -> tuple[int, ...] | None:
    """The dimensions to reduce over, given as `dim` or `axis`: None (all), one or several; counted from 0.

    empty_is_all: whether () means all dimensions, as for PyTorch's sums.
    """
    if dim is None:
        dim = axis
    elif axis is not None:
        raise TypeError(f"{name}: dim and axis mean the same; only one can be given, got dim={dim!r}, axis={axis!r}")
    if dim is None or (empty_is_all and isinstance(dim, tuple | list) and not dim):
        return None
    axes = tuple([axis_of(name, input, d) for d in (dim if isinstance(dim, tuple | list) else (dim,))])
    if len(axes) > 1 and len(set(axes)) < len(axes):
        raise ValueError(f"{name}: dim must name each dimension once, got {dim!r}")
    return axes if shape_of(input) else None


def along(axis: int, part: Any) -> tuple[Any, ...]:
    """The index that takes `part` along `axis`, and everything along the others."""
    return (*(slice(None),) * axis, part)


def parts_along(axis: int, sizes: Iterable[int]) -> list[tuple[Any, ...]]:
    """The indices of consecutive parts of these sizes along `axis`."""
    ends = accumulate(sizes, initial=0)
    return [along(axis, slice(start, end)) for start, end in pairwise(ends)]


def with_ones(shape: tuple[int, ...], axes: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape that a reduction over `axes` (None: all) has if it keeps its dimensions."""
    return tuple(1 if axes is None or i in axes else n for i, n in enumerate(shape))


# -- rows of a batch, where an operation works along axes


def normalized_axes(axis: Any, ndim: int) -> tuple[int, ...]:
    """NumPy's `axis` (None: all; one, or several, also from the end) as axes counted from 0."""
    if axis is None:
        return tuple(range(ndim))
    return tuple(a % ndim for a in (axis if isinstance(axis, tuple | list) else (axis,)))


def after_reduction(shard: Shard, axes: tuple[int, ...], keepdims: Any) -> Shard:
    """The placement when the axes, which are not the rows', have gone."""
    return shard if keepdims else shard.moved(shard.axis - sum(a < shard.axis for a in axes))


def along_axis(reduces: bool | None) -> Rule:
    """Along `axis`: its elements depend on each other, so rows are gathered if the axis is theirs.

    reduces: whether the axis goes; None: where `keepdims` is not set.
    """

    def rule(apply: Apply, inputs: Inputs, options: Options) -> Answer:
        place, axes = inputs[0].place, normalized_axes(options["axis"], inputs[0].array.ndim)
        if not isinstance(place, Shard) or place.axis in axes:
            return gathers(apply, inputs, options)
        return after_reduction(place, axes, options["keepdims"] if reduces is None else not reduces)

    return rule


def mixes_rows(apply: Apply, inputs: Inputs, options: Options) -> Answer:
    """Reversed or rotated along `axis`: refused along rows, since their positions depend on the number of ranks."""
    place = inputs[0].place
    if isinstance(place, Shard) and place.axis in normalized_axes(options["axis"], inputs[0].array.ndim):
        return apply(refused(inputs[0], apply.__name__), **options)
    return place if isinstance(place, Shard) else linear_place(place)


def rows_named_by(index: Any, x: Tensor, what: str) -> Tensor:
    """The rows of all ranks, whose numbers an index holds that follows from the batch, such as that of argsort;
    RuntimeError on several ranks for another index."""
    follows = isinstance(index, Tensor) and index.place is not None and index.array.dtype.kind in "iu"
    found: Tensor = whole(x, what) if follows else refused(x, what)
    return found


def refused(x: Tensor, what: str) -> Tensor:
    """RuntimeError on several ranks: positions along the batch axis mean other rows on every number of ranks. On one
    rank the tensor has all rows, and is returned without a placement."""
    place = x.place
    assert isinstance(place, Shard)
    if not place.group.single:
        raise RuntimeError(
            f"{what}: along axis {place.axis} lie the rows of this rank only, {place.held} of {place.total} in the "
            "global batch, so positions in it mean other rows on every number of ranks. sx.all_gather(x) gives the "
            "rows of every rank, sx.global_value(x) all of them in one tensor; row masks, `:` and `...` are allowed "
            "[docs: refused-rows]"
        )
    gathered: Tensor = whole(x)
    return gathered


def maxima(x: Array, axis: int = -1) -> Array:
    """The largest elements of floats along `axis`, which stays with length 1; -inf if it has length 0."""
    if not x.size or x.ndim == 0 or axis % x.ndim != x.ndim - 1:
        return np.asarray(x.max(axis=axis, keepdims=True, initial=-np.inf))
    # NumPy finds where a row is largest in a third of the time in which it finds the largest number.
    rows = x.reshape(-1, x.shape[-1])
    at = rows.argmax(axis=1)
    at += np.arange(0, rows.size, rows.shape[1])
    largest: Array = rows.take(at)
    return largest.reshape(*x.shape[:-1], 1)


# -- after a reshape


def reshape_rule(apply: Apply, inputs: Inputs, options: Options) -> Answer:
    """Another shape: rows stay rows if their axis does, or is merged with others or split off again."""
    x, place = inputs[0], inputs[0].place
    if not isinstance(place, Shard):
        return linear_place(place)
    found = reshaped_rows(place, x.array.shape, options["shape"])
    return apply(mixed(x, options["shape"]), **options) if found is None else found


def mixed(x: Tensor, shape: Sequence[int]) -> Tensor:
    """RuntimeError on several ranks: a reshape mixes rows. On one rank the tensor without its placement."""
    place = x.place
    assert isinstance(place, Shard)
    if not place.group.single:
        raise RuntimeError(
            f"reshape: {tuple(x.array.shape)}, {place.batch.held} of {place.rows.total} rows along axis {place.axis}, "
            f"does not become {tuple(shape)} row by row. Say -1 for the axis of the batch, or take "
            "sx.global_value(x), which has the rows of all ranks"
        )
    return bare(x)  # type: ignore[no-any-return]


def reshaped_rows(
    place: Shard, before: tuple[int, ...], after: Sequence[int], unknown: int | None = None
) -> Shard | None:
    """The placement of rows after a reshape; None if they are mixed, or if it is ambiguous.

    unknown: the axis of -1, whose length in `after` does not matter. A rank with a single row can't distinguish it from
    other dimensions of 1 and has to guess; where the guess would be wrong, ranks with more rows answer None.
    """
    front = prod(before[: place.axis]) * place.outer
    behind = prod(before[place.axis + 1 :]) * place.inner
    after = tuple(after)
    found = _axis_of_rows(front, behind, place.batch.held, after, unknown)
    if found is None:
        return None
    axis, outer, inner = found
    if place.batch.held != 1 and not place.group.single:
        of_one = (*after[:axis], outer * inner, *after[axis + 1 :])
        if _axis_of_rows(front, behind, 1, of_one, unknown) != found:
            return None
    return place.batch.at(axis, outer, inner)


@lru_cache(maxsize=256)
def _axis_of_rows(
    front: int, behind: int, rows: int, after: tuple[int, ...], unknown: int | None
) -> tuple[int, int, int] | None:
    """(axis, outer, inner) of rows after a reshape that have `front` elements in front of them and `behind` behind.

    An axis with A elements in front and B behind can contain them if A divides `front` and B divides `behind`, and its
    length fits (or is -1). Of several such axes, the one that merges the rows with the fewest others.
    """
    found = []
    for axis, length in enumerate(after):
        left, right = prod(after[:axis]), prod(after[axis + 1 :])
        if left and right and not front % left and not behind % right:
            outer, inner = front // left, behind // right
            by_length = length == outer * rows * inner and (unknown is None or outer == inner == 1)
            if axis == unknown or by_length:
                found.append((inner, axis != unknown, outer, axis))
    if not found:
        return None
    inner, _, outer, axis = min(found)
    return axis, outer, inner


def named_by_number(x: Tensor, sizes: tuple[Any, ...]) -> tuple[tuple[int, ...], Shard] | None:
    """The shape and the placement of rows x after a reshape in which a size follows from their number, as in
    `x.view(B * T, C)` with B, T, C = x.shape; None if none does. RuntimeError if that size does not contain rows."""
    place, before = x.place, x.array.shape
    assert isinstance(place, Shard)
    rows = place.batch.known
    if place.group.has_all or rows is None or sizes.count(-1) > 1:
        return None  # one process has all rows
    front = prod(before[: place.axis]) * place.outer
    behind = prod(before[place.axis + 1 :]) * place.inner
    everything = place.batch.held == rows.total
    numbers = [i for i, n in enumerate(sizes) if isinstance(n, BatchInt) and (everything or n.everywhere != n.own)]
    for axis in numbers:
        merged, rest = divmod(sizes[axis].everywhere or 0, rows.total or 1)
        known = prod(n for i, n in enumerate(sizes) if i != axis and n != -1)
        after = [front * behind // (merged * known or 1) if n == -1 else n for n in sizes]
        after[axis] = merged * place.batch.held
        outer, inner = front // (prod(after[:axis]) or 1), behind // (prod(after[axis + 1 :]) or 1)
        fits = prod(after[:axis]) * outer == front and prod(after[axis + 1 :]) * inner == behind
        if fits and outer * inner == merged and not rest:
            return tuple(map(int, after)), place.batch.at(axis, outer, inner)
    if len(numbers) == 1 and sizes[numbers[0]].everywhere != sizes[numbers[0]].own:
        mixed(x, sizes)
    return None
