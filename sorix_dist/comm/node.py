"""What the ranks of one host have in common: who they are, and one block of memory cut into parts."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PAGE = mmap.PAGESIZE
_REFERENCES = 1  # to the argument of getrefcount


@dataclass(frozen=True)
class Placement:
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


def _whole_pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


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
        self._barrier = barrier
        self._free = free

    def barrier(self) -> None:
        if not self.parts:
            raise ValueError("barrier: this window is closed")
        self._barrier()

    def used(self) -> bool:
        # Every array made from the parts has the block they were cut from as its base.
        return bool(self.parts) and sys.getrefcount(self.parts[0].base) > _REFERENCES + len(self.parts)

    def close(self) -> None:
        if self.parts:
            self.parts = []
            self._free()
