"""Sums of gradients in the shared memory of one host: every rank writes its own, and sums its slice of all."""

from __future__ import annotations

import numpy as np

from sorix_dist.core.flat import BLOCK, Flat
from sorix_dist.core.home import ALIGNMENT, PRIVATE
from sorix_dist.core.tensor import Array
from sorix_dist.parallel.host_memory import HostMemory
from sorix_dist.parallel.reduce import Apart, Slot, is_finite, used_by_any


class ByWindow(Apart):
    """Ranks of one host: each writes its gradients into its own part of a shared window, and sums its slice of all
    parts, in rank order: into the gradient that the parameters show, if they share it, or else into a shared total."""

    def __init__(self, flat: Flat, memory: HostMemory) -> None:
        super().__init__(flat)
        count = len(flat.parameters)
        head = -(-count // ALIGNMENT) * ALIGNMENT
        size = flat.size * flat.dtype.itemsize
        parts = memory.parts(head + size)
        self.all_flags = [part.data[:count] for part in parts]
        self.arrays = [part[head : head + size].view(flat.dtype) for part in parts]
        own = memory.comm.local_rank
        self.slots = [Slot(flat, self.leaves, self.arrays[own], self.all_flags[own])]
        self.slots[0].select()
        self.totals = Totals(flat, memory)
        self.fine = True
        self.blocks: dict[bool, list[tuple[list[Array], Array]]] = {}

    def sum(self, plain: bool) -> None:
        self.used = used_by_any(self.all_flags)
        self.total = self.totals.place(plain)
        if plain not in self.blocks:
            cut = self.totals.blocks
            self.blocks[plain] = [([array[block] for array in self.arrays], self.total[block]) for block in cut]
        fine = True
        for (first, second, *others), total in self.blocks[plain]:
            np.add(first, second, out=total)
            for array in others:
                total += array
            fine = is_finite(total) and fine  # while the block is in the cache
        self.fine = fine

    def finite(self) -> bool:
        return self.fine


class Totals:
    """Where the ranks of one host sum gradients to: what their parameters show, or an array beside it.

    own: the elements that this rank sums; blocks: the same in pieces that fit into a cache.
    """

    def __init__(self, flat: Flat, memory: HostMemory) -> None:
        self.flat, self.memory = flat, memory
        self.own = memory.part(flat.size, flat.dtype)
        self.blocks = [slice(at, min(at + BLOCK, self.own.stop)) for at in range(self.own.start, self.own.stop, BLOCK)]
        self.latest = flat.grad
        self.beside: Array | None = None

    def place(self, plain: bool) -> Array:
        """The array that the next sum is to go to. Called by every rank, with the same `plain`; see `Reducer.sum`."""
        if plain and self.flat.home is not PRIVATE:
            self.latest = self.flat.grad
        else:
            if self.beside is None:
                self.beside = self.memory.zeros(self.flat.size, self.flat.dtype)
            self.latest = self.beside
        return self.latest

    def finite(self) -> bool:
        """Whether what this rank has summed last is free of NaN and infinity."""
        return all([is_finite(self.latest[block]) for block in self.blocks])  # noqa: C419 (faster)
