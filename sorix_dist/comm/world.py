"""The current communicator of a rank, and `init`, which chooses it."""

from __future__ import annotations

import atexit
import contextvars
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from sorix_dist.comm import blas, mismatch, reduction, validation
from sorix_dist.comm.checked import Checked
from sorix_dist.comm.mpi import MpiComm
from sorix_dist.comm.protocol import Array, Comm, Op, Pieces, Started, Window, Wire
from sorix_dist.comm.runtime import running_mpi, start_mpi
from sorix_dist.comm.shared_memory import SharedWindow, block_size, cut
from sorix_dist.watchdog import report, watch
from sorix_dist.watchdog.launcher import Launch, detect
from sorix_dist.watchdog.monitor import AFTER_GUARD
from sorix_dist.watchdog.status_page import LONGEST

if TYPE_CHECKING:
    from mpi4py import MPI

BACKENDS = ("auto", "mpi", "solo")


class _Options(NamedTuple):
    timeout: float
    threads: int | str
    comm: Any
    backend: str


_lock = threading.RLock()
_process: tuple[Comm, _Options] | None = None
_context: contextvars.ContextVar[Comm | None] = contextvars.ContextVar("sorix_dist_comm", default=None)


def init(
    timeout: float = watch.TIMEOUT,
    threads: int | str = "auto",
    comm: Comm | MPI.Intracomm | None = None,
    backend: str = "auto",
) -> Comm:
    """Choose the communicator of this process and return it: a call of all ranks.

    timeout: seconds that a rank may be late, in the start of MPI and in every collective, before all ranks
        end with a report of where each of them is.
    threads: BLAS threads of each rank, an int, or 'auto': the cores of a host divided by its ranks (see
        `sorix_dist.comm.blas`).
    comm: an mpi4py communicator or a `Comm`, instead of all ranks.
    backend: 'mpi', 'solo' (each process on its own), or 'auto': MPI if a launcher started several processes or
        the program has initialised MPI, else solo.

    The first use of a communicator calls it. Another call with the same options changes nothing; with other options
    it raises RuntimeError. Inside `using` and `run_threads` it returns their communicator.
    """
    options = _checked(timeout, threads, comm, backend)
    given = _context.get()
    if given is not None:
        if comm is not None and comm is not given:
            raise RuntimeError(f"init: comm={comm!r} was given where the communicator is {given!r} already")
        return given
    global _process
    with _lock:
        if _process is None:
            _process = (_start(options), options)
        elif _process[1] != options:
            raise RuntimeError(
                f"init: {_difference(_process[1], options)}, but the communicator is in use already; call "
                "init before anything else that needs to know the ranks"
            )
        return _process[0]


def current() -> Comm:
    """The communicator of this rank; the first call does what `init()` does."""
    given = _context.get()
    if given is not None:
        return given
    return _process[0] if _process is not None else init()


@contextmanager
def using(comm: Comm) -> Iterator[Comm]:
    """Make `comm` the current communicator in this block (and in this thread) only."""
    token = _context.set(comm)
    try:
        yield comm
    finally:
        _context.reset(token)


def _forget() -> None:
    """This process was forked: it can't use a communicator that its parent shares with other ranks."""
    global _process
    if _process is not None and _process[0].size > 1:
        _process = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def is_initialized() -> bool:
    """Whether `current()` is known without starting anything."""
    return _context.get() is not None or _process is not None


def _checked(timeout: Any, threads: Any, comm: Any, backend: Any) -> _Options:
    if not isinstance(timeout, (int, float)) or timeout is True or not (0 < timeout < math.inf):
        raise ValueError(f"init: timeout must be a finite number of seconds above 0 (1e9: no limit), got {timeout!r}")
    if threads != "auto" and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
        raise ValueError(f"init: threads must be 'auto' or an int of 1 or more, got {threads!r}")
    if not isinstance(backend, str) or backend not in BACKENDS:  # an array has no single answer to `in`
        raise ValueError(f"init: backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    if comm is not None and backend == "solo":
        raise ValueError("init: comm and backend='solo' exclude each other")
    return _Options(min(timeout, LONGEST), threads, comm, backend)


def _difference(old: _Options, new: _Options) -> str:
    pairs = zip(new._fields, new, old, strict=True)
    return ", ".join(f"{name}={value!r} instead of {before!r}" for name, value, before in pairs if value != before)


def _start(options: _Options) -> Comm:
    comm = _choose(options)
    if comm.size > 1:
        report.install(comm.rank, comm.size)
    if isinstance(comm, Checked):
        atexit.register(_goodbye, comm)
    blas.cap(comm, options.threads, os.environ)
    return comm


def _goodbye(comm: Checked) -> None:
    if running_mpi() is not None:  # else the program has finalised MPI itself
        comm.goodbye()


def _choose(options: _Options) -> Comm:
    launch = detect(os.environ)
    parent, has_started = watch.rank_process()
    if options.comm is not None:
        if parent and not hasattr(options.comm, "all_reduce"):
            mismatch.check(mismatch.child_of_a_rank(parent, has_started))
        watch.running(options.timeout)
        return adopt(options.comm)
    if parent and options.backend != "solo":
        if options.backend == "mpi" or not has_started:
            mismatch.check(mismatch.child_of_a_rank(parent, has_started))
        mpi = running_mpi()
        if mpi is not None and mpi.Comm.Get_parent() != mpi.COMM_NULL:
            mismatch.check(mismatch.spawned(mpi.COMM_WORLD.size))
        return Solo()
    several = launch is not None and launch.several
    if options.backend == "mpi" or (options.backend == "auto" and (running_mpi() is not None or several)):
        if several:
            mismatch.check(mismatch.several_mpis(launch, mismatch.installed_mpis()))
        return _start_world(launch, options.timeout)
    lonely = mismatch.lonely(os.environ) if launch is None and options.backend == "auto" else None
    if lonely is not None:
        warnings.warn(lonely, RuntimeWarning, stacklevel=4)
    return Solo()


def _start_world(launch: Launch | None, timeout: float) -> Comm:
    watch.starting(timeout)
    try:
        mpi = start_mpi(launch, timeout + AFTER_GUARD)
    except mismatch.LaunchMismatch:
        raise
    except (ImportError, RuntimeError) as error:  # mpi4py raises the latter where it finds no MPI library
        raise ImportError(mismatch.no_mpi(launch, error, os.environ)) from error
    world = mpi.COMM_WORLD
    library = mpi.Get_library_version().splitlines()[0].strip(", ")
    mismatch.check(mismatch.after_init(launch, world.rank, world.size, library))
    watch.running(timeout)
    return adopt(world)


def adopt(comm: Comm | MPI.Intracomm) -> Comm:
    """The `Comm` of an mpi4py communicator, with checked collectives; a `Comm` is returned as it is."""
    if hasattr(comm, "all_reduce"):
        return cast(Comm, comm)
    made = MpiComm(comm)
    return Checked(made) if made.size > 1 else made


class Solo:
    """Rank 0 of 1: every collective leaves or returns what it was given."""

    rank = 0
    size = 1
    local_rank = 0
    local_size = 1
    host = 0
    hosts = 1

    def __init__(self) -> None:
        self.cache: dict[Any, Any] = {}

    def all_reduce(self, array: Array, op: Op = "sum") -> None:
        validation.check_array("all_reduce", array, written=True)
        validation.check_op("all_reduce", op)

    def all_gather(self, array: Array, meanwhile: Callable[[], None] | None = None) -> Array:
        validation.check_array("all_gather", array, written=False)
        return array[np.newaxis].copy()

    def all_to_all(self, array: Array) -> Array:
        validation.check_one_each("all_to_all", array, self.size)
        return array.copy()

    def start_pieces(self, pieces: Pieces) -> Started:
        return reduction.one_by_one(self, pieces)

    def broadcast(self, array: Array, root: int = 0) -> None:
        validation.check_array("broadcast", array, written=True)
        validation.check_root("broadcast", root, self.size)

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        validation.check_root("broadcast_object", root, self.size)
        return value

    def gather_objects(self, value: Any, what: str = "gather_objects") -> list[Any]:
        return [value]

    def split(self, color: int, key: int = 0) -> Comm:
        validation.check_split(color, key)
        return Solo()

    def window(self, nbytes: int) -> Window:
        validation.check_nbytes(nbytes)
        block = np.zeros(block_size([nbytes]), np.uint8)
        return SharedWindow(cut(block, [nbytes]), 0, barrier=lambda: None, free=lambda: None)

    def exchange(self, wire: Wire | None = None) -> None:
        return None

    def barrier(self) -> None:
        return None

    def abort(self, code: int = 1) -> None:
        report.flush()
        os._exit(code)

    def __repr__(self) -> str:
        return "Solo()"
