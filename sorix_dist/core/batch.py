"""Which rows of a larger batch an operation sees, for those whose value depends on the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np

from sorix_dist.core.op import recording
from sorix_dist.core.tensor import Tensor

Array = np.ndarray[Any, Any]


def _itself(array: Array) -> Array:
    return array


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows `start` to `stop` of a batch of `total` rows, and how to add an array up over all of the batch.

    sum: takes an array that was summed over these rows, in place, to its sum over all rows of the batch;
        every holder of rows calls it the same number of times, also with no rows.
    """

    start: int
    stop: int
    total: int
    shard: int = 0
    sum: Callable[[Array], Array] = _itself


def mean_factor(tensor: Tensor, denominator: float) -> float:
    """The factor on the gradient of a mean over `denominator` elements (weights, tokens, labels that count)
    instead of over the rows: 1 in one process; see `Sync.mean_factor`. Only a recorded mean asks the others.
    """
    sync = None if tensor.origin is None or not recording.get() else tensor.origin.sync
    return 1.0 if sync is None else sync.mean_factor(float(denominator))


def sum_factor(tensor: Tensor) -> float:
    """The factor on the gradient of a sum over these rows that makes it a part of the sum over all rows of the
    batch: 1 in one process; see `Sync.sum_factor`. It asks nobody."""
    sync = None if tensor.origin is None or not recording.get() else tensor.origin.sync
    return 1.0 if sync is None else sync.sum_factor()


_installed: ContextVar[Batch | None] = ContextVar("batch", default=None)


def rows(count: int) -> Batch:
    """The batch that `count` rows, seen by an operation now, belong to: the installed one, or just these rows."""
    return _installed.get() or Batch(0, count, count)


@contextmanager
def installed(batch: Batch) -> Iterator[None]:
    """Operations inside the block see rows of `batch`."""
    token = _installed.set(batch)
    try:
        yield
    finally:
        _installed.reset(token)
