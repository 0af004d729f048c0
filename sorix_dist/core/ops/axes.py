"""Dimensions that users name: checked, counted from 0; and what operations along them do with rows of a batch."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from sorix_dist.core.placement import Shard
from sorix_dist.core.rules import Answer, Apply, Inputs, Options, Rule, gathers, linear_place, whole
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
