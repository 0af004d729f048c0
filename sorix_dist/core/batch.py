"""Which rows of a larger batch an operation sees, for those whose value depends on the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any, NamedTuple

from sorix_dist.core.graph import Sync
from sorix_dist.core.op import recording
from sorix_dist.core.tensor import Array, Tensor


def _itself(array: Array) -> Array:
    return array


class Batch(NamedTuple):
    """Rows `start` to `stop` of a batch of `total` rows, and how to add an array up over all of the batch.

    sum: takes an array that was summed over these rows, in place, to its sum over all rows of the batch;
        every holder of rows calls it the same number of times, also with no rows.
    """

    start: int
    stop: int
    total: int
    shard: int = 0
    sum: Callable[[Array], Array] = _itself


def divisor(tensor: Any, count: int) -> float:
    """What the gradient of a mean over `count` elements, as many of every row of `tensor`, is divided by: their
    number in one process; see `Sync.divisor`. It asks nobody."""
    sync = _sync(tensor)
    return count if sync is None else sync.divisor(count)


def mean_weight(tensor: Any, parts: Array, denominator: float) -> float:
    """The weight of each element in the gradient of a mean over a `denominator`, the sum of `parts` (weights or
    labels that count, in the order of the rows), which is not the same for every row: 1 / denominator in one
    process, 0 if that is 0; see `Sync.mean_weight`. Only a recorded mean asks the others."""
    sync = _sync(tensor)
    if sync is not None:
        return sync.mean_weight(parts)
    return 1 / denominator if denominator else 0.0


def sum_weight(tensor: Any) -> float:
    """The weight of each element in the gradient of a sum over these rows: 1 in one process; see
    `Sync.sum_weight`. It asks nobody."""
    sync = _sync(tensor)
    return 1.0 if sync is None else sync.sum_weight()


def reduced(result: Tensor) -> Tensor:
    """`result`, the reduction of rows by one of the weights above."""
    origin = result.origin
    if origin is not None and origin.sync is not None:
        origin.sync = origin.sync.reduced()
    return result


def shared_out(tensor: Any) -> bool:
    """Whether a tensor holds rows whose batch may be larger, so that a reduction of it has weights of its own."""
    return _sync(tensor) is not None


def _sync(tensor: Any) -> Sync | None:
    origin = tensor.origin if isinstance(tensor, Tensor) else None
    return None if origin is None or not recording.get() else origin.sync


_installed: ContextVar[Batch | None] = ContextVar("batch", default=None)


def rows(count: int) -> Batch:
    """The batch that `count` rows, seen by an operation now, belong to: the installed one, or just these rows."""
    return _installed.get() or Batch(0, count, count)


class installed:  # noqa: N801 (a function to its users; a generator would take three times as long)
    """Operations inside the block see rows of `batch`."""

    __slots__ = ("_batch", "_token")

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def __enter__(self) -> None:
        self._token: Token[Batch | None] = _installed.set(self._batch)

    def __exit__(self, *exception: object) -> None:
        _installed.reset(self._token)
