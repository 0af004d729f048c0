"""Memory of the ranks of one host: of which they have one copy, or parts that all of them read."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np

from sorix_dist.comm import Comm, Window
from sorix_dist.core.home import ALIGNMENT
from sorix_dist.core.tensor import Array

MANY_BYTES, MANY_WINDOWS = 32 << 20, 64
"""From here on it is worth a garbage collection to find out that nobody needs a window any more."""


class HostMemory:
    """A `core.home.Home` in shared windows of the ranks of each host.

    meet: waits for all of them. A window is closed when no rank has an array in it any more, at a later call.
    """

    def __init__(self, comm: Comm, meet: Callable[[str, int, bool], None]) -> None:
        self.comm = comm
        self._meet = meet
        self.writes = comm.local_rank == 0
        self.windows: list[Window] = []

    def parts(self, nbytes: int) -> list[Array]:
        """For each rank of this host `nbytes` zeroed bytes, or as many as that rank asks for. Called by every rank."""
        self._close_unused()
        self.windows.append(self.comm.window(nbytes))
        return list(self.windows[-1].parts)

    def zeros(self, count: int, dtype: np.dtype[Any]) -> Array:
        size = count * dtype.itemsize
        return self.parts(size if self.writes else 0)[0][:size].view(dtype)

    def meet(self, doing: str, alike: int = 0, everywhere: bool = False) -> None:
        self._meet(doing, alike, everywhere)

    def part(self, count: int, dtype: np.dtype[Any]) -> slice:
        rank, size = self.comm.local_rank, self.comm.local_size
        line = ALIGNMENT // dtype.itemsize
        first, end = (count // line * i // size * line for i in (rank, rank + 1))
        return slice(first, end if rank + 1 < size else count)

    def _close_unused(self) -> None:
        held = sum(part.nbytes for window in self.windows for part in window.parts)
        if held > MANY_BYTES or len(self.windows) > MANY_WINDOWS:
            gc.collect()
        unused = self.comm.gather_objects({i for i, window in enumerate(self.windows) if not window.used()})
        for i in sorted(set.intersection(*unused), reverse=True):
            self.windows.pop(i).close()
