"""What the ranks of one host have in common: who they are, and one block of memory cut into parts."""

from __future__ import annotations

import mmap
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sorix_dist.comm.cores import usable_cores
from sorix_dist.comm.errors import SharedMemoryFull

PAGE = mmap.PAGESIZE
SHARED_MEMORY = "/dev/shm"
"""Where MPI has its shared windows on Linux."""
LINE = 64
"""Bytes of a cache line."""
PATIENCE = 1000
"""How often a rank that has a core of its own looks for the others before it lets other processes run in between."""
LOOKS_AWAKE = 1000
"""How often it does that, before it sleeps between two looks: who is late for long is not worth a whole core."""
ASLEEP = 50e-6
"""Seconds of such a sleep."""
_let_others_run: Callable[[], None] = getattr(os, "sched_yield", lambda: time.sleep(0))  # macOS has none


class Placement(NamedTuple):
    """Where one rank of a communicator lives; the fields have the meaning of those of `Comm`."""

    host: int
    hosts: int
    local_rank: int
    local_size: int


def place(host_of: Sequence[int], rank: int) -> Placement:
    """The placement of `rank`, where `host_of[r]` is any number that names the host of rank r."""
    hosts = list(dict.fromkeys(host_of))
    return Placement(
        host=hosts.index(host_of[rank]),
        hosts=len(hosts),
        local_rank=list(host_of[:rank]).count(host_of[rank]),
        local_size=list(host_of).count(host_of[rank]),
    )


def block_size(sizes: Sequence[int]) -> int:
    """Bytes that a block must have to be cut into parts of `sizes` bytes, wherever it begins."""
    return PAGE + sum(_whole_pages(size) for size in sizes)


def cut(block: NDArray[np.uint8], sizes: Sequence[int]) -> list[NDArray[np.uint8]]:
    """The parts of `block`, each on pages of its own.

    Whole pages, because memory belongs to the processor that touches a page first, and no two ranks then
    write to one cache line.
    """
    parts = []
    start = -block.ctypes.data % PAGE
    for size in sizes:
        parts.append(block[start : start + size])
        start += _whole_pages(size)
    return parts


def free_bytes(folder: str) -> int | None:
    """What is free where files of a folder are; None if there is no such folder."""
    return shutil.disk_usage(folder).free if os.path.isdir(folder) else None


def check_free(needed: int, free: int | None) -> None:
    """Raises SharedMemoryFull, which says how to get more, if fewer than `needed` bytes are `free`.

    MPI takes more than there is from the system, which ends the process when it is first written to.
    """
    if free is not None and needed > free:
        raise SharedMemoryFull(
            f"the ranks of host {platform.node()} need {needed >> 20} MB of shared memory more, and {SHARED_MEMORY} "
            f"has {free >> 20} MB left: give a container more (docker run --shm-size=2g), enlarge it as root (mount -o "
            f"remount,size=2g {SHARED_MEMORY}), or remove what dead jobs have left there (sorix-dist doctor --clean)"
        )


def _whole_pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


class Gate:
    """A barrier by counters in shared memory, one cache line for each rank of the host.

    It is a few times faster than MPI's, and gives the processor to others where there are more ranks than cores.
    fence: orders this processor's reads and writes of the memory before it and after it.
    """

    def __init__(self, counters: memoryview, local_rank: int, fence: Callable[[], None]) -> None:
        words = [counters[at : at + LINE].cast("B").cast("q") for at in range(0, len(counters), LINE)]
        self._own = words[local_rank]
        self._others = [word for rank, word in enumerate(words) if rank != local_rank]
        self._fence = fence
        self._count = 0
        self._inside = False
        self._patience = PATIENCE if len(words) <= usable_cores() else 0

    def wait(self) -> None:
        """Wait until all ranks have called this so many times; afterwards each sees what the others wrote before.

        RuntimeError if an exception, such as KeyboardInterrupt, has ended an earlier wait: the others count it.
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
        for other in self._others:
            if other[0] < count:
                self._wait_for(other, count)
        self._fence()
        self._inside = False

    def _wait_for(self, other: memoryview, count: int) -> None:
        looks = 0
        while other[0] < count:
            looks += 1
            if looks > self._patience + LOOKS_AWAKE:
                time.sleep(ASLEEP)
            elif looks > self._patience:
                _let_others_run()


class SharedWindow:
    """The `Window` over given parts, with a given barrier and a given way to free the memory."""

    def __init__(
        self,
        parts: list[NDArray[np.uint8]],
        local_rank: int,
        barrier: Callable[[], None],
        free: Callable[[], None],
    ) -> None:
        self.parts = parts
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
