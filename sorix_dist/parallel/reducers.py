"""Reducers: how the gradients that each rank computes become their sum, which every rank shows as `grad`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite, prod
from zlib import crc32

import numpy as np

from sorix_dist.comm import Comm
from sorix_dist.core.flat import BLOCK, Flat, gradients, leaf_of, within
from sorix_dist.core.graph import Accumulator, Leaf, through
from sorix_dist.core.memory import PRIVATE
from sorix_dist.core.tensor import Array

Hook = Callable[[Comm, Array], None]
"""Gets a communicator and one-dimensional gradients, and replaces these by their sum over the communicator's ranks.

The ranks are all of them or, where there are several on each host, those that own the same slice of their host's sum.
Every rank calls it, once for each dtype of parameters. Zeros fill the gap between a parameter's gradient and the next
cache line.
"""


class GradientBuffer:
    """An array that backwards write gradients to.

    flags: one byte per parameter, whether its part of the array holds more than zeros.
    """

    def __init__(self, flat: Flat, leaves: list[Leaf], array: Array, flags: memoryview) -> None:
        self.array, self.flags, self.leaves = array, flags, leaves
        self.views = flat.views(array)
        self.accumulators = [Accumulator(view) for view in self.views]

    def select(self) -> None:
        """Makes backwards write here."""
        for leaf, accumulator in zip(self.leaves, self.accumulators, strict=True):
            leaf.local = accumulator

    def begin(self) -> None:
        """Makes the next backward overwrite what is here."""
        for accumulator in self.accumulators:
            accumulator.written = False

    def discard(self, i: int) -> None:
        """Drops the gradient of a parameter."""
        # The flag makes `finish` clear it, also where an interrupted rule had no chance to say that it has written.
        self.flags[i] = True
        self.accumulators[i].written = False

    def finish(self) -> bool:
        """Clears what no backward has written; whether any has written something."""
        written = bytes([accumulator.written for accumulator in self.accumulators])
        if self.flags != written:
            # The array starts as zeros, and the zeros of an earlier step are still there.
            for i, view in enumerate(self.views):
                if self.flags[i] and not written[i]:
                    view[...] = 0
            self.flags[:] = written
        return any(written)

    def first_not_finite(self) -> tuple[int, str] | None:
        """The first parameter whose gradient is not finite, by its number, and what it holds."""
        return first_not_finite(self.views)


class Reducer:
    """Sums the gradients of one flat storage over the ranks, in steps that all ranks take together.

    Backwards write to buffers beside `grad`. Hooks of a parameter see the sum, before it is added to `grad`.

    buffers: where backwards write, the first one at first; used: flags of the parameters that a backward of any rank
    has reached; total: the sum. overlaps: whether gradients are sent while the backward goes on; withdrawn: whether
    what was sent does not count.
    """

    buffers: list[GradientBuffer]
    used: bytes
    total: Array
    overlaps = False
    withdrawn = False

    def __init__(self, flat: Flat) -> None:
        self.flat = flat
        self.leaves = [leaf_of(parameter) for parameter in flat.parameters]

    def stage(self) -> None:
        """Keeps the next backwards out of `grad` until `commit`."""

    def select(self, shard: int | None) -> None:
        """Makes backwards write to the buffer of a virtual shard, or to that of no shard."""

    def begin_backward(self, last: bool) -> None:
        """Prepares the buffers. last: only one backward comes before the sum."""
        for buffer in self.buffers:
            buffer.begin()

    def send_complete(self) -> None:
        """Sends what can be sent without waiting of the gradients that are complete so far. Only if it `overlaps`."""

    def end_backward(self) -> bool:
        """Makes the buffers ready for the sum; whether a backward has reached any of the parameters."""
        return any([buffer.finish() for buffer in self.buffers])  # noqa: C419 (all of them must finish)

    def used_digest(self) -> int:
        """A digest of which parameters this rank has reached, where the others can't see it in shared memory."""
        return 0

    def reset(self) -> None:
        """Drops what backwards have written."""
        for buffer in self.buffers:
            for i in range(len(self.leaves)):
                buffer.discard(i)

    def discard(self, leaf: Leaf) -> None:
        """Drops what backwards have written for one leaf."""
        if leaf in self.leaves:
            for buffer in self.buffers:
                buffer.discard(self.leaves.index(leaf))

    def reduce(self, overwrite: bool, same_used: bool, start_over: bool = False) -> None:
        """Sums over the ranks, after all have agreed.

        overwrite: the sum, as it is, replaces what the parameters show; same_used: every rank has the same
        `used_digest`; start_over: some rank's has `withdrawn` what it sent.
        """
        raise NotImplementedError

    def is_finite(self) -> bool:
        """Whether what this rank has summed is free of NaN and infinity."""
        return all(is_finite(self.total[at : at + BLOCK]) for at in range(0, self.total.size, BLOCK))

    def first_not_finite(self) -> tuple[int, str] | None:
        """The first parameter whose gradient of this rank is not finite, by its number, and what it holds."""
        found = (buffer.first_not_finite() for buffer in self.buffers)
        return next((each for each in found if each is not None), None)

    def commit(self, scale: float) -> bool:
        """Adds the sum, times `scale`, to what the parameters show, after all ranks have summed; whether the ranks of a
        host must wait for each other's part of that."""
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
        return self.flat.memory is not PRIVATE


def _add(grad: Array, part: Array, adding: bool, scale: float) -> None:
    if adding:
        grad += part if scale == 1 else part * scale
    elif scale == 1:
        np.copyto(grad, part)
    else:
        np.multiply(part, scale, out=grad)


class LocalReducer(Reducer):
    """One rank: a backward writes straight into the gradient that the parameters show, unless it is to be staged, or
    something is there already, from which it could not be told."""

    def __init__(self, flat: Flat) -> None:
        super().__init__(flat)
        self.buffers = []  # or the staging buffer
        self._staging: GradientBuffer | None = None
        self._whole = False  # whether there is a gradient of every parameter

    def stage(self) -> None:
        if self.buffers:
            return
        if self._staging is None:
            self.total = PRIVATE.zeros(self.flat.size, self.flat.dtype)
            flags = memoryview(bytearray(len(self.leaves)))
            self._staging = GradientBuffer(self.flat, self.leaves, self.total, flags)
        self._staging.begin()
        self._staging.select()
        self.buffers = [self._staging]

    def begin_backward(self, last: bool) -> None:
        if True in [leaf.total.written for leaf in self.leaves]:
            self.stage()

    def end_backward(self) -> bool:
        if self.buffers:
            reached = super().end_backward()
            if not reached:
                self._show_total()
            return reached
        written = [leaf.total.written for leaf in self.leaves]
        self._whole = False not in written
        return True in written

    def reset(self) -> None:
        if self.buffers:
            super().reset()
            self._show_total()
            return
        for leaf in self.leaves:
            leaf.zero()

    def reduce(self, overwrite: bool, same_used: bool, start_over: bool = False) -> None:
        if self.buffers:
            self.used = bytes(self.buffers[0].flags)

    def is_finite(self) -> bool:
        if self.buffers:
            return super().is_finite()
        if self._whole:
            return is_finite(self.flat.grad)
        return all(is_finite(array) for array in gradients(self.flat.parameters))

    def first_not_finite(self) -> tuple[int, str] | None:
        if self.buffers:
            return super().first_not_finite()
        return first_not_finite([p.grad.array if p.grad is not None else np.zeros(0) for p in self.flat.parameters])

    def commit(self, scale: float) -> bool:
        if self.buffers:
            self._show_total()
            super().commit(scale)
        return False

    def _show_total(self) -> None:
        self.buffers = []
        for leaf in self.leaves:
            leaf.local = leaf.total


class HookReducer(Reducer):
    """What a hook does in place of an all-reduce of the whole array."""

    def __init__(self, flat: Flat, comm: Comm, hook: Hook) -> None:
        super().__init__(flat)
        self.comm, self.hook = comm, hook
        self.total = PRIVATE.zeros(flat.size, flat.dtype)
        self.flags = np.zeros(len(flat.parameters), np.uint8)
        self.buffers = [GradientBuffer(flat, self.leaves, self.total, self.flags.data)]
        self.buffers[0].select()
        self._wrong: tuple[int, str] | None = None

    def used_digest(self) -> int:
        return crc32(self.flags.data)

    def reduce(self, overwrite: bool, same_used: bool, start_over: bool = False) -> None:
        # Found now, because the sum takes the place of this rank's gradients.
        self._wrong = None if is_finite(self.total) else self.buffers[0].first_not_finite()
        # Flags and array then hold what all ranks have done, so the next step clears what others have left here.
        if not same_used:
            self.comm.all_reduce(self.flags, "max")
        self.used = self.flags.tobytes()
        self.hook(self.comm, self.total)
        self.flat.clear_gaps(self.total, slice(0, self.flat.size))

    def first_not_finite(self) -> tuple[int, str] | None:
        return self._wrong


def used_by_any(flags: Sequence[memoryview]) -> bytes:
    """The parameters that any of the buffers with these flags has a gradient of."""
    first = bytes(flags[0])
    if all([other == first for other in flags]):  # noqa: C419 (faster)
        return first
    return bytes(np.bitwise_or.reduce([np.frombuffer(each, np.uint8) for each in flags]))


def used_on_any_rank(comm: Comm, flags: bytes | memoryview, same_used: bool) -> bytes:
    """The parameters that any rank has a gradient of. A call of every rank, with the same `same_used`."""
    used = np.frombuffer(flags, np.uint8).copy()
    if not same_used:
        comm.all_reduce(used, "max")
    return used.tobytes()


def is_finite(array: Array) -> bool:
    """Whether a one-dimensional array holds neither NaN nor infinity."""
    # Other than dot, vdot warns of no overflow. float16 has no BLAS, and overflows soon.
    if array.dtype.itemsize > 2 and isfinite(np.vdot(array, array)):
        return True
    return bool(np.isfinite(array).all())


def first_not_finite(views: Sequence[Array]) -> tuple[int, str] | None:
    """The first array that holds NaN or infinity, by its number, and what it holds."""
    for i, view in enumerate(views):
        wrong = view[~np.isfinite(view)]
        if wrong.size:
            return i, str(wrong[0])
    return None
