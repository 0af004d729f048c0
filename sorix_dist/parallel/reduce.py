"""How the local gradients of the ranks become their sum, which every rank shows as `grad`."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from sorix_dist.comm import Comm, Window
from sorix_dist.core.flat import ALIGNMENT, Flat, leaf_of
from sorix_dist.core.graph import through
from sorix_dist.core.tensor import Array

BLOCK = 1 << 15  # elements that are summed at a time, so that they stay in the cache


class Reducer(Protocol):
    """Sums the gradients of one flat storage over the ranks, in steps that all ranks take together.

    windows: the shared memory that it needs, for its owner to close when nobody uses it any more.
    """

    windows: tuple[Window, ...]

    def begin(self) -> None:
        """Gets the place ready that a backward writes to."""

    def failed(self) -> None:
        """Is told that the backward has raised: what it wrote must not get into the next sum."""

    def prepare(self) -> bool:
        """Makes the local gradients ready to be read by others; whether the backward reached any of them."""

    def sum(self) -> None:
        """Sums over the ranks, when all of them are prepared."""

    def hand_over(self) -> None:
        """Adds the sum to what the parameters show as `grad`, when all ranks have summed."""


def reducer(flat: Flat, comm: Comm) -> Reducer:
    """The way to sum that fits the communicator: nothing alone, memory on one host, else messages."""
    if comm.size == 1:
        return Alone()
    return ByWindow(flat, comm) if comm.hosts == 1 else ByMessage(flat, comm)


class Alone:
    """One rank: a backward writes straight into the gradient that the parameters show."""

    windows: tuple[Window, ...] = ()

    def begin(self) -> None:
        return None

    def failed(self) -> None:
        return None

    def prepare(self) -> bool:
        return False

    def sum(self) -> None:
        return None

    def hand_over(self) -> None:
        return None


class _Shared:
    """What both other ways have in common: a local array beside `grad`, and which parameters were used.

    The hooks of a parameter see the sum, before it is added to what the parameter shows.
    flags: one byte per parameter, whether a backward of this rank reached it; used: whether that of any rank did.
    """

    windows: tuple[Window, ...] = ()

    def __init__(self, flat: Flat, local: Array, flags: Array) -> None:
        self.flat = flat
        self.local = local
        self.flags = flags
        self.used = flags
        self.total = local
        flat.localize(local)
        self.leaves = [leaf_of(parameter) for parameter in flat.parameters]
        self.views = flat.views(local)

    def begin(self) -> None:
        for leaf in self.leaves:
            leaf.local.written = False

    def failed(self) -> None:
        for i, leaf in enumerate(self.leaves):
            self.flags[i] |= leaf.local.written  # to be cleared before the next sum

    def prepare(self) -> bool:
        for i, (leaf, view) in enumerate(zip(self.leaves, self.views, strict=True)):
            # Both arrays start as zeros, and the zeros of an earlier step are still there.
            if not leaf.local.written and self.flags[i]:
                view[...] = 0
            self.flags[i] = leaf.local.written
        return bool(self.flags.any())

    def hand_over(self) -> None:
        runs: list[tuple[int, int, bool]] = []
        for leaf, start, end, used in zip(
            self.leaves, self.flat.starts, [*self.flat.starts[1:], self.flat.size], self.used, strict=True
        ):
            if not used:
                continue
            adding = leaf.total.written
            leaf.total.written = True
            if leaf.hooks:
                place = leaf.total.place(leaf)
                part = self.total[start : start + place.size].reshape(leaf.shape)
                self._add(place, through(leaf.hooks, part.copy()), adding)
                continue
            if runs and runs[-1][1] == start and runs[-1][2] == adding:
                runs[-1] = (runs[-1][0], end, adding)
            else:
                runs.append((start, end, adding))
        for start, end, adding in runs:
            self._add(self.flat.grad[start:end], self.total[start:end], adding)

    @staticmethod
    def _add(grad: Array, part: Array, adding: bool) -> None:
        if adding:
            grad += part
        else:
            np.copyto(grad, part)


class ByWindow(_Shared):
    """Ranks of one host: each writes its gradients into its own part of a shared window, sums its slice of
    all parts into a shared total, in rank order, and copies the total."""

    def __init__(self, flat: Flat, comm: Comm) -> None:
        count = len(flat.parameters)
        head = -(-count // ALIGNMENT) * ALIGNMENT
        size = flat.size * flat.dtype.itemsize
        window = comm.window(head + size)
        own = window.local_rank
        parts = [part[head : head + size].view(flat.dtype) for part in window.parts]
        self.all_flags = [part[:count] for part in window.parts]
        super().__init__(flat, parts[own], self.all_flags[own])
        sums = comm.window(size if own == 0 else 0)
        self.windows = (window, sums)
        self.total = sums.parts[0][:size].view(flat.dtype)
        line = ALIGNMENT // flat.dtype.itemsize
        first, end = (flat.size // line * i // comm.local_size * line for i in (own, own + 1))
        blocks = [slice(at, min(at + BLOCK, end)) for at in range(first, end, BLOCK)]
        self.blocks = [([part[block] for part in parts], self.total[block]) for block in blocks]

    def sum(self) -> None:
        self.used = np.bitwise_or.reduce(self.all_flags)
        for (first, second, *others), total in self.blocks:
            np.add(first, second, out=total)
            for part in others:
                total += part


class ByMessage(_Shared):
    """Ranks of several hosts: an all-reduce of the whole array."""

    def __init__(self, flat: Flat, comm: Comm) -> None:
        super().__init__(flat, np.zeros(flat.size, flat.dtype), np.zeros(len(flat.parameters), np.uint8))
        self.comm = comm

    def sum(self) -> None:
        # Afterwards flags and array hold what all ranks did, so that the next step clears what others have left here.
        self.comm.all_reduce(self.flags, "max").wait()
        self.comm.all_reduce(self.local).wait()
