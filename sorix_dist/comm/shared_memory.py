"""Shared memory of the ranks of a host: a block cut into parts, a barrier of counters in it, and collective frees."""

from __future__ import annotations

import gc
import itertools
import mmap
import os
import platform
import shutil
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sorix_dist.comm.blas import usable_cores
from sorix_dist.comm.protocol import SharedMemoryFull
from sorix_dist.watchdog.watch import waited

PAGE = mmap.PAGESIZE
SHARED_MEMORY = "/dev/shm"  # the folder of MPI's shared windows on Linux
CACHE_LINE = 64
BRIEF = 20  # reads of a counter, about a microsecond, that do not count as waiting: to count them takes nearly as long
SPINS = 1000  # further reads before a rank that has a core of its own yields it
YIELDS = 1000  # reads between which it yields the core, before it sleeps instead
SLEEP = 50e-6  # seconds between two further reads
yield_core: Callable[[], None] = getattr(os, "sched_yield", lambda: time.sleep(0))  # macOS has none


def locate(host_of: Sequence[int], rank: int) -> tuple[int, int, int, int]:
    """The host, hosts, local_rank and local_size of `rank` (see `Comm`); `host_of[r]` is any number that identifies the
    host of rank r."""
    own, hosts = host_of[rank], list(dict.fromkeys(host_of))
    return hosts.index(own), len(hosts), list(host_of[:rank]).count(own), list(host_of).count(own)


def block_size(sizes: Sequence[int]) -> int:
    """Bytes that `cut` needs for parts of `sizes` bytes, at whatever address the block begins."""
    return PAGE + sum(_whole_pages(size) for size in sizes)


def cut(block: NDArray[np.uint8], sizes: Sequence[int]) -> list[NDArray[np.uint8]]:
    """Parts of `block` of `sizes` bytes, each on pages of its own.

    A page's memory belongs to the processor that touches it first, and no two ranks write to one cache line.
    """
    parts = []
    start = -block.ctypes.data % PAGE
    for size in sizes:
        parts.append(block[start : start + size])
        start += _whole_pages(size)
    return parts


def free_bytes(folder: str) -> int | None:
    """Free bytes of the file system of `folder`; None if there is no such folder."""
    return shutil.disk_usage(folder).free if os.path.isdir(folder) else None


def check_free(needed: int, free: int | None) -> None:
    """Raise SharedMemoryFull, which says how to get more, if `needed` bytes exceed those that are `free`.

    MPI does not check: the first write to a missing page would end the process by SIGBUS.
    """
    if free is not None and needed > free:
        raise SharedMemoryFull(
            f"the ranks of host {platform.node()} need {needed >> 20} MB of shared memory more, and {SHARED_MEMORY} "
            f"has {free >> 20} MB left: give a container more (docker run --shm-size=2g), enlarge it as root (mount -o "
            f"remount,size=2g {SHARED_MEMORY}), or remove what dead jobs have left there (sorix-dist doctor --clean) "
            "[docs: shared-memory]"
        )


def _whole_pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


class SpinBarrier:
    """A barrier of counters in shared memory, one cache line for each rank of the host.

    It is several times faster than MPI's, and yields the core where ranks outnumber cores. `fence` orders this
    processor's reads and writes of the memory before it and after it. `ranks`, by default 0, 1, ..., are their numbers.
    """

    def __init__(
        self, counters: memoryview, local_rank: int, fence: Callable[[], None], ranks: Sequence[int] | None = None
    ) -> None:
        words = [counters[at : at + CACHE_LINE].cast("B").cast("q") for at in range(0, len(counters), CACHE_LINE)]
        self._own = words[local_rank]
        numbers = range(len(words)) if ranks is None else ranks
        self._others = [(word, numbers[i]) for i, word in enumerate(words) if i != local_rank]
        self._fence = fence
        self._count = 0
        self._inside = False
        self._spins = SPINS if len(words) <= usable_cores() else 0

    def wait(self) -> None:
        """Wait until all ranks have called this equally often; afterwards each sees what the others wrote before.

        RuntimeError if an exception, such as KeyboardInterrupt, ended an earlier wait, which the others count.
        """
        if self._inside:
            raise RuntimeError(
                "this rank left a wait for the others of its host by an exception, such as KeyboardInterrupt: it can't "
                "go on with them; end the job and start it again"
            )
        self._inside = True
        self._count = count = self._count + 1
        self._fence()
        self._own[0] = count
        for other, rank in self._others:
            if other[0] < count:
                self._wait_for(other, count, rank)
        self._fence()
        self._inside = False

    def _wait_for(self, other: memoryview, count: int, rank: int) -> None:
        for _ in range(BRIEF):
            if other[0] >= count:
                return
        began, reads = perf_counter_ns(), 0
        for _ in range(self._spins):  # reads as often as possible: each is a delay of the step
            if other[0] >= count:
                break
        else:
            while other[0] < count:
                reads += 1
                if reads > YIELDS:
                    time.sleep(SLEEP)
                else:
                    yield_core()
        waited(began, rank)


class SharedWindow:
    """The `Window` of given parts, with a given barrier and given functions that free the memory, and that order reads
    and writes where several processes share it."""

    def __init__(
        self,
        parts: list[NDArray[np.uint8]],
        local_rank: int,
        barrier: Callable[[], None],
        free: Callable[[], None],
        sync: Callable[[], None] = lambda: None,
    ) -> None:
        self.parts = parts
        self.sync = sync
        self.local_rank = local_rank
        self.barrier = barrier
        self._free = free

    def close(self) -> None:
        if self.parts:
            self.parts = []
            self.barrier = _refuse_closed
            self._free()


def _refuse_closed() -> None:
    raise ValueError("barrier: this window is closed")


# -- Collective frees of communicators and windows, some time after all their ranks have dropped them. A finalizer can't
# make a call of all ranks, because objects are collected at different times on each.

CALLS, NBYTES = 32, 32 << 20
"""After this many calls, or this much new shared memory, a garbage collection is worth its time."""

Key = tuple[int, int]
"""A communicator's number and that of one of its windows, 0 for itself: the same on all its ranks, and no others'."""

live: dict[Key, int] = {}  # the keys of what is not freed yet, with its bytes of shared memory
_unused: dict[Key, tuple[int, Callable[[], None]]] = {}
_calls = itertools.count(1)
_new_bytes = 0


def deferred_free(thing: Any, key: Key, ranks: int, free: Callable[[], None], nbytes: int = 0) -> Callable[[], None]:
    """Schedules the collective `free` once `thing` has been collected on all its `ranks`. Returns a function that frees
    at once."""
    global _new_bytes
    _new_bytes += nbytes
    live[key] = nbytes

    def free_once() -> None:
        if live.pop(key, None) is not None:
            _unused.pop(key, None)
            free()

    finalizer = weakref.finalize(thing, _unused.__setitem__, key, (ranks, free_once))
    finalizer.atexit = False

    def free_now() -> None:
        finalizer.detach()
        free_once()

    return free_now


def free_unused(communicator: Any) -> None:
    """Frees what all of its ranks have dropped, if they belong to an mpi4py communicator. A call of all ranks of the
    latter."""
    global _new_bytes
    if next(_calls) % CALLS == 0 or _new_bytes > NBYTES:
        _new_bytes = 0
        gc.collect()
    unused = _unused.copy()
    offered = Counter(key for keys in communicator.allgather([*unused]) for key in keys)
    for key, (ranks, free) in sorted(unused.items(), key=lambda each: each[0]):  # everywhere in the same order
        if offered[key] == ranks:
            free()
