"""Pretended ranks: threads of one process that hold the rows of a batch and meet in the collectives of a group.

    outcomes = run(function, [6, 0, 5])       # function(rank), on three ranks with these numbers of rows
    x = rank.tensor(array, "0")               # this rank's rows of an array, along its axis 0
    x = rank.tensor(array, "partial")         # one of the terms whose sum over the ranks is the array

Ranks compare what they do before data moves. A rank that raises, or is done, ends the others' waiting: they raise
`Diverged`, which is always a mistake of what is tested, while an error that all ranks raise by themselves is a refusal.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.op import use_shards
from sorix_dist.core.ops import collective
from sorix_dist.core.placement import Batch, Group, Partial, Rows, Shard, tagged

Array = np.ndarray[Any, Any]
PATIENCE = 60  # seconds; ends what a rank that computes without an end would hold up


class Diverged(AssertionError):
    """The ranks came to different collectives, or to none."""


class Meeting:
    """Where the ranks exchange what they bring to a collective."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size)
        self._brought: list[Any] = [None] * size

    def exchange(self, rank: int, what: tuple[Any, ...], value: Any) -> list[Any]:
        """What every rank brings to the operation `what`; Diverged if they bring it to different ones."""
        self._brought[rank] = (what, value)
        self._barrier.wait(PATIENCE)
        brought = list(self._brought)
        self._barrier.wait(PATIENCE)  # nobody brings the next one before all have read this one
        if any(other != what for other, _ in brought):
            raise Diverged("; ".join(f"rank {r}: {' '.join(map(str, other))}" for r, (other, _) in enumerate(brought)))
        return [value for _, value in brought]


class Rank(Group):
    """One of the ranks, with a part of every sum."""

    def __init__(self, number: int, counts: Sequence[int], meeting: Meeting) -> None:
        self.number, self.meeting = number, meeting
        self.rows = Rows(sum(counts[:number]), sum(counts[: number + 1]), sum(counts))
        self.parts = len(counts)
        self.single = len(counts) == 1
        self.batch = Batch(self.rows, self)
        self.said: list[str] = []

    def _total(self, name: str, array: Array, what: str) -> Array:
        values = self.meeting.exchange(self.number, (name, what, array.shape, str(array.dtype)), np.array(array))
        return np.array(sum(values[1:], values[0]))

    def reduce(self, array: Array, what: str) -> Array:
        return self._total("reduce", array, what)

    def counts(self, held: int) -> tuple[int, int]:
        everywhere = self.meeting.exchange(self.number, ("counts",), held)
        return sum(everywhere[: self.number]), sum(everywhere)

    def warn(self, message: str) -> None:
        self.said.append(message)

    def tensor(self, array: Array, placement: str, requires_grad: bool = True) -> Tensor:
        """This rank's part of a global array. placement: "" for all of it, "partial", or "axis" or "axis outer inner"
        of its rows."""
        if not placement:
            return Tensor(np.array(array), requires_grad=requires_grad)
        if placement == "partial":
            weights = np.random.default_rng(5).uniform(-1, 1, self.parts)
            weights[-1] = 1 - weights[:-1].sum()
            part = array if self.parts == 1 else array * weights[self.number]
            place: Any = Partial(self, None, 1.0, 0)
        else:
            place = self.batch.at(*map(int, placement.split()))
            part = place.part(array, self.rows.start, self.rows.stop, self.rows.total)
        return tagged(Tensor(np.array(part), requires_grad=requires_grad), place)

    def beside(self, array: Array, x: Tensor) -> Tensor:
        """What a global array is beside a tensor: rows beside rows, all of it elsewhere."""
        place = x.place
        if not isinstance(place, Shard):
            return Tensor(np.array(array))
        rows = place.rows
        return tagged(Tensor(np.array(place.part(array, rows.start, rows.stop, rows.total))), place)

    def whole(self, x: Tensor) -> Array:
        """The global value of a tensor, by collectives that every rank walks."""
        return np.array(collective.to_replicate(x).array)


class OrderedRank(Rank):
    """One of the ranks in reproducible mode, outside of a forward: sums over rows go by virtual shards, in order."""

    ordered = True

    def __init__(self, number: int, counts: Sequence[int], meeting: Meeting, shards: Sequence[int]) -> None:
        super().__init__(number, counts, meeting)
        self.parts = 1
        ends = np.cumsum([0, *shards]).tolist()
        bounds = list(itertools.pairwise(ends))
        # An empty shard may lie on the border of two ranks: it belongs to the first.
        owners = [next(r for r in range(len(counts)) if b <= sum(counts[: r + 1])) for _, b in bounds]
        self.bounds = [bound for bound, owner in zip(bounds, owners, strict=True) if owner == number]
        use_shards()

    def reduce(self, array: Array, what: str) -> Array:
        return np.array(array)

    def assemble(self, array: Array) -> Array:
        return self._total("assemble", array, "")

    def add_up(self, sums: Callable[[Rows], Array], rows: Rows) -> Array:
        parts = [np.asarray(sums(Rows(start, stop, rows.total))) for start, stop in self.bounds]
        shape = parts[0].shape if parts else None
        everywhere = self.meeting.exchange(self.number, ("add_up",), (shape, parts))
        values = [part for _, brought in everywhere for part in brought]
        return np.array(sum(values[1:], values[0]))


def run(function: Callable[[Any], Any], counts: Sequence[int], shards: Sequence[int] | None = None) -> list[Any]:
    """What the function gives on each of the ranks, or the error that it raises there.

    counts: the rows of each rank; shards: those of each virtual shard, in reproducible mode, of which a rank has whole
    ones.
    """
    meeting = Meeting(len(counts))
    outcomes: list[Any] = [None] * len(counts)

    def of_rank(number: int) -> None:
        rank = Rank(number, counts, meeting) if shards is None else OrderedRank(number, counts, meeting, shards)
        try:
            outcomes[number] = function(rank)
        except Diverged as error:
            outcomes[number] = error
            return  # the others have seen it too
        except Exception as error:  # noqa: BLE001 (it is what came of this rank)
            outcomes[number] = error
        try:
            meeting.exchange(number, ("the end",), None)
        except Diverged as error:
            error.__cause__ = next((o for o in outcomes if isinstance(o, Exception)), None)
            outcomes[number] = error

    threads = [threading.Thread(target=of_rank, args=(number,)) for number in range(1, len(counts))]
    for thread in threads:
        thread.start()
    of_rank(0)
    for thread in threads:
        thread.join()
    return outcomes


def agreed(outcomes: list[Any]) -> list[Any] | None:
    """The results of the ranks, or None if all of them refused; AssertionError if only some did or one waited."""
    failed = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    for error in failed:
        if isinstance(error, Diverged) or not isinstance(error, RuntimeError | ValueError):
            raise error
    assert len(failed) in (0, len(outcomes)), f"some ranks raise, others don't: {outcomes}"
    return None if failed else outcomes
