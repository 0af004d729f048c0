"""The copies of a model on the ranks of one communicator: their part of the batch, and their gradients."""

from __future__ import annotations

import itertools
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np

from sorix_dist.comm import Comm
from sorix_dist.core.batch import Batch
from sorix_dist.core.flat import Flat, leaf_of
from sorix_dist.core.tensor import Array
from sorix_dist.parallel.board import board
from sorix_dist.parallel.reduce import reducer

_of_comm: WeakKeyDictionary[Any, Replicas] = WeakKeyDictionary()


def replicas(comm: Comm) -> Replicas:
    """The replicas that work in `comm`: the same object for all models wrapped in it, so that one backward
    may reach several of them."""
    found = _of_comm.get(comm)
    if found is None:
        found = _of_comm[comm] = Replicas(comm)
    return found


class Replicas:
    """What all models wrapped in one communicator have in common.

    rows, total: the rows of this rank and of the global batch, as the last forward noted them. The factor
    rows / total makes the mean over this rank's rows its part of the mean over the global batch, and lets a
    term that is the same on every rank, such as a penalty on the weights, count once.
    """

    def __init__(self, comm: Comm) -> None:
        self.comm = comm
        self.rows, self.total = 1, comm.size
        self.board = board(comm)
        self.numbers = itertools.count()
        # A model that nobody holds any more is left out; ranks may notice that at different times.
        self.members: WeakValueDictionary[int, Member] = WeakValueDictionary()

    def add(self, flat: Flat) -> None:
        """Takes over the gradients of a flat storage. Called by every rank, for the same parameters."""
        number = next(self.numbers)
        member = self.members[number] = Member(self, flat)
        for parameter in flat.parameters:
            leaf_of(parameter).sync = member

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

    def end(self) -> None:
        """Sums the gradients of all models that the backward of any rank has reached."""
        members = dict(self.members)
        reached = [number for number, member in members.items() if member.reducer.prepare()]
        numbers = self.board.meet(reached)
        gone = [number for number in numbers if number not in members]
        if gone:
            raise RuntimeError(
                f"a backward of another rank reached the wrapped model number {gone[0]}, which rank "
                f"{self.comm.rank} does not have any more: every rank must train the same models"
            )
        for number in numbers:
            members[number].reducer.sum()
        self.board.part()
        for number in numbers:
            members[number].reducer.hand_over()


class Member:
    """One flat storage among the replicas: implements `core.graph.Sync` for its leaves, and lives as long as they."""

    def __init__(self, replicas: Replicas, flat: Flat) -> None:
        self.replicas = replicas
        self.reducer = reducer(flat, replicas.comm)

    def begin(self) -> float:
        for member in list(self.replicas.members.values()):
            member.reducer.begin()
        return self.replicas.rows / self.replicas.total if self.replicas.total else 0.0

    def mean_factor(self, denominator: float) -> float:
        summed = np.array([denominator])
        self.replicas.comm.all_reduce(summed).wait()
        return float(denominator / summed[0]) * self.sum_factor() if summed[0] else 0.0

    def sum_factor(self) -> float:
        return self.replicas.total / self.replicas.rows if self.replicas.rows else 0.0

    def end(self) -> None:
        self.replicas.end()

    def failed(self) -> None:
        return None
