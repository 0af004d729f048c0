"""What may take the place of the all-reduce of gradients, such as a compression."""

from __future__ import annotations

import math

import numpy as np

from sorix_dist.comm import Comm, Exchange
from sorix_dist.core.tensor import Array
from sorix_dist.parallel.reducers import Hook

LARGEST = 60_000.0
"""What a sum in float16 may come to: a little less than the largest such number, because its terms are rounded."""


class Half:
    """Numbers travel as float16, times a power of two by which the largest of a message just fits, and which goes with
    them."""

    itemsize: int | None = 2

    def pack(self, numbers: Array, body: Array) -> float:
        scale = _scale(_largest(numbers))
        with np.errstate(over="ignore", invalid="ignore"):
            _scaled(numbers, scale, body.view(np.float16))
        return scale

    def add(self, body: Array, scale: float, numbers: Array) -> float:
        total = np.empty(numbers.size, np.promote_types(numbers.dtype, np.float32))
        self.unpack(body, scale, total)
        with np.errstate(over="ignore", invalid="ignore"):
            total += numbers
        return self.pack(total, body)

    def unpack(self, body: Array, scale: float, out: Array) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            _scaled(body.view(np.float16), 1 / scale, out)


def fp16_compress(comm: Comm, gradients: Array) -> None:
    """Sums gradients in half the bytes: they travel as float16, and are added in float32.

    They are scaled by a power of two first, so that the largest just fits: of all gradients on all ranks or, between
    hosts, of every 30,720 at most.
    What it loses: every gradient is rounded to 11 significant bits and so is the sum, a relative error of up to 5e-4
    each time; between hosts, so is the sum of the first two, three and more hosts. What is smaller than 1e-9 times the
    size of the largest gradient, times the number of ranks, loses bits, and smaller than 1e-12 times it becomes 0.
    """
    if fp16_compress not in comm.cache:
        comm.cache[fp16_compress] = comm.exchange(Half())
    exchange: Exchange | None = comm.cache[fp16_compress]
    if exchange is not None:
        exchange.sum(gradients, gradients)
        return
    largest = np.array([_largest(gradients)])
    comm.all_reduce(largest, "max")
    scale = _scale(float(largest[0]) * comm.size)
    sent = np.zeros((comm.size, -(-gradients.size // comm.size)), np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        _scaled(gradients, scale, sent.reshape(-1)[: gradients.size])
        total = comm.all_to_all(sent).sum(axis=0, dtype=np.float32).astype(np.float16)
        _scaled(comm.all_gather(total).reshape(-1)[: gradients.size], 1 / scale, gradients)


def is_exchanged(hook: Hook | None) -> bool:
    """Whether an exchange sums as the hook does, or as there is none."""
    return hook is None or hook is fp16_compress


def exchange_like(hook: Hook | None, comm: Comm) -> Exchange | None:
    """An exchange that sums as the hook does, or as there is none; None if there is no such. A call of all ranks."""
    if not is_exchanged(hook):
        return None
    return comm.exchange(None if hook is None else Half())


def _largest(numbers: Array) -> float:
    """The size of the largest number; infinity if one is not a number."""
    largest = float(max(numbers.max(), -numbers.min())) if numbers.size else 0.0
    return math.inf if math.isnan(largest) else largest


def _scale(size: float) -> float:
    """The largest power of two by which a number of this size can be multiplied so that float16 holds it; 1 if it is
    not finite. Without it, small ones lose bits, and NumPy takes 25 times as long to convert them."""
    if not 0 < size < math.inf:
        return 1.0
    # As far as float32 holds the factor and its inverse.
    return 2.0 ** min(max(math.floor(math.log2(LARGEST) - math.log2(size)), -120), 120)


def _scaled(numbers: Array, scale: float, result: Array) -> Array:
    """Writes the numbers, times a factor for which float16 may be too small, into an array of any dtype."""
    factor = np.promote_types(result.dtype, np.promote_types(numbers.dtype, np.float32)).type(scale)
    np.multiply(numbers, factor, out=result, casting="same_kind")
    return result
