"""Memory that the ranks of a host share, and the reducer in it: every rank writes its own gradients, and sums its slice
of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sorix_dist.comm import Comm
from sorix_dist.core.flat import BLOCK, Flat
from sorix_dist.core.memory import ALIGNMENT, PRIVATE, ParameterMemory
from sorix_dist.core.tensor import Array
from sorix_dist.parallel.reducers import GradientBuffer, Reducer, is_finite, used_by_any


class SharedMemory(ParameterMemory):
    """Memory in shared windows of the ranks of each host. That without arrays on any rank is freed by a later call.

    fence: waits for the ranks of the host.
    """

    def __init__(self, comm: Comm, fence: Callable[..., None]) -> None:
        self.comm, self.fence = comm, fence  # type: ignore[method-assign]
        self.writes = comm.local_rank == 0

    def parts(self, nbytes: int) -> list[Array]:
        """For each rank of this host `nbytes` zeroed bytes, or what that rank asks for. A call of every rank."""
        return list(self.comm.window(nbytes).parts)

    def zeros(self, count: int, dtype: np.dtype[Any]) -> Array:
        size = count * dtype.itemsize
        return self.parts(size if self.writes else 0)[0][:size].view(dtype)

    def own_slice(self, count: int, dtype: np.dtype[Any], slices: int | None = None) -> slice:
        """This rank's slice of `count` elements; slices: how many of the host's ranks have one, all if not given."""
        rank, size = self.comm.local_rank, slices or self.comm.local_size
        line = ALIGNMENT // dtype.itemsize
        ends = [count // line * i // size * line for i in range(size)] + [count]
        return slice(ends[min(rank, size)], ends[min(rank + 1, size)])


class SharedTotal:
    """The sum of the gradients of one host's ranks: `grad` itself, or a separate shared array.

    own: the elements that this rank sums; blocks: the same in pieces that fit into a cache; slices: how many ranks of
    the host sum, all if not given.
    """

    def __init__(self, flat: Flat, memory: SharedMemory, slices: int | None = None) -> None:
        self.flat, self.memory = flat, memory
        self.own = memory.own_slice(flat.size, flat.dtype, slices)
        self.blocks = [slice(at, min(at + BLOCK, self.own.stop)) for at in range(self.own.start, self.own.stop, BLOCK)]
        self._beside: Array | None = None

    def array(self, overwrite: bool) -> Array:
        """The array for the next sum; see `Reducer.reduce`. A call of all ranks of the host."""
        if overwrite and (self.flat.memory is not PRIVATE or self.memory.comm.size == self.memory.comm.hosts):
            return self.flat.grad
        if self._beside is None:
            self._beside = self.memory.zeros(self.flat.size, self.flat.dtype)
        return self._beside


def gradient_windows(flat: Flat, memory: SharedMemory, own: int) -> list[tuple[memoryview, Array]]:
    """Flags and arrays for the gradients of all ranks of a host, `own` pairs of them for this rank. A call of all ranks
    of the host, which may give different numbers."""
    count = len(flat.parameters)
    head = -(-count // ALIGNMENT) * ALIGNMENT
    size = flat.size * flat.dtype.itemsize
    length = head + -(-size // ALIGNMENT) * ALIGNMENT
    windows = [window for part in memory.parts(own * length) for window in part.reshape(-1, length)]
    return [(window.data[:count], window[head : head + size].view(flat.dtype)) for window in windows]


class SharedMemoryReducer(Reducer):
    """Ranks of one host: each writes its gradients into its part of a shared window. Then each sums its slice of all
    parts, in rank order, into `grad` if that is shared, or else into a shared total."""

    def __init__(self, flat: Flat, memory: SharedMemory) -> None:
        super().__init__(flat)
        windows = gradient_windows(flat, memory, 1)
        self.all_flags = [flags for flags, _ in windows]
        self.arrays = [array for _, array in windows]
        flags, array = windows[memory.comm.local_rank]
        self.buffers = [GradientBuffer(flat, self.leaves, array, flags)]
        self.buffers[0].select()
        self.shared_total = SharedTotal(flat, memory)
        self._fine = True
        self._totals: dict[bool, tuple[Array, list[tuple[list[Array], Array]]]] = {}  # with its blocks and their terms

    def reduce(self, overwrite: bool, same_used: bool, start_over: bool = False) -> None:
        self.used = used_by_any(self.all_flags)
        if overwrite not in self._totals:
            total, cut = self.shared_total.array(overwrite), self.shared_total.blocks
            self._totals[overwrite] = total, [([a[block] for a in self.arrays], total[block]) for block in cut]
        self.total, blocks = self._totals[overwrite]
        fine = True
        for (first, second, *others), total in blocks:
            np.add(first, second, total)
            for array in others:
                total += array
            fine = is_finite(total) and fine  # while the block is in the cache
        self._fine = fine

    def is_finite(self) -> bool:
        return self._fine
