"""Collectives on tensors, arrays and numbers. Every rank makes the same calls in the same order."""

from __future__ import annotations

from numbers import Real
from typing import Any, TypeVar, cast

import numpy as np

from sorix_dist.comm import CollectiveMismatch, Comm
from sorix_dist.comm.protocol import Op
from sorix_dist.core import Tensor, as_tensor
from sorix_dist.core.arguments import one_of
from sorix_dist.core.capture import outside, uncaptured
from sorix_dist.core.ops.axes import parts_along
from sorix_dist.core.ops.collective import to_replicate
from sorix_dist.core.ops.indexing import take
from sorix_dist.core.placement import REPLICATE, SUM, Batch, Partial, Rows, Shard, Tally, tagged
from sorix_dist.core.tensor import array_of
from sorix_dist.parallel.groups import OfWorker
from sorix_dist.parallel.world import current_group, world

T = TypeVar("T")
_OF_NUMBERS: dict[str, Any] = {"sum": sum, "max": max, "min": min}


def all_reduce(x: T, op: Op = "sum") -> T:
    """The sum (or "max", "min") of x over all ranks, in place for a tensor or array; returns it.

    A Python number gives a new number; ranks may mix integers and floats.
    """
    if not isinstance(x, Tensor | np.ndarray):
        one_of("all_reduce: op", op, *_OF_NUMBERS)
        if not isinstance(x, Real | np.generic):
            raise TypeError(f"all_reduce: x must be a tensor, an array or a number, got {type(x).__name__}")
        if op == "sum" and getattr(x, "everywhere", None) is not None:  # a number that follows from the batch
            return cast(T, cast(Any, x).of_all())
        if op == "sum":
            current_group().warn_of_copy()
        return cast(T, _OF_NUMBERS[op](_uncaptured_world().gather_objects(x)))
    place = x.place if isinstance(x, Tensor) else None
    if op == "sum" and (place is None or (isinstance(place, Tally) and not place.known)):  # others refuse such a number
        current_group().warn_of_copy()
    if isinstance(x, Tensor):
        if isinstance(place, Tally):
            return cast(T, _sum_of_tally(x, place, op))
        if isinstance(x.place, Partial) and x.place.group.ordered and x.place.denominator == SUM:
            return x  # the sum is complete on every rank
        if isinstance(x.place, Partial):
            mean = x.place.denominator != SUM and not x.place.constants and not hasattr(x, "complete")
            if op == "sum" and mean and not x.place.group.single:
                x.place.group.warn(
                    "all_reduce of a mean over rows adds up the ranks' own means, whose mean is another number where "
                    "shards are uneven: sx.global_value(x) is the mean over the global batch [docs: own-numbers]"
                )
            x.array, x.place = np.array(x.visible), None  # the numbers that each rank shows
        elif x.place is REPLICATE and op == "sum":
            _refuse_global()
    _uncaptured_world().all_reduce(array_of(x), op)
    return x


def _uncaptured_world() -> Comm:
    outside("all_reduce can't be captured: call sx.global_value(x), or all_reduce after the step")
    return world()


def _refuse_global() -> None:
    if world().size > 1:
        raise RuntimeError(
            "all_reduce: x has a number for the global batch on every rank already, as a maximum over rows, a constant "
            f"and sx.replicated() are: a sum would count it {world().size} times. sx.global_value(x) gives it in "
            "both modes, reproducible or not; or sum len(x) [docs: own-numbers]"
        )


def _sum_of_tally(x: Tensor, place: Tally, op: Op) -> Tensor:
    """The sum over all ranks of counts that a program keeps by hand, if it is what one process counts."""
    if not place.known:
        _uncaptured_world().all_reduce(x.array, op)
        x.place = Tally(None, True)
    elif op == "sum":
        if place.own is None:
            _refuse_global()
        total = np.array(place.own, order="C")
        world().all_reduce(total)
        wrong = np.array([not np.allclose(total, x.array, rtol=1e-5, equal_nan=True)])
        if world().all_gather(wrong).any():  # a constant or len() is in it, or it is no sum
            _refuse_global()
        x.place = Tally(None, True)
    return x


def average(x: Tensor) -> None:
    """The mean of a tensor over all ranks, in place; what is the same on every rank is its own mean."""
    if x.place is not REPLICATE and not (isinstance(x.place, Tally) and x.place.known):
        all_reduce(x)
        x.array /= world().size


@uncaptured
def broadcast(x: T, root: int = 0) -> T:
    """Sends rank `root`'s values to all ranks, in place for a tensor or array; returns them."""
    if not isinstance(x, Tensor | np.ndarray):
        return cast(T, world().broadcast_object(x, root))
    array = array_of(x)
    world().broadcast(array, root)
    return x


def all_gather(x: Any) -> list[Any]:
    """Every rank's x, as a list in rank order.

    Tensors may have another number of rows on each rank, along the axis of the batch or else the first. The result is
    differentiable: a rank's gradient is that of all ranks' results with respect to its x. Arrays must have the same
    shape on all ranks. ValueError if the batch axis is merged with others.
    """
    outside("all_gather can't be captured: sx.global_value(x) has the rows of all ranks, or gather after the step")
    if isinstance(x, np.ndarray):
        try:
            return list(world().all_gather(np.ascontiguousarray(x)))
        except CollectiveMismatch as error:
            error.add_note("all_gather: a tensor, as sx.tensor(x), or a list may have another length on each rank")
            raise
    if not isinstance(x, Tensor):
        return gather_objects(x)
    if isinstance(x.place, Tally) and x.place.own is not None:
        x = Tensor.of(x.place.own)
    group, place = current_group(), x.place
    if isinstance(place, Partial) or not x.ndim:
        return [Tensor(part) for part in world().all_gather(np.array(x.visible))]
    axis = place.axis if isinstance(place, Shard) else 0
    counts = [int(count) for count in world().all_gather(np.array([len(np.moveaxis(x.array, axis, 0))]))[:, 0]]
    if not isinstance(place, Shard):
        start = sum(counts[: world().rank])
        place = Batch(Rows(start, start + counts[world().rank], sum(counts)), group).at(0)
        x = tagged(Tensor.of(x.array, x.origin), place)
    if place.outer != 1 or place.inner != 1:
        raise ValueError("all_gather: the batch must be an axis of its own, got one that is merged with others")
    whole = to_replicate(x)
    return [take(whole, index=part) for part in parts_along(axis, counts)]


@uncaptured
def gather_objects(x: Any) -> list[Any]:
    """Every rank's x, which is pickled, as a list in rank order."""
    with current_group().warns_of_sums():
        return world().gather_objects(x)


def global_value(x: Any) -> Tensor:
    """The value of a tensor in the global batch, the same on every rank: the rows of all ranks, or the mean or sum
    over all of them. It is differentiable, and a call of all ranks."""
    x = as_tensor(x)
    if isinstance(x.place, Shard | Partial) and isinstance(x.place.group, OfWorker):
        raise RuntimeError(
            "global_value: in the loop over workers of LocalSGD there is only the value of one worker, because no "
            "message is sent between two sums: add it to an sx.metrics.Mean, which sums at compute()"
        )
    return to_replicate(x)


def global_rows(x: Any) -> int:
    """The number of rows of the global batch. For a batch that no loader made it is a call of all ranks."""
    place = getattr(x, "place", None)
    if isinstance(place, Shard):
        return place.total
    if place is REPLICATE:
        return len(x)
    return int(current_group().counts(len(x))[1])


def replicated(x: Any) -> Tensor:
    """Marks x as the same on every rank, not rows of a batch; so is what is computed from it alone."""
    x = as_tensor(x)
    if isinstance(x.place, Shard | Partial) and not x.place.group.single:
        raise RuntimeError(
            "replicated: x follows from the rows of a batch, so each rank has others, or a part of a sum: "
            "sx.global_value(x) is the same on every rank"
        )
    return tagged(Tensor.of(x.array, x.origin), REPLICATE)


@uncaptured
def barrier() -> None:
    """Returns when every rank has called it."""
    world().barrier()
