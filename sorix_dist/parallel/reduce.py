"""How the local gradients of the ranks become their sum, which every rank shows as `grad`."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, prod
from typing import Protocol

import numpy as np

from sorix_dist.comm import Comm
from sorix_dist.core.flat import BLOCK, Flat, gradients, leaf_of, within
from sorix_dist.core.graph import Accumulator, Leaf, through
from sorix_dist.core.home import PRIVATE
from sorix_dist.core.tensor import Array


class Reducer(Protocol):
    """Sums the gradients of one flat storage over the ranks, in steps that all ranks take together."""

    def hold(self) -> None:
        """Is told that the next backwards shall be kept apart from what the parameters show, up to `hand_over`."""

    def select(self, shard: int | None) -> None:
        """Makes backwards write where the gradient of a virtual shard is collected (None: of none of them)."""

    def begin(self, last: bool) -> None:
        """Gets the place ready that a backward writes to; `last`: it is the only one before the sum."""

    def failed(self) -> None:
        """Forgets what backwards have written: it must not get into the next sum."""

    def forget(self, leaf: Leaf) -> None:
        """Forgets what backwards have written for one leaf."""

    def prepare(self) -> bool:
        """Makes the local gradients ready to be read by others; whether backwards reached any of them."""

    def sum(self, plain: bool) -> None:
        """Sums over the ranks, when all of them are prepared.

        plain: whether the sum, as it is, is to take the place of what the parameters show as `grad`.
        """

    def finite(self) -> bool:
        """Whether what this rank has summed is free of NaN and infinity."""

    def first_not_finite(self) -> tuple[int, str] | None:
        """The first parameter whose gradient of this rank is not finite, by its number, and what it holds."""

    def hand_over(self, scale: float) -> bool:
        """Adds the sum, times `scale`, to what the parameters show as `grad`, when all ranks have summed; whether the
        ranks of a host have to wait for each other's part of that."""


class Slot:
    """An array that backwards write gradients to.

    flags: one byte per parameter, whether its part of the array holds more than zeros.
    """

    def __init__(self, flat: Flat, leaves: list[Leaf], array: Array, flags: memoryview) -> None:
        self.array, self.flags, self.leaves = array, flags, leaves
        self.views = flat.views(array)
        self.places = [Accumulator(view) for view in self.views]

    def select(self) -> None:
        for leaf, place in zip(self.leaves, self.places, strict=True):
            leaf.local = place

    def begin(self) -> None:
        for place in self.places:
            place.written = False

    def forget(self, i: int) -> None:
        # To be cleared before the next sum: also where a rule was interrupted before it could say that it has written.
        self.flags[i] = True
        self.places[i].written = False

    def prepare(self) -> bool:
        """Makes zeros of what was not written; whether anything was."""
        written = bytes([place.written for place in self.places])
        if self.flags != written:
            # The array starts as zeros, and the zeros of an earlier step are still there.
            for i, view in enumerate(self.views):
                if self.flags[i] and not written[i]:
                    view[...] = 0
            self.flags[:] = written
        return any(written)


class Apart:
    """What all ways to sum have in common: local arrays beside `grad`, and which parameters were used.

    The hooks of a parameter see the sum, before it is added to what the parameter shows.
    slots: where backwards write, the first one at first; used: whether a backward of any rank reached a parameter;
    total: where the sum comes to be.
    """

    slots: list[Slot]
    used: bytes
    total: Array

    def __init__(self, flat: Flat) -> None:
        self.flat = flat
        self.leaves = [leaf_of(parameter) for parameter in flat.parameters]

    def hold(self) -> None:
        return None

    def select(self, shard: int | None) -> None:
        return None

    def begin(self, last: bool) -> None:
        for slot in self.slots:
            slot.begin()

    def failed(self) -> None:
        for slot in self.slots:
            for i in range(len(self.leaves)):
                slot.forget(i)

    def forget(self, leaf: Leaf) -> None:
        if leaf in self.leaves:
            for slot in self.slots:
                slot.forget(self.leaves.index(leaf))

    def prepare(self) -> bool:
        return any([slot.prepare() for slot in self.slots])  # noqa: C419 (each of them is to be prepared)

    def finite(self) -> bool:
        return all(is_finite(self.total[at : at + BLOCK]) for at in range(0, self.total.size, BLOCK))

    def first_not_finite(self) -> tuple[int, str] | None:
        found = (_not_finite(slot.views) for slot in self.slots)
        return next((each for each in found if each is not None), None)

    def hand_over(self, scale: float) -> bool:
        if self.total is self.flat.grad:  # where the parameters show it already
            for leaf, used in zip(self.leaves, self.used, strict=True):
                if used:
                    leaf.total.written = True
            return False
        own = self.flat.own
        runs: list[tuple[int, int, bool]] = []
        for leaf, start, end, used in zip(
            self.leaves, self.flat.starts, [*self.flat.starts[1:], self.flat.size], self.used, strict=True
        ):
            if not used:
                continue
            adding = leaf.total.written
            leaf.total.written = True
            if leaf.hooks:
                shape, size = leaf.shape, prod(leaf.shape)
                part = through(leaf.hooks, self.total[start : start + size].reshape(shape) * scale).reshape(-1)
                here = within(start, start + size, own)
                _add(self.flat.grad[here], part[here.start - start : here.stop - start], adding, 1.0)
            elif runs and runs[-1][1] == start and runs[-1][2] == adding:
                runs[-1] = (runs[-1][0], end, adding)
            else:
                runs.append((start, end, adding))
        for start, end, adding in runs:
            here = within(start, end, own)
            _add(self.flat.grad[here], self.total[here], adding, scale)
        return self.flat.home is not PRIVATE


def _add(grad: Array, part: Array, adding: bool, scale: float) -> None:
    if adding:
        grad += part if scale == 1 else part * scale
    elif scale == 1:
        np.copyto(grad, part)
    else:
        np.multiply(part, scale, out=grad)


class ByMessage(Apart):
    """One rank on each of several hosts, or one alone: an all-reduce of the whole array."""

    def __init__(self, flat: Flat, comm: Comm) -> None:
        super().__init__(flat)
        self.comm = comm
        self.total = PRIVATE.zeros(flat.size, flat.dtype)
        self.flags = np.zeros(len(flat.parameters), np.uint8)
        self.slots = [Slot(flat, self.leaves, self.total, self.flags.data)]
        self.slots[0].select()
        self.wrong: tuple[int, str] | None = None

    def sum(self, plain: bool) -> None:
        # Found now, because the sum takes the place of this rank's gradients.
        self.wrong = None if is_finite(self.total) else _not_finite(self.slots[0].views)
        # Afterwards flags and array hold what all ranks did, so that the next step clears what others have left here.
        self.comm.all_reduce(self.flags, "max")
        self.used = self.flags.tobytes()
        self.all_reduce()

    def all_reduce(self) -> None:
        """Sums the array over the ranks."""
        self.comm.all_reduce(self.total)

    def first_not_finite(self) -> tuple[int, str] | None:
        return self.wrong


class Alone:
    """One rank: a backward writes straight into the gradient that the parameters show, unless it is to be held, or
    something is there already, from which it could not be told."""

    def __init__(self, flat: Flat, comm: Comm) -> None:
        self.flat, self.comm = flat, comm
        self.leaves = [leaf_of(parameter) for parameter in flat.parameters]
        self.apart: ByMessage | None = None
        self.held = False
        self.whole = False  # whether there is a gradient of every parameter

    def hold(self) -> None:
        if self.held:
            return
        if self.apart is None:
            self.apart = ByMessage(self.flat, self.comm)
        self.apart.slots[0].select()
        self.apart.begin(False)
        self.held = True

    def select(self, shard: int | None) -> None:
        return None

    def begin(self, last: bool) -> None:
        if True in [leaf.total.written for leaf in self.leaves]:
            self.hold()

    def failed(self) -> None:
        if self.apart is not None and self.held:
            self.apart.failed()
            self._release()
            return
        for leaf in self.leaves:
            leaf.zero()

    def forget(self, leaf: Leaf) -> None:
        if self.apart is not None and self.held:
            self.apart.forget(leaf)

    def prepare(self) -> bool:
        if self.apart is not None and self.held:
            reached = self.apart.prepare()
            if not reached:
                self._release()
            return reached
        written = [leaf.total.written for leaf in self.leaves]
        self.whole = False not in written
        return True in written

    def sum(self, plain: bool) -> None:
        if self.apart is not None and self.held:
            self.apart.used = self.apart.flags.tobytes()

    def finite(self) -> bool:
        if self.apart is not None and self.held:
            return self.apart.finite()
        if self.whole:
            return is_finite(self.flat.grad)
        return all(is_finite(array) for array in gradients(self.flat.parameters))

    def first_not_finite(self) -> tuple[int, str] | None:
        if self.apart is not None and self.held:
            return _not_finite(self.apart.slots[0].views)
        return _not_finite([p.grad.array if p.grad is not None else np.zeros(0) for p in self.flat.parameters])

    def hand_over(self, scale: float) -> bool:
        if self.apart is not None and self.held:
            self._release()
            self.apart.hand_over(scale)
        return False

    def _release(self) -> None:
        self.held = False
        for leaf in self.leaves:
            leaf.local = leaf.total


def used_by_any(flags: Sequence[memoryview]) -> bytes:
    """Which parameters any of the slots with these flags has a gradient of."""
    first = bytes(flags[0])
    if all([other == first for other in flags]):  # noqa: C419 (faster)
        return first
    return bytes(np.bitwise_or.reduce([np.frombuffer(each, np.uint8) for each in flags]))


def used_on_any_rank(comm: Comm, flags: bytes | memoryview) -> bytes:
    """Which parameters any rank has a gradient of. Called by every rank."""
    used = np.frombuffer(flags, np.uint8).copy()
    comm.all_reduce(used, "max")
    return used.tobytes()


def is_finite(array: Array) -> bool:
    """Whether a one-dimensional array holds neither NaN nor infinity."""
    # Other than dot, vdot warns of no overflow. float16 has no BLAS, and overflows soon.
    if array.dtype.itemsize > 2 and isfinite(np.vdot(array, array)):
        return True
    return bool(np.isfinite(array).all())


def _not_finite(views: list[Array]) -> tuple[int, str] | None:
    for i, view in enumerate(views):
        wrong = view[~np.isfinite(view)]
        if wrong.size:
            return i, str(wrong[0])
    return None
