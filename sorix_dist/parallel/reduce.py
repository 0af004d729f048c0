"""How the local gradients of the ranks become their sum, which every rank shows as `grad`."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from sorix_dist.comm import Comm
from sorix_dist.core.flat import ALIGNMENT, Flat, leaf_of
from sorix_dist.core.tensor import Array

BLOCK = 1 << 15  # elements that are summed at a time, so that they stay in the cache


class Reducer(Protocol):
    """Sums the gradients of one flat storage over the ranks."""

    def begin(self) -> None:
        """Gets the place ready that a backward writes to."""

    def end(self) -> None:
        """Adds the sum over the ranks to what the parameters show as `grad`. Called by every rank."""


def reducer(flat: Flat, comm: Comm) -> Reducer:
    """The way to sum that fits the communicator: nothing alone, memory on one host, else messages."""
    if comm.size == 1:
        return Alone()
    return ByWindow(flat, comm) if comm.hosts == 1 else ByMessage(flat, comm)


class Alone:
    """One rank: a backward writes straight into the gradient that the parameters show."""

    def begin(self) -> None:
        return None

    def end(self) -> None:
        return None


class _Shared:
    """What both other ways have in common: a local array beside `grad`, and which parameters were used.

    used: one byte per parameter, whether a backward of this rank reached it.
    """

    def __init__(self, flat: Flat, local: Array, used: Array) -> None:
        self.flat = flat
        self.local = local
        self.used = used
        flat.localize(local)
        self.leaves = [leaf_of(parameter) for parameter in flat.parameters]
        self.views = flat.views(local)

    def begin(self) -> None:
        for leaf in self.leaves:
            leaf.local.written = False

    def note_used(self) -> None:
        """Writes down which parameters were used here, and makes the others' part of the sum zero."""
        for i, (leaf, view) in enumerate(zip(self.leaves, self.views, strict=True)):
            # Windows start as zeros, and the zeros of an earlier step are still there.
            if not leaf.local.written and self.used[i]:
                view[...] = 0
            self.used[i] = leaf.local.written

    def hand_over(self, total: Array, used: Array) -> None:
        """Adds the reduced `total` to the gradients of those parameters that any rank used."""
        runs: list[tuple[int, int, bool]] = []
        for leaf, start, end, any_used in zip(
            self.leaves, self.flat.starts, [*self.flat.starts[1:], self.flat.size], used, strict=True
        ):
            if not any_used:
                continue
            adding = leaf.total.written
            leaf.total.written = True
            if runs and runs[-1][1] == start and runs[-1][2] == adding:
                runs[-1] = (runs[-1][0], end, adding)
            else:
                runs.append((start, end, adding))
        for start, end, adding in runs:
            grad = self.flat.grad[start:end]
            if adding:
                grad += total[start:end]
            else:
                np.copyto(grad, total[start:end])


class ByWindow(_Shared):
    """Ranks of one host: each writes its gradients into its own part of a shared window, sums its slice of
    all parts into a shared total, in rank order, and copies the total."""

    def __init__(self, flat: Flat, comm: Comm) -> None:
        count = len(flat.parameters)
        head = -(-count // ALIGNMENT) * ALIGNMENT
        size = flat.size * flat.dtype.itemsize
        self.window = comm.window(head + size)
        self.sums = comm.window(size if comm.local_rank == 0 else 0)
        self.total = self.sums.parts[0][:size].view(flat.dtype)
        self.parts = [part[head : head + size].view(flat.dtype) for part in self.window.parts]
        self.flags = [part[:count] for part in self.window.parts]
        own = self.window.local_rank
        super().__init__(flat, self.parts[own], self.flags[own])
        lines = flat.size // (ALIGNMENT // flat.dtype.itemsize)
        cut = [lines * i // comm.local_size * (ALIGNMENT // flat.dtype.itemsize) for i in (own, own + 1)]
        self.blocks = [
            ([part[at : min(at + BLOCK, cut[1])] for part in self.parts], self.total[at : min(at + BLOCK, cut[1])])
            for at in range(cut[0], cut[1], BLOCK)
        ]

    def end(self) -> None:
        self.note_used()
        self.window.barrier()
        used = np.bitwise_or.reduce(self.flags)
        for (first, second, *others), total in self.blocks:
            np.add(first, second, out=total)
            for part in others:
                total += part
        self.window.barrier()
        self.hand_over(self.total, used)


class ByMessage(_Shared):
    """Ranks of several hosts: an all-reduce of the whole array."""

    def __init__(self, flat: Flat, comm: Comm) -> None:
        super().__init__(flat, np.zeros(flat.size, flat.dtype), np.zeros(len(flat.parameters), np.uint8))
        self.comm = comm

    def end(self) -> None:
        self.note_used()
        # Afterwards both hold what all ranks did, so that the next step clears what others have left here.
        self.comm.all_reduce(self.used, "max").wait()
        self.comm.all_reduce(self.local).wait()
        self.hand_over(self.local, self.used)
