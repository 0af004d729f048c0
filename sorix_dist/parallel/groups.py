"""Sums and gathers over ranks: the implementations of `core.placement.Group`; and the rows of a virtual worker."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from sorix_dist.comm import Comm
from sorix_dist.core.op import use_shards
from sorix_dist.core.placement import REPLICATE, Array, Batch, Group, Rows, Shard, current_group, tagged
from sorix_dist.core.tensor import Tensor
from sorix_dist.parallel.virtual_shards import VirtualShards
from sorix_dist.utils.data.nested import entries, map_arrays
from sorix_dist.watchdog.call_site import call_site

Compared = tuple[str, float, Any, Any, int]
_MOST_COMPARED = 256  # numbers between two backwards


class Ranks(Group):
    """The ranks of a communicator: a sum over rows is the all-reduce of every rank's partial sum."""

    def __init__(self, comm: Comm) -> None:
        self.comm = comm
        self.rank, self.size = comm.rank, comm.size
        self.parts = comm.size
        self.single = comm.size == 1
        self._warned: set[tuple[str, str]] = set()
        self.expected: list[float] = []
        self.compared: list[Compared] = []  # see `compare`
        self._copied = ""

    def expect(self, number: float) -> None:
        self.expected.append(number)

    def compare(self, number: float, shape: Any = (), lengths: Any = (), held: int = 0) -> None:
        if len(self.compared) < _MOST_COMPARED:
            self.compared.append((call_site().where, number, shape, lengths, held))

    def reduce(self, array: Array, what: str) -> Array:
        total = np.array(array, order="C")
        self.comm.all_reduce(total)
        return total

    def counts(self, held: int) -> tuple[int, int]:
        everywhere = self.comm.all_gather(np.array([held], np.int64))[:, 0].tolist()
        return sum(everywhere[: self.comm.rank]), sum(everywhere)

    def note_copy(self) -> None:
        self._copied = call_site().where

    def warn_of_copy(self) -> None:
        """Warns of a sum over ranks in which there may be a plain number of the global batch."""
        if self._copied and not self.single:
            self.warn(
                f"a number of the global batch has become a plain number in {self._copied}, as float(x.shape[0]) does: "
                f"in a sum over ranks it is counted {self.size} times. Sum x.shape[0] as it is, or len(x) "
                "[docs: own-numbers]"
            )
        self._copied = ""

    @contextmanager
    def warns_of_sums(self) -> Iterator[None]:
        """Warns if a sum over rows that is complete on every rank, as item() gives it in reproducible mode, is pickled
        for other ranks."""
        before, self._copied = self._copied, ""
        yield
        self.warn_of_copy()
        self._copied = before

    def warn(self, message: str) -> None:
        where = call_site().where
        key = where, message.split(" ", 1)[0]
        if self.comm.rank == 0 and key not in self._warned:
            self._warned.add(key)
            file, _, line = where.rpartition(":")
            warnings.warn_explicit(message, RuntimeWarning, file, int(line) if line.isdigit() else 0)

    def __reduce__(self) -> Any:
        return current_group, ()  # in another process these are others


class InOrder(Ranks):
    """Reproducible mode, outside of a forward: rows are sharded, and every rank computes the whole sum over rows, shard
    by shard in the order of the tree. What follows from sums is replicated."""

    ordered = True

    def __init__(self, comm: Comm, shards: VirtualShards) -> None:
        super().__init__(comm)
        self.parts = 1
        self.shards, self.virtual_shards = shards, shards.count
        self.within = [OfShard(shards.count, self.warn) for _ in shards.owned]
        use_shards()

    def reduce(self, array: Array, what: str) -> Array:
        return np.array(array)

    def assemble(self, array: Array) -> Array:
        self.comm.all_reduce(array)
        return array

    def add_up(self, sums: Callable[[Rows], Array], rows: Rows) -> Array:
        bounds = [self.shards.rows(shard, rows.total) for shard in self.shards.owned]
        parts = np.array([sums(Rows(start, stop, rows.total)) for start, stop in bounds], order="C")
        return np.asarray(self.shards.sum(parts))


class OfShard(Group):
    """Reproducible mode, inside of a forward: one virtual shard of a batch. Sums over all shards follow when the
    forward has computed every shard."""

    def __init__(self, count: int, warn: Callable[[str], None]) -> None:
        self.parts = count
        self.single = count == 1
        self.isolated = not self.single
        self._warn = warn

    def warn(self, message: str) -> None:
        self._warn(message)

    def reduce(self, array: Array, what: str) -> Array:
        if self.single:
            return np.array(array)
        raise self._refusal(what)

    def assemble(self, array: Array) -> Array:
        return array if self.single else self.reduce(array, "a gather")

    def counts(self, held: int) -> tuple[int, int]:
        if self.single:
            return 0, held
        raise self._refusal("the number of selected rows")

    def _refusal(self, what: str) -> RuntimeError:
        return RuntimeError(
            f"reproducible mode: {what or 'this operation'} needs the rows of the whole batch, but the forward of a "
            "model sees one virtual shard at a time: return the operands from forward, and compute it outside"
        )


def group_of(comm: Comm, count: int | None) -> Ranks:
    """The group of a communicator, made at the first call and then cached; count: of virtual shards, or None."""
    found: Ranks | None = comm.cache.get(Ranks)
    if found is None:
        found = comm.cache[Ranks] = Ranks(comm) if count is None else InOrder(comm, VirtualShards(comm, count))
    return found


class OfWorker(Group):
    """Local SGD: the rows of one virtual worker, which trains on them as a single process does."""


def check_batch(name: str, batch: tuple[Any, ...]) -> None:
    """RuntimeError for an argument that can't be cut into the rows of workers, and is not the same on every rank."""
    first = None
    for x in entries(batch):
        place = x.place if isinstance(x, Tensor) else None
        if place is REPLICATE:
            continue
        what = "is not rows of a loader's batch"
        if isinstance(place, Shard):
            first = first or place.batch
            what = "requires a gradient" if x.origin is not None else ""
            if place.batch.known is None or place.batch.known[:3] != first.known[:3]:  # type: ignore[index]
                what = "is not all rows of one batch"
        if what:
            raise RuntimeError(
                f"{name}: an argument of shape {tuple(x.shape)} {what}: put it into the data set, compute it inside of "
                "the loop, or pass sx.replicated(x) if it is the same on every rank"
            )


def rows_of_worker(batch: tuple[Any, ...], start: int, stop: int, group: Any) -> tuple[Any, ...]:
    """Rows start to stop - 1 of this rank's rows, as the batch of one worker."""
    own = Batch(Rows(0, stop - start, stop - start), group)

    def cut(x: Tensor) -> Tensor:
        place = x.place
        if not isinstance(place, Shard):
            return x
        held = place.batch.held
        rows = x.array if stop - start == held else place.part(x.array, start, stop, held)
        return tagged(Tensor.of(rows, None), own.at(place.axis, place.outer, place.inner))

    result: tuple[Any, ...] = map_arrays(batch, cut)
    return result
