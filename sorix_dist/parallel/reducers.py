"""Reducers: they sum the gradients of all ranks and write the sum to `grad` on every rank; and buckets, the parameters
that one reducer is for."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import unwrap
from math import isfinite, prod
from typing import TYPE_CHECKING, Literal
from weakref import ref
from zlib import crc32

import numpy as np

from sorix_dist.core.flat import BLOCK, Flat, leaf_of, within
from sorix_dist.core.graph import Accumulator, Leaf, through
from sorix_dist.core.memory import PRIVATE
from sorix_dist.core.tensor import Array

if TYPE_CHECKING:
    from sorix_dist.parallel.coordinator import Coordinator

NonFinite = Literal["raise", "skip", "allow"]
PRIVATE_GRADIENTS, OVERWRITE = 0, 1  # see `Bucket.reduce_mode`


class GradientBuffer:
    """An array to which backwards write gradients.

    flags: one byte per parameter: 0 if its part of the array is zeros.
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
        """Makes the next backward overwrite the gradients."""
        for accumulator in self.accumulators:
            accumulator.written = False

    def discard(self, i: int) -> None:
        """Discards the gradient of a parameter."""
        # The flag makes `finish` clear it, even if an interrupted rule has written without setting `written`.
        self.flags[i] = True
        self.accumulators[i].written = False

    def finish(self) -> bool:
        """Zeroes the gradients that no backward has written; returns whether one was written."""
        written = bytes([accumulator.written for accumulator in self.accumulators])
        if self.flags.tobytes() != written:
            # The array starts as zeros, and the zeros of an earlier step are still there.
            for i, view in enumerate(self.views):
                if self.flags[i] and not written[i]:
                    view[...] = 0
            self.flags[:] = written
        return True in written


class Reducer:
    """Sums the gradients of one flat storage over the ranks. `reduce` and `commit` are calls of all ranks.

    Backwards write to buffers, not to `grad`. Hooks of a parameter get the sum before it is added to `grad`.

    buffers: of backwards, initially the first one is selected; used: flags of the parameters that a backward of any
    rank has reached; total: the sum. overlaps: whether gradients are sent during the backward; withdrawn: whether
    sent gradients are invalid.
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
        """Makes the next backwards write to a staging buffer instead of `grad`, until `commit`."""

    def select(self, shard: int | None) -> None:
        """Makes backwards write to the buffer of a virtual shard, or for None to that of no shard."""

    def begin_backward(self, last: bool) -> None:
        """Prepares the buffers. last: only one backward comes before the sum."""
        for buffer in self.buffers:
            buffer.begin()

    def send_complete(self) -> None:
        """Sends complete gradients, as far as that needs no waiting. Only if it `overlaps`."""

    def end_backward(self) -> bool:
        """Prepares the buffers for the sum; returns whether a backward has reached any of the parameters."""
        reached = False
        for buffer in self.buffers:
            reached = buffer.finish() or reached
        return reached

    def used_digest(self) -> int:
        """A digest of the parameters that this rank has reached; 0 if the others see these in shared memory."""
        return 0

    def reset(self) -> None:
        """Discards the gradients of all backwards."""
        for buffer in self.buffers:
            for i in range(len(self.leaves)):
                buffer.discard(i)

    def discard(self, leaf: Leaf) -> None:
        """Discards the gradient of one leaf."""
        if leaf in self.leaves:
            for buffer in self.buffers:
                buffer.discard(self.leaves.index(leaf))

    def reduce(self, overwrite: bool, same_used: bool, start_over: bool = False) -> None:
        """Sums over the ranks, after all have agreed.

        overwrite: the unscaled sum replaces `grad`; same_used: every rank has the same `used_digest`; start_over: a
        rank has `withdrawn` the gradients that it sent.
        """
        raise NotImplementedError

    def is_finite(self) -> bool:
        """Whether this rank's slice of the sum has neither NaN nor infinity."""
        return all(is_finite(self.total[at : at + BLOCK]) for at in range(0, self.total.size, BLOCK))

    def first_not_finite(self) -> tuple[int, str] | None:
        """The index of the first parameter whose gradient on this rank is not finite, and the value."""
        found = (first_not_finite(buffer.views) for buffer in self.buffers)
        return next((each for each in found if each is not None), None)

    def commit(self, scale: float) -> bool:
        """Adds the sum, times `scale`, to `grad`, after all ranks have summed; returns whether the ranks of a host must
        wait for each other's slices."""
        if self.total is self.flat.grad:
            for leaf, used in zip(self.leaves, self.used, strict=True):
                if used:
                    leaf.total.written = True
            return False
        own = self.flat.own
        parts = self._through_hooks(scale)
        runs: list[tuple[int, int, bool]] = []
        for leaf, start, end, used in zip(
            self.leaves, self.flat.starts, [*self.flat.starts[1:], self.flat.size], self.used, strict=True
        ):
            if not used:
                continue
            adding = leaf.total.written
            leaf.total.written = True
            if (part := parts.get(leaf)) is not None:
                here = within(start, start + part.size, own)
                _add(self.flat.grad[here], part[here.start - start : here.stop - start], adding, 1.0)
            elif runs and runs[-1][1] == start and runs[-1][2] == adding:
                runs[-1] = (runs[-1][0], end, adding)
            else:
                runs.append((start, end, adding))
        for start, end, adding in runs:
            here = within(start, end, own)
            _add(self.flat.grad[here], self.total[here], adding, scale)
        return self.flat.memory is not PRIVATE

    def _through_hooks(self, scale: float) -> dict[Leaf, Array]:
        """What the hooks of parameters make of their sums, in the order in which the backward has reached them."""
        hooked = [i for i, leaf in enumerate(self.leaves) if leaf.hooks and self.used[i]]
        parts: dict[Leaf, Array] = {}
        for i in sorted(hooked, key=lambda i: self.leaves[i].turn):
            leaf, start = self.leaves[i], self.flat.starts[i]
            total = self.total[start : start + prod(leaf.shape)].reshape(leaf.shape) * scale
            parts[leaf] = through(leaf.hooks or [], total).reshape(-1)
        return parts


def _add(grad: Array, part: Array, adding: bool, scale: float) -> None:
    if adding:
        grad += part if scale == 1 else part * scale
    else:
        np.multiply(part, scale, out=grad)


class Bucket:
    """The parameters of one dtype of a wrapped model, whose gradients are reduced together. They keep it alive.

    wrapper: refers to the wrapped model, or to LocalSGD; names: of the parameters; nonfinite: what happens to gradients
    that are not finite; number: the same on all ranks.
    """

    number: int
    reducer: Reducer

    def __init__(self, wrapper: object, coordinator: Coordinator, flat: Flat, names: list[str], nonfinite: NonFinite):
        self.wrapper = ref(wrapper)
        self.coordinator = coordinator
        self.flat = flat
        self.leaves = [leaf_of(parameter) for parameter in flat.parameters]
        self.names = names
        self.nonfinite = nonfinite

    def release(self) -> None:
        """Makes the parameters ordinary ones again."""
        self.flat.thaw()
        self.coordinator.remove(self)

    def reduce_mode(self) -> int:
        """How to add the sum to `grad`; it must be the same on all ranks that share memory.

        PRIVATE_GRADIENTS: not shared; each rank has private gradients. OVERWRITE: no `grad` to add to, and no hook.
        Else a digest of the parameters with a `grad` or a hook.
        """
        if not self.flat.frozen or self.coordinator.comm.size == 1:
            return PRIVATE_GRADIENTS
        for leaf in self.leaves:
            if leaf.total.written or leaf.hooks:
                return crc32(bytes([leaf.total.written + 2 * bool(leaf.hooks) for leaf in self.leaves])) + 2
        return OVERWRITE


def used_by_any(flags: Sequence[memoryview]) -> bytes:
    """The flags of the parameters with a gradient in any of the buffers that have these flags."""
    first = flags[0].tobytes()
    for other in flags:
        if other.tobytes() != first:
            return bytes(np.bitwise_or.reduce([np.frombuffer(each, np.uint8) for each in flags]))
    return first


_vdot = unwrap(np.vdot)  # without the look at other types of arrays, which takes as long as the sum of a small one


def is_finite(array: Array) -> bool:
    """Whether a one-dimensional array has neither NaN nor infinity."""
    # Unlike dot, vdot does not warn of an overflow. float16 has no BLAS, and overflows soon.
    if array.dtype.itemsize > 2 and isfinite(_vdot(array, array)):
        return True
    return bool(np.isfinite(array).all())


def first_not_finite(views: Sequence[Array]) -> tuple[int, str] | None:
    """The index of the first array with a NaN or an infinity, and that value."""
    for i, view in enumerate(views):
        wrong = view[~np.isfinite(view)]
        if wrong.size:
            return i, str(wrong[0])
    return None
