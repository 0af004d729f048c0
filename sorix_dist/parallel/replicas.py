"""The copies of a model on the ranks of one communicator: their part of the batch, and their gradients."""

from __future__ import annotations

import gc
import itertools
from abc import ABC, abstractmethod
from functools import lru_cache
from math import gcd
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np

from sorix_dist.comm import Comm, Window
from sorix_dist.core.batch import Batch
from sorix_dist.core.flat import Flat, leaf_of
from sorix_dist.core.graph import Node
from sorix_dist.core.tensor import Array, Rows, Tensor
from sorix_dist.parallel.board import board
from sorix_dist.parallel.reduce import reducer
from sorix_dist.utils.data.sampler import share

_of_comm: WeakKeyDictionary[Any, Replicas] = WeakKeyDictionary()


def replicas(comm: Comm) -> Replicas:
    """The replicas that work in `comm`: the same object for all models wrapped in it, so that one backward
    may reach several of them."""
    found = _of_comm.get(comm)
    if found is None:
        found = _of_comm[comm] = Replicas(comm)
    return found


class Replicas:
    """What all models wrapped in one communicator have in common: the meetings of their backwards, and `latest`,
    the rows of the last forward."""

    def __init__(self, comm: Comm) -> None:
        self.comm = comm
        self.board = board(comm)
        self.latest = Share(1, comm.size, ())
        self.numbers = itertools.count()
        # A model that nobody holds any more is left out; ranks may notice that at different times.
        self.members: WeakValueDictionary[int, Member] = WeakValueDictionary()
        self.windows: dict[int, tuple[Window, ...]] = {}

    def add(self, flat: Flat) -> None:
        """Takes over the gradients of a flat storage. Called by every rank, for the same parameters."""
        self._close_windows()
        number = next(self.numbers)
        member = self.members[number] = Member(self, flat)
        self.windows[number] = member.reducer.windows
        for parameter in flat.parameters:
            leaf_of(parameter).sync = member

    def _close_windows(self) -> None:
        """Gives back the shared memory of models that no rank has any more."""
        if len(self.windows) > len(self.members):
            gc.collect()
        gone = self.comm.gather_objects({number for number in self.windows if number not in self.members})
        for number in sorted(set.intersection(*gone)):
            for window in self.windows.pop(number):
                window.close()

    def note(self, rows: Rows | None, count: int) -> Batch:
        """Notes which rows of which global batch are being computed: `rows` if they are known,
        else `count` rows beside those of the other ranks, who are asked. Every rank must know, or none."""
        if rows is None:
            counts = self.comm.all_gather(np.array(count, np.int64)).tolist()
            start = sum(counts[: self.comm.rank])
            rows, proportions = Rows(start, start + count, sum(counts)), _proportions(tuple(counts))
        else:
            proportions = _even_proportions(rows.total, self.comm.size)
        self.latest = Share(rows.stop - rows.start, rows.total, proportions)
        return Batch(rows.start, rows.stop, rows.total, sum=self._sum)

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


class Share(NamedTuple):
    """The rows of this rank and of the global batch, and how the batch is shared out: the same for all ranks.

    The factor held / total makes the mean over this rank's rows its part of the mean over the global batch,
    and lets a term that is the same on every rank, such as a penalty on the weights, count once.
    """

    held: int
    total: int
    proportions: tuple[int, ...]


def _proportions(counts: tuple[int, ...]) -> tuple[int, ...]:
    """The ranks' numbers of rows in lowest terms: the same for (2, 1) rows and for their (4, 2) halves."""
    divisor = max(1, gcd(*counts))
    return tuple(count // divisor for count in counts)


@lru_cache(maxsize=64)
def _even_proportions(total: int, size: int) -> tuple[int, ...]:
    shares = [share(total, rank, size) for rank in range(size)]
    return _proportions(tuple(stop - start for start, stop in shares))


class _Synchronised(ABC):
    """Implements `core.graph.Sync` for what is computed from some `rows`."""

    replicas: Replicas

    @property
    @abstractmethod
    def rows(self) -> Share:
        """The rows that the factors are about."""

    def begin(self) -> float:
        for member in list(self.replicas.members.values()):
            member.reducer.begin()
        return self.rows.held / self.rows.total if self.rows.total else 0.0

    def mean_factor(self, denominator: float) -> float:
        summed = np.array([denominator])
        self.replicas.comm.all_reduce(summed).wait()
        return float(denominator / summed[0]) * self.sum_factor() if summed[0] else 0.0

    def sum_factor(self) -> float:
        return self.rows.total / self.rows.held if self.rows.held else 0.0

    def joined(self, other: Any) -> Any:
        if other.replicas is not self.replicas:
            raise RuntimeError(
                "one loss can't reach models that are wrapped in different communicators: wrap the second with "
                "comm=first.comm"
            )
        if not isinstance(self, Forward) or not isinstance(other, Forward):
            return self if isinstance(self, Forward) else other
        if self.rows.proportions != other.rows.proportions:
            raise RuntimeError(
                "one loss can't join results of batches that are shared out differently between the ranks "
                f"({self.rows.total} and {other.rows.total} rows, {self.rows.held} and {other.rows.held} of them "
                f"on rank {self.replicas.comm.rank}): call backward() for each of them, the gradients add up"
            )
        return self

    def end(self) -> None:
        self.replicas.end()

    def failed(self) -> None:
        for member in list(self.replicas.members.values()):
            member.reducer.failed()


class Member(_Synchronised):
    """One flat storage among the replicas: the `sync` of its leaves, which lives as long as they."""

    def __init__(self, replicas: Replicas, flat: Flat) -> None:
        self.replicas = replicas
        self.reducer = reducer(flat, replicas.comm)

    @property
    def rows(self) -> Share:
        return self.replicas.latest


class Forward(_Synchronised):
    """The `sync` of what one forward has computed: it remembers its rows, whatever is computed next."""

    def __init__(self, replicas: Replicas) -> None:
        self.replicas = replicas
        self._rows = replicas.latest

    @property
    def rows(self) -> Share:
        return self._rows

    def mark(self, result: Tensor) -> Tensor:
        """Makes a tensor that the forward computed a result of it."""
        if isinstance(result.origin, Node) and result.origin.sync is not None:
            result.origin.sync = result.origin.sync.joined(self)
        return result
