"""What may take the place of the all-reduce of gradients, such as a compression."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from sorix_dist.comm import Comm
from sorix_dist.core.flat import Flat
from sorix_dist.core.tensor import Array
from sorix_dist.parallel.reduce import ByMessage

# Is given a communicator and gradients, one-dimensional, and replaces these by the sum over the communicator's ranks:
# all of them, or, where there are several on each host, those that have the same slice of their host's sum.
# Called by every rank, once for each dtype of parameters. After the gradient of each parameter there are zeros, up to
# the next cache line.
Hook = Callable[[Comm, Array], None]

LARGEST = 60_000.0
"""What a sum in float16 may come to: a little less than the largest such number, because its terms are rounded."""


def fp16_compress(comm: Comm, gradients: Array) -> None:
    """Sums gradients in half the bytes: they travel as float16, and are added in float32.

    They are scaled by a power of two first, the same on all ranks, so that the largest just fits.
    What it loses: every gradient is rounded to 11 significant bits, on more than two ranks twice, a relative error of
    up to 5e-4 each time; what is smaller than 1e-9 times the size of the largest gradient, times the number of ranks,
    loses bits, and smaller than 1e-12 times it becomes 0.
    """
    scale = _scale(comm, gradients)
    with np.errstate(over="ignore", invalid="ignore"):
        if comm.size == 2:  # as many bytes as below, in one message each instead of two that wait for each other
            first, second = comm.all_gather(_scaled(gradients, scale, np.empty(gradients.size, np.float16)))
            np.add(first, second, out=gradients, dtype=np.float32)
        else:
            sent = np.zeros((comm.size, -(-gradients.size // comm.size)), np.float16)
            _scaled(gradients, scale, sent.reshape(-1)[: gradients.size])
            total = comm.all_to_all(sent).sum(axis=0, dtype=np.float32).astype(np.float16)
            gradients[...] = comm.all_gather(total).reshape(-1)[: gradients.size]
    gradients *= 1 / scale


def _scale(comm: Comm, gradients: Array) -> float:
    """The largest power of two by which the gradients of all ranks can be multiplied so that float16 holds the sum; 1
    if they are not finite. Without it, small ones lose bits, and NumPy takes 25 times as long to convert them."""
    largest = np.array([max(gradients.max(), -gradients.min()) if gradients.size else 0], np.float64)
    largest[np.isnan(largest)] = np.inf
    comm.all_reduce(largest, "max").wait()
    size = float(largest[0]) * comm.size
    if not 0 < size < np.inf:
        return 1.0
    # As far as float32 holds the factor and its inverse.
    return 2.0 ** min(max(math.floor(math.log2(LARGEST) - math.log2(size)), -120), 120)


def _scaled(gradients: Array, scale: float, result: Array) -> Array:
    """The gradients times a factor, written into an array of float16."""
    np.multiply(gradients, gradients.dtype.type(scale), out=result, casting="same_kind")
    return result


class ByHook(ByMessage):
    """A hook sums the gradients."""

    def __init__(self, flat: Flat, comm: Comm, hook: Hook) -> None:
        super().__init__(flat, comm)
        self.hook = hook

    def all_reduce(self) -> None:
        self.hook(self.comm, self.total)
        self.flat.clear_gaps(self.total, slice(0, self.flat.size))
