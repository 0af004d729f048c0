"""The communicator over MPI: the only file that imports mpi4py, and only when a communicator is made."""

from __future__ import annotations

import faulthandler
import itertools
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from sorix_dist.comm import finalize, mismatch, report, watch
from sorix_dist.comm.arguments import check_array, check_nbytes, check_one_each, check_op, check_root, check_split
from sorix_dist.comm.deferred_free import deferred_free, free_unused
from sorix_dist.comm.errors import SharedMemoryFull
from sorix_dist.comm.exchange import PairExchange
from sorix_dist.comm.launcher import Launch
from sorix_dist.comm.node import LINE, SHARED_MEMORY, Gate, SharedWindow, block_size, check_free, cut, free_bytes, place
from sorix_dist.comm.protocol import DONE, Array, Comm, Exchange, Op, Window, Wire, Work

if TYPE_CHECKING:
    from types import ModuleType

    from mpi4py import MPI

PIECE = 2 << 20
"""Bytes per message of a large array. MPI's temporaries for larger ones cost page faults: 64 MB go 3.5 times
faster in such pieces."""

LONG_PIECE = 64 << 20
"""Bytes per message between two hosts: each message has to be answered first, behind all that is on the wire."""

SHORT = 64 << 10
"""Bytes of an array up to which MPI's own collectives are as good between two hosts."""


def running_mpi() -> ModuleType | None:
    """The module mpi4py.MPI if this program has imported it and MPI is initialised and not finalised."""
    module = sys.modules.get("mpi4py.MPI")
    if module is not None and module.Is_initialized() and not module.Is_finalized():
        return module
    return None


def start_mpi(launch: Launch | None = None, limit: float | None = None) -> ModuleType:
    """Import mpi4py.MPI and initialise MPI, unless the program did; return the module.

    `launch` is what the launcher says: an MPI library that it cannot start would leave every process alone or
    abort without a word about the cause, so that is a LaunchMismatch. If MPI_Init takes more than `limit`
    seconds, the process ends with exit code 1 and its stack on stderr: a rank that never comes keeps the
    others waiting. ImportError or RuntimeError if mpi4py or its MPI library cannot be loaded.
    """
    running = running_mpi()
    if running is not None:
        return running
    import mpi4py

    if "mpi4py.MPI" not in sys.modules:
        mpi4py.rc.initialize = False  # and then does not finalize, unless it is told to
        # Open MPI's ucx component prints an error for each shared window and then declines; others serve it.
        os.environ.setdefault("OMPI_MCA_osc", "^ucx")
    from mpi4py import MPI

    vendor, version = MPI.get_vendor()
    wrong = mismatch.before_init(launch, vendor, version, os.environ)
    if wrong is not None:
        raise mismatch.LaunchMismatch(wrong)
    if not MPI.Is_initialized():
        # MPI_Init holds Python's global lock: only a C thread can watch it.
        if limit is not None:
            faulthandler.dump_traceback_later(limit, exit=True, file=2)
        MPI.Init_thread()
        if mpi4py.rc.finalize is not False:
            finalize.started()
        if limit is not None:
            faulthandler.cancel_dump_traceback_later()
    return MPI


class MpiComm:
    """The ranks of an MPI communicator, of which it keeps a duplicate: COMM_WORLD if None is given."""

    def __init__(self, communicator: MPI.Intracomm | None = None) -> None:
        mpi = start_mpi()
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
        mpi = self._mpi
        free_unused(communicator)
        self._comm: Any = communicator.Dup()
        self.rank = self._comm.rank
        self.size = self._comm.size
        self._node = self._comm.Split_type(mpi.COMM_TYPE_SHARED, key=self.rank)
        placement = place(self._comm.allgather(self._node.bcast(self.rank)), self.rank)
        self.host, self.hosts, self.local_rank, self.local_size = placement
        self.kept: dict[Any, Any] = {}
        self._number = self._comm.bcast(secrets.randbits(62))
        self._windows = itertools.count(1)
        held = [self._comm, self._node]
        self._is_pair = self.size == self.hosts == 2
        if self._is_pair:
            self._beside = self._comm.Dup()
            held.append(self._beside)
            self._tags = itertools.count()
            self._sums = PairExchange(self, self._link())

        def free() -> None:
            for each in held:
                each.Free()

        deferred_free(self, (self._number, 0), self.size, free)

    def all_reduce(self, array: Array, op: Op = "sum") -> Work:
        check_array("all_reduce", array, written=True)
        check_op("all_reduce", op)
        operation = {"sum": self._mpi.SUM, "max": self._mpi.MAX, "min": self._mpi.MIN}[op]
        flat = array.reshape(-1)
        if flat.dtype == np.bool_:
            # MPI knows no sum, max or min of booleans; of the bytes 0 and 1, or is the maximum.
            flat = flat.view(np.uint8)
            operation = self._mpi.MIN if op == "min" else self._mpi.MAX
        if operation == self._mpi.SUM and self._is_far(flat):
            self._sums.sum(flat, flat)
            return DONE
        for piece in _pieces(flat):
            if piece.dtype == np.float16:
                wide = piece.astype(np.float32)
                self._comm.Allreduce(self._mpi.IN_PLACE, wide, operation)
                with np.errstate(over="ignore"):
                    piece[...] = wide
            else:
                self._comm.Allreduce(self._mpi.IN_PLACE, piece, operation)
        return DONE

    def all_gather(self, array: Array) -> Array:
        check_array("all_gather", array, written=False)
        result = np.empty((self.size, *array.shape), array.dtype)
        rows = result.reshape(self.size, array.size).view(np.uint8)
        if self._is_far(array):
            result[self.rank] = array
            other = 1 - self.rank
            for sent, arrived in zip(_pieces(rows[self.rank], LONG_PIECE), _pieces(rows[other], LONG_PIECE)):
                self._comm.Sendrecv(sent, other, recvbuf=arrived, source=other)
            return result
        start = 0
        for piece in _pieces(array.reshape(-1).view(np.uint8)):
            gathered = np.empty((self.size, piece.size), np.uint8)
            self._comm.Allgather(piece, gathered)
            rows[:, start : start + piece.size] = gathered
            start += piece.size
        return result

    def all_to_all(self, array: Array) -> Array:
        check_one_each("all_to_all", array, self.size)
        result = np.empty(array.shape, array.dtype)
        sent, received = (each.reshape(self.size, array.size // self.size).view(np.uint8) for each in (array, result))
        step = max(1, PIECE // self.size)
        for start in range(0, sent.shape[1], step):
            piece = np.ascontiguousarray(sent[:, start : start + step])
            arrived = np.empty_like(piece)
            self._comm.Alltoall(piece, arrived)
            received[:, start : start + step] = arrived
        return result

    def _is_far(self, array: Array) -> bool:
        """Whether an array is best swapped with one other rank on another host: both directions of the wire are in
        use then, while MPI's collectives use now one, now the other."""
        return self._is_pair and array.nbytes > SHORT

    def broadcast(self, array: Array, root: int = 0) -> None:
        check_array("broadcast", array, written=True)
        check_root("broadcast", root, self.size)
        for piece in _pieces(array.reshape(-1).view(np.uint8)):
            self._comm.Bcast(piece, root)

    def share(self, value: Any, root: int = 0) -> Any:
        check_root("share", root, self.size)
        return self._comm.bcast(value, root)

    def gather_objects(self, value: Any) -> list[Any]:
        values: list[Any] = self._comm.allgather(value)
        return values

    def split(self, color: int, key: int = 0) -> Comm:
        check_split(color, key)
        part = self._comm.Split(color, key)
        result = MpiComm(part)
        part.Free()
        return result

    def window(self, nbytes: int) -> Window:
        check_nbytes(nbytes)
        free_unused(self._comm)
        # One segment, allocated by the first rank, so that every rank cuts it in the same way.
        asked = self._node.allgather((nbytes, free_bytes(SHARED_MEMORY)))
        sizes = [*(size for size, _ in asked), self.local_size * LINE]
        self._agree_on(partial(check_free, block_size(sizes), asked[0][1]))
        mine = block_size(sizes) if self.local_rank == 0 else 0
        window = self._mpi.Win.Allocate_shared(mine, 1, comm=self._node)
        window.Lock_all(self._mpi.MODE_NOCHECK)
        memory, _ = window.Shared_query(0)
        block = np.frombuffer(memory, np.uint8)
        *parts, counters = cut(block, sizes)
        if self.local_rank == 0:
            counters.fill(0)
        parts[self.local_rank].fill(0)
        window.Sync()
        self._node.Barrier()
        window.Sync()
        # Not an array made from the block: nobody who uses the window holds it.
        start = counters.ctypes.data - block.ctypes.data
        gate = Gate(memoryview(memory)[start : start + counters.nbytes], self.local_rank, window.Sync)

        def free() -> None:
            window.Unlock_all()
            window.Free()

        # On all hosts: the windows of each have the same number.
        free_now = deferred_free(block, (self._number, next(self._windows)), self.size, free, block.nbytes)
        return SharedWindow(parts, self.local_rank, gate.wait, free_now)

    def _agree_on(self, check: Callable[[], None]) -> None:
        """Raises on every rank what `check` raises on any: whoever goes on waits for all others."""
        error = None
        try:
            check()
        except SharedMemoryFull as full:
            error = full
        for each in self._comm.allgather(error):
            if each is not None:
                raise each

    def exchange(self, wire: Wire | None = None) -> Exchange | None:
        return PairExchange(self, self._link(), wire) if self._is_pair else None

    def _link(self) -> _Link:
        return _Link(self._beside, 1 - self.rank, next(self._tags))

    def barrier(self) -> None:
        self._comm.Barrier()

    def abort(self, code: int = 1) -> None:
        report.flush()
        self._mpi.COMM_WORLD.Abort(code)

    def __repr__(self) -> str:
        return f"MpiComm(rank {self.rank} of {self.size} on host {self.host} of {self.hosts})"


class _Link:
    """A `Link` to another rank: messages of one tag."""

    def __init__(self, comm: Any, other: int, tag: int) -> None:
        self.send: Callable[[Array], Work] = partial(comm.Isend, dest=other, tag=tag)
        self.receive: Callable[[Array], Work] = partial(comm.Irecv, source=other, tag=tag)


def _pieces(flat: Array, nbytes: int = PIECE) -> Iterator[Array]:
    step = nbytes // flat.itemsize
    return (flat[start : start + step] for start in range(0, flat.size, step))
