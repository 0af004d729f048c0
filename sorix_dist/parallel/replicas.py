"""The copies of a model on the ranks of one communicator: their part of the batch, and their gradients."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from sorix_dist.comm import Comm
from sorix_dist.core.batch import Batch
from sorix_dist.core.flat import Flat, leaf_of
from sorix_dist.core.tensor import Array
from sorix_dist.parallel.reduce import Reducer, reducer

_of_comm: WeakKeyDictionary[Any, Replicas] = WeakKeyDictionary()


def replicas(comm: Comm) -> Replicas:
    """The replicas that work in `comm`: the same object for all models wrapped in it, so that one backward
    may reach several of them."""
    found = _of_comm.get(comm)
    if found is None:
        found = _of_comm[comm] = Replicas(comm)
    return found


class Replicas:
    """Implements `core.graph.Sync`: a backward's local gradients, scaled by the share of the rows, are summed.

    rows, total: the rows of this rank and of the global batch, as the last forward noted them. The factor
    rows / total makes the mean over this rank's rows its part of the mean over the global batch, and lets a
    term that is the same on every rank, such as a penalty on the weights, count once.
    """

    def __init__(self, comm: Comm) -> None:
        self.comm = comm
        self.reducers: list[tuple[Flat, Reducer]] = []
        self.rows, self.total = 1, comm.size

    def add(self, flat: Flat) -> None:
        """Takes over the gradients of a flat storage. Called by every rank, for the same parameters."""
        self.reducers.append((flat, reducer(flat, self.comm)))
        for parameter in flat.parameters:
            leaf_of(parameter).sync = self

    def note(self, rows: tuple[int, int, int] | None, count: int) -> Batch:
        """Notes which rows of which global batch are being computed: `rows` = (start, stop, total) if it is known,
        else `count` rows beside those of the other ranks, who are asked. Every rank must know, or none."""
        if rows is None:
            counts = self.comm.all_gather(np.array(count, np.int64))
            start = int(counts[: self.comm.rank].sum())
            rows = (start, start + count, int(counts.sum()))
        start, stop, total = rows
        self.rows, self.total = stop - start, total
        return Batch(start, stop, total, sum=self._sum)

    def _sum(self, array: Array) -> Array:
        self.comm.all_reduce(array).wait()
        return array

    def mean_factor(self, denominator: float) -> float:
        summed = np.array([denominator])
        self.comm.all_reduce(summed).wait()
        if not self.rows or not summed[0]:
            return 0.0
        return float(denominator / summed[0] * (self.total / self.rows))

    def sum_factor(self) -> float:
        return self.total / self.rows if self.rows else 0.0

    def begin(self) -> float:
        for _, one in self.reducers:
            one.begin()
        return self.rows / self.total if self.total else 0.0

    def end(self) -> None:
        for _, one in self.reducers:
            one.end()

    def failed(self) -> None:
        return None
