"""Communication hooks, which replace the all-reduce of gradients, for instance by a compressed one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from sorix_dist.comm import Comm, Exchange, agreed
from sorix_dist.core.tensor import Array
from sorix_dist.parallel.power_sgd import PowerSGD as PowerSGD
from sorix_dist.parallel.reducers import Hook, is_finite

LARGEST = 60_000.0
"""The largest sum in float16: a little below the largest float16, because the terms are rounded."""

ALIGNED = np.float32(2.0**-112)
"""Shifts the exponents of float32 to those of float16."""
FEW = 1024
"""Gradients that `TopK` does not choose from: a message of all of them takes no longer."""


class Half:
    """Sends float16, scaled per message by a power of two that keeps the maximum from overflowing; the scale is sent
    too. A scale of 0: the numbers are not scaled, because some are not finite.

    It converts by operations on bits, three times as fast as NumPy, with the same result but for the last bit of some
    subnormal numbers: times 2**-112, a float32 has its exponent where the float16 has it, but for a shift by 13 bits.
    """

    itemsize: int | None = 2

    def __init__(self) -> None:
        self._scratch = np.empty((2, 0), np.int32)

    def pack(self, numbers: Array, body: Array, spare: float = 1.0) -> float:
        """See `Wire`. spare: a power of two by which the largest number stays below the largest float16."""
        half, size = body.view(np.float16), size_of(numbers)
        if size == math.inf:
            with np.errstate(over="ignore"):
                np.copyto(half, numbers, casting="same_kind")
            return 0.0
        scale = scale_of(size * spare)
        bits, rounded = self._integers(numbers.size)
        floats = _scaled(numbers, scale, bits.view(np.float32))
        floats *= ALIGNED
        # Round to the nearest, or to the even one of two; then the sign, from bit 18 to bit 15.
        np.right_shift(bits, 13, out=rounded)
        rounded &= 1
        rounded += bits
        rounded += 0xFFF
        rounded >>= 13
        np.right_shift(rounded, 3, out=bits)
        bits &= 0x8000
        rounded |= bits
        np.copyto(half.view(np.int16), rounded, casting="unsafe")
        return scale

    def add(self, body: Array, scale: float, numbers: Array) -> float:
        total = np.empty(numbers.size, np.promote_types(numbers.dtype, np.float32))
        self.unpack(body, scale, total)
        with np.errstate(over="ignore", invalid="ignore"):
            total += numbers
        return self.pack(total, body)

    def unpack(self, body: Array, scale: float, out: Array) -> None:
        half = body.view(np.float16)
        if scale == 0:
            np.copyto(out, half, casting="same_kind")
            return
        bits, _ = self._integers(half.size)
        np.left_shift(half.view(np.int16), 13, out=bits, dtype=np.int32)
        bits &= ~(7 << 28)  # copies of the sign
        floats = bits.view(np.float32)
        floats *= 1 / ALIGNED
        with np.errstate(over="ignore"):
            _scaled(floats, 1 / scale, out)

    def _integers(self, count: int) -> Array:
        """Two scratch arrays of `count` int32 each."""
        if self._scratch.shape[1] < count:
            self._scratch = np.empty((2, count), np.int32)
        return self._scratch[:, :count]


def fp16_compress(comm: Comm, gradients: Array) -> None:
    """Sums gradients in half the bytes: they are sent as float16 and added in float32. See `register_comm_hook`.

    Before, they are scaled by a power of two, so that the largest just fits. There is one scale for all gradients of
    all ranks; between hosts, one for at most 30,720 gradients.
    Each gradient is rounded to 11 significant bits (a relative error of up to 5e-4), and so is the sum; between hosts,
    also the sum of the first two hosts, of the first three, and so on. Let g be the size of the largest gradient times
    the number of ranks: gradients below 1e-9 g lose more bits, those below 1e-12 g become 0.
    """
    if fp16_compress not in comm.cache:
        comm.cache[fp16_compress] = comm.exchange(Half())
    exchange: Exchange | None = comm.cache[fp16_compress]
    if exchange is not None:
        exchange.sum(gradients, gradients)
        return
    comm = agreed(comm)
    largest = np.array([size_of(gradients)])
    comm.all_reduce(largest, "max")
    scale = scale_of(float(largest[0]) * comm.size)
    sent = np.zeros((comm.size, -(-gradients.size // comm.size)), np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        _scaled(gradients, scale, sent.reshape(-1)[: gradients.size])
        total = comm.all_to_all(sent).sum(axis=0, dtype=np.float32).astype(np.float16)
        _scaled(comm.all_gather(total).reshape(-1)[: gradients.size], 1 / scale, gradients)


class TopK:
    """A hook that sends the largest gradients of each rank only, a share of `share` of them.

    Each rank adds what it has not sent yet to its gradients, sends the largest of these by an all-gather, an index and
    a value each, and keeps the others for the next step (error feedback: Stich et al. 2018, Sparsified SGD with
    memory). The ranks choose different gradients, and the sum has all of them.
    A small gradient comes late, by the time that many of them take to add up to a large one, and then for parameters
    that have moved on. So training needs a model that tolerates that, often a warm-up with exact sums, and momentum
    counts delayed gradients too. The gradients that are not sent yet are in no checkpoint.

    Every rank receives twice the share of every other rank's numbers. From about 1 / share ranks on, an exact sum
    sends no more; it is made then, and for gradients that are too few to choose from.

    share: above 0, below 1. Register one object per wrapped model.
    """

    def __init__(self, share: float = 0.01) -> None:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
            raise ValueError(f"TopK: share must be a number above 0 and below 1, got {share!r}")
        self.share = float(share)
        self._unsent: WeakKeyDictionary[Comm, dict[np.dtype[Any], Array]] = WeakKeyDictionary()

    def describe(self) -> str:
        """Its options, which must be the same on every rank."""
        return f"TopK(share={self.share})"

    def __call__(self, comm: Comm, gradients: Array) -> None:
        count = math.ceil(self.share * gradients.size)
        index = np.dtype(np.int32 if gradients.size < 1 << 31 else np.int64)
        work = np.promote_types(gradients.dtype, np.float32)
        nbytes = count * (index.itemsize + work.itemsize)
        if gradients.size <= FEW or (comm.size - 1) * nbytes >= 2 * gradients.nbytes:  # there is nothing to gain
            comm.all_reduce(gradients)
            return
        unsent, comm = self._unsent.setdefault(comm, {}), agreed(comm)
        mine = gradients.astype(work)
        if gradients.dtype in unsent:
            mine += unsent[gradients.dtype]
        size = np.abs(mine)
        chosen = np.flatnonzero(size >= np.partition(size, -count)[-count])[:count]
        if not is_finite(mine):
            chosen, mine = np.arange(count), np.full_like(mine, np.nan)
        message = np.concatenate([chosen.astype(index).view(np.uint8), mine[chosen].view(np.uint8)])
        total = np.zeros_like(mine)
        for received in comm.all_gather(message):  # in the order of ranks, so that all of them compute the same bits
            indices, values = received[: count * index.itemsize].view(index), received[count * index.itemsize :]
            total[indices] += values.view(work)
        gradients[:] = total
        if not is_finite(total):
            gradients.fill(np.nan)  # what is not sent yet stays as it is
            return
        mine[chosen] = 0
        unsent[gradients.dtype] = mine


def described(hook: Hook) -> str:
    """A hook of this module with its options, to be compared between ranks."""
    if hook is fp16_compress:
        return "fp16_compress"
    describe: Callable[[], str] | None = getattr(hook, "describe", None)
    return "a hook of its own" if describe is None else describe()


def is_exchanged(hook: Hook | None) -> bool:
    """Whether an exchange sums as the hook does, or as there is none."""
    return hook is None or hook is fp16_compress


def exchange_like(hook: Hook | None, comm: Comm) -> Exchange | None:
    """The exchange that computes the hook's sum (or the plain sum without one); None if there is none for this hook or
    these ranks. A call of all ranks."""
    if not is_exchanged(hook):
        return None
    return comm.exchange(None if hook is None else Half())


def size_of(numbers: Array) -> float:
    """The size of the largest number; infinity if one is not a number."""
    largest = float(max(numbers.max(), -numbers.min())) if numbers.size else 0.0
    return math.inf if math.isnan(largest) else largest


def scale_of(size: float) -> float:
    """The largest power of two that scales a number of this size into the range of float16; 1 if it is not finite.
    Unscaled, small numbers would become subnormal: they lose bits, and NumPy converts them 25 times slower."""
    if not 0 < size < math.inf:
        return 1.0
    # Both the factor and its inverse must be normal in float32.
    return 2.0 ** min(max(math.floor(math.log2(LARGEST) - math.log2(size)), -120), 120)


def _scaled(numbers: Array, scale: float, result: Array) -> Array:
    """Multiplies in at least float32, since the factor may exceed float16, and writes to an array of any dtype."""
    factor = np.promote_types(result.dtype, np.promote_types(numbers.dtype, np.float32)).type(scale)
    np.multiply(numbers, factor, out=result, casting="same_kind")
    return result
