"""The communicator over MPI."""

from __future__ import annotations

import itertools
import math
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from sorix_dist.comm import reduction, ring, runtime, validation
from sorix_dist.comm.protocol import Array, Comm, Exchange, Op, Pieces, SharedMemoryFull, Started, Window, Wire
from sorix_dist.comm.ring import RingExchange
from sorix_dist.comm.shared_memory import (
    CACHE_LINE,
    SHARED_MEMORY,
    SharedWindow,
    SpinBarrier,
    block_size,
    check_free,
    cut,
    deferred_free,
    free_bytes,
    free_unused,
    locate,
)
from sorix_dist.comm.waiting import first_of, message_sequence, under_way, wait_patiently
from sorix_dist.watchdog import report, watch

if TYPE_CHECKING:
    from mpi4py import MPI

PIECE = 2 << 20
"""Bytes per message of a large array. MPI's temporaries for larger ones cost page faults: 64 MB go 3.5 times
faster in such pieces."""

FIRST_TAG = 1 << 14
"""Of pieces. Every MPI has tags below twice this number, so 8,192 exchanges of pieces can be under way at once."""

SHORT = 64 << 10  # bytes of an array up to which MPI's own collectives are as good between hosts


class MpiComm:
    """The ranks of an MPI communicator, which it duplicates: COMM_WORLD if None is given."""

    def __init__(self, communicator: MPI.Intracomm | None = None) -> None:
        mpi = runtime.start_mpi()
        if communicator is None:
            communicator = mpi.COMM_WORLD
        if not isinstance(communicator, mpi.Intracomm) or communicator == mpi.COMM_NULL:
            raise TypeError(
                "MpiComm: communicator must be an mpi4py intra-communicator that is not COMM_NULL, "
                f"got {type(communicator).__name__} {communicator!r}"
            )
        self._mpi: Any = mpi
        with watch.wrapping(communicator.size):
            self._set_up(communicator)

    def _set_up(self, communicator: MPI.Intracomm) -> None:
        free_unused(communicator)
        self._comm: Any = communicator.Dup()
        self.rank = self._comm.rank
        self.size = self._comm.size
        self._local = self._comm.Split_type(self._mpi.COMM_TYPE_SHARED, key=self.rank)
        host_of = self._comm.allgather(self._local.bcast(self.rank))
        self.host, self.hosts, self.local_rank, self.local_size = locate(host_of, self.rank)
        self.cache: dict[Any, Any] = {}
        self._number = self._comm.bcast(secrets.randbits(62))
        self._windows = itertools.count(1)
        owned = [self._comm, self._local]
        self._is_ring = self.size == self.hosts > 1
        self._slices = min(host_of.count(first) for first in host_of)  # of a sum over several hosts: see `_sum_between`
        self._peers: MpiComm | None = None
        if self.hosts > 1:
            self._point_to_point = self._comm.Dup()
            owned.append(self._point_to_point)
            self._tags = itertools.count(1)  # of rings
            self._pairs_of_tags = itertools.cycle(range(FIRST_TAG, 2 * FIRST_TAG, 2))  # of pieces
        if self._is_ring:
            self._sums = self._ring_exchange(None)

        def free() -> None:
            for each in owned:
                each.Free()

        deferred_free(self, (self._number, 0), self.size, free)

    def all_reduce(self, array: Array, op: Op = "sum") -> None:
        validation.check_array("all_reduce", array, written=True)
        validation.check_op("all_reduce", op)
        operation = {"sum": self._mpi.SUM, "max": self._mpi.MAX, "min": self._mpi.MIN}[op]
        flat = array.reshape(-1)
        if flat.dtype == np.bool_:
            # MPI knows no sum, max or min of booleans; of the bytes 0 and 1, or is the maximum.
            flat = flat.view(np.uint8)
            operation = self._mpi.MIN if op == "min" else self._mpi.MAX
        rounds = flat.dtype == np.float16 and self.size > 2  # the ring would round at every rank
        if operation == self._mpi.SUM and self._is_far(flat) and not rounds:
            self._sum_between(flat)
            return
        for piece in _pieces(flat):
            if piece.dtype == np.float16:
                wide = piece.astype(np.float32)
                self._reduce_in_place(wide, operation)
                with np.errstate(over="ignore"):
                    piece[...] = wide
            else:
                self._reduce_in_place(piece, operation)

    def _sum_between(self, flat: Array) -> None:
        """The sum over several hosts: each of the first ranks of a host, as many as every host has, sums a slice over
        its host, and then over all hosts in a ring."""
        if self._is_ring:
            self._sums.sum(flat, flat)
            return
        if self._peers is None:  # all ranks are here for the first time
            part = self._comm.Split(min(self.local_rank, self._slices), self.rank)
            self._peers = MpiComm(part)
            part.Free()
        step = -(-flat.size // self._slices)
        slices = [flat[at : at + step] for at in range(0, flat.size, step)]
        for owner, part in enumerate(slices):
            for piece in _pieces(part):
                own = self.local_rank == owner
                self._local.Reduce(self._mpi.IN_PLACE if own else piece, piece if own else None, root=owner)
        if self.local_rank < len(slices):
            self._peers._sum_between(slices[self.local_rank])
        for owner, part in enumerate(slices):
            for piece in _pieces(part):
                self._local.Bcast(piece, owner)

    def _reduce_in_place(self, array: Array, operation: Any) -> None:
        if self._is_short_and_far(array):
            wait_patiently(self._comm.Iallreduce(self._mpi.IN_PLACE, array, operation))
        else:
            self._comm.Allreduce(self._mpi.IN_PLACE, array, operation)

    def all_gather(self, array: Array, meanwhile: Callable[[], None] | None = None) -> Array:
        validation.check_array("all_gather", array, written=False)
        result = np.empty((self.size, *array.shape), array.dtype)
        own, rows = array.reshape(-1).view(np.uint8), _bytes(result)
        if self._is_short_and_far(array) or (meanwhile is not None and self.hosts > 1):
            wait_patiently(self._comm.Iallgather(own, rows), meanwhile)
        elif self._is_far(array):
            self._swap([own] * self.size, [*rows])
        else:
            start = 0
            for piece in _pieces(own):
                gathered = np.empty((self.size, piece.size), np.uint8)
                self._comm.Allgather(piece, gathered)
                rows[:, start : start + piece.size] = gathered
                start += piece.size
        return result

    def all_to_all(self, array: Array) -> Array:
        validation.check_one_each("all_to_all", array, self.size)
        result = np.empty(array.shape, array.dtype)
        sent, received = _bytes(array), _bytes(result)
        if self._is_far(array):
            self._swap([*sent], [*received])
            return result
        step = max(1, PIECE // self.size)
        for start in range(0, sent.shape[1], step):
            piece = np.ascontiguousarray(sent[:, start : start + step])
            arrived = np.empty_like(piece)
            self._comm.Alltoall(piece, arrived)
            received[:, start : start + step] = arrived
        return result

    def _swap(self, sent: Sequence[Array], received: Sequence[Array]) -> None:
        """Sends each rank its bytes and receives its own, in messages to all ranks in turn."""
        with under_way() as requests:
            for start in range(0, sent[0].size, ring.PIECE):
                piece = slice(start, start + ring.PIECE)
                self._start([each[piece] for each in sent], [each[piece] for each in received], requests, tag=0)
                for request in first_of(requests, 2 * ring.UNDER_WAY):
                    wait_patiently(request)
            for request in first_of(requests, 0):
                wait_patiently(request)

    def start_pieces(self, pieces: Pieces) -> Started:
        if self.hosts == 1:
            return reduction.one_by_one(self, pieces)
        return message_sequence(self._exchange(pieces, next(self._pairs_of_tags)))

    def _exchange(self, pieces: Pieces, tag: int) -> Iterator[Any]:
        """The steps of `start_pieces`, with two tags of its own, because other calls may come in between."""
        # At each step a piece starts, this rank combines the one that started `ahead` steps before, and one comes back
        # that all ranks have combined. So a rank is at most 2 * ahead pieces in front of another one.
        ahead, count, each = max(2, ring.UNDER_WAY // self.size), pieces.count, 2 * (self.size - 1)
        started: deque[Array] = deque()
        combined: deque[Array] = deque()
        with under_way() as requests:
            for step in range(count + 2 * ahead):
                if step < count:
                    sent = pieces.send(step)
                    started.append(np.empty_like(sent))
                    self._start([*_bytes(sent)], [*_bytes(started[-1])], requests, tag)
                if 0 <= (piece := step - ahead) < count:
                    yield from first_of(requests, len(requests) - each)
                    total = pieces.combine(piece, started.popleft())
                    combined.append(np.empty((self.size, *total.shape), total.dtype))
                    self._start([*_bytes(total[np.newaxis])] * self.size, [*_bytes(combined[-1])], requests, tag + 1)
                if 0 <= (piece := step - 2 * ahead) < count:
                    yield from first_of(requests, len(requests) - each)
                    pieces.receive(piece, combined.popleft())

    def _start(self, sent: Sequence[Array], received: Sequence[Array], requests: deque[Any], tag: int) -> None:
        """Starts to send each rank its bytes and to receive its own, two requests for each other rank."""
        received[self.rank][:] = sent[self.rank]
        for step in range(1, self.size):
            before, after = (self.rank - step) % self.size, (self.rank + step) % self.size
            requests.append(self._point_to_point.Irecv(received[before], before, tag=tag))
            requests.append(self._point_to_point.Isend(sent[after], after, tag=tag))

    def _is_far(self, array: Array) -> bool:
        """Whether to send an array to other hosts by our own messages: these keep both directions of each wire busy,
        while MPI's collectives alternate."""
        return self.hosts > 1 and array.nbytes > SHORT

    def _is_short_and_far(self, array: Array) -> bool:
        """Whether the latency between hosts is what takes the time, so that a rank waits without its core."""
        return self.hosts > 1 and array.nbytes <= SHORT

    def broadcast(self, array: Array, root: int = 0) -> None:
        validation.check_array("broadcast", array, written=True)
        validation.check_root("broadcast", root, self.size)
        for piece in _pieces(array.reshape(-1).view(np.uint8)):
            if self._is_short_and_far(piece):
                wait_patiently(self._comm.Ibcast(piece, root))
            else:
                self._comm.Bcast(piece, root)

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        validation.check_root("broadcast_object", root, self.size)
        return self._comm.bcast(value, root)

    def gather_objects(self, value: Any, what: str = "gather_objects") -> list[Any]:
        values: list[Any] = self._comm.allgather(value)
        return values

    def split(self, color: int, key: int = 0) -> Comm:
        validation.check_split(color, key)
        part = self._comm.Split(color, key)
        result = MpiComm(part)
        part.Free()
        return result

    def window(self, nbytes: int) -> Window:
        validation.check_nbytes(nbytes)
        free_unused(self._comm)
        # One segment, allocated by the first rank, so that all ranks compute the same parts.
        asked = self._local.allgather((nbytes, free_bytes(SHARED_MEMORY)))
        sizes = [*(size for size, _ in asked), self.local_size * CACHE_LINE]
        self._raise_together(partial(check_free, block_size(sizes), asked[0][1]))
        mine = block_size(sizes) if self.local_rank == 0 else 0
        window = self._mpi.Win.Allocate_shared(mine, 1, comm=self._local)
        window.Lock_all(self._mpi.MODE_NOCHECK)
        memory, _ = window.Shared_query(0)
        block = np.frombuffer(memory, np.uint8)
        *parts, counters = cut(block, sizes)
        if self.local_rank == 0:
            counters.fill(0)
        parts[self.local_rank].fill(0)
        window.Sync()
        self._local.Barrier()
        window.Sync()
        # Not an array made from the block, which would count as a use of the window.
        start = counters.ctypes.data - block.ctypes.data
        ranks = self._local.group.Translate_ranks(None, self._mpi.COMM_WORLD.group)
        barrier = SpinBarrier(memoryview(memory)[start : start + counters.nbytes], self.local_rank, window.Sync, ranks)

        def free() -> None:
            window.Unlock_all()
            window.Free()

        # A collective of all hosts: the windows of each have the same number.
        free_now = deferred_free(block, (self._number, next(self._windows)), self.size, free, block.nbytes)
        return SharedWindow(parts, self.local_rank, barrier.wait, free_now, window.Sync)

    def _raise_together(self, check: Callable[[], None]) -> None:
        """Calls `check`; if it raises SharedMemoryFull on one rank, raises it on all."""
        error = None
        try:
            check()
        except SharedMemoryFull as full:
            error = full
        for each in self._comm.allgather(error):
            if each is not None:
                raise each

    def exchange(self, wire: Wire | None = None) -> Exchange | None:
        return self._ring_exchange(wire) if self._is_ring else None

    def _ring_exchange(self, wire: Wire | None) -> RingExchange:
        comm, tag = self._point_to_point, next(self._tags)
        before, after = ((self.rank + step) % self.size for step in (-1, 1))
        send, receive = partial(comm.Isend, dest=after, tag=tag), partial(comm.Irecv, source=before, tag=tag)
        return RingExchange(self, send, receive, wire, wait_patiently)

    def barrier(self) -> None:
        self._comm.Barrier()

    def abort(self, code: int = 1) -> None:
        report.flush()
        self._mpi.COMM_WORLD.Abort(code)

    def __repr__(self) -> str:
        return f"MpiComm(rank {self.rank} of {self.size} on host {self.host} of {self.hosts})"


def _bytes(array: Array) -> Array:
    """The bytes of each entry, as rows."""
    return array.reshape(len(array), math.prod(array.shape[1:])).view(np.uint8)


def _pieces(flat: Array) -> Iterator[Array]:
    step = PIECE // flat.itemsize
    return (flat[start : start + step] for start in range(0, flat.size, step))
