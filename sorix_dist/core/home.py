"""Where flat storages lie: in memory of this process alone, or in memory that several processes change together."""

from __future__ import annotations

import struct
import zlib
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, Any]

ALIGNMENT = 64  # bytes: a cache line, and the widest vector of today's CPUs

_FROZEN = (
    "the memory of this tensor is read-only, because a wrapped model's parameters and gradients are those of all ranks "
    "of a host: change parameters inside `with model.edit():`, gradients by hooks and clip_grad_*, or wrap the model "
    'with storage="replicated"'
)


class Home(Protocol):
    """Memory for parameters, gradients and what optimizers remember.

    Processes that share it make the same calls in the same order, and each changes its own part of every array.
    """

    writes: bool
    """Whether this process writes what the others shall find, where one has to."""

    def zeros(self, count: int, dtype: np.dtype[Any]) -> Array:
        """A zeroed one-dimensional array that starts on a cache line: the same memory in all processes."""

    def part(self, count: int, dtype: np.dtype[Any]) -> slice:
        """The elements of such an array that this process changes: whole cache lines."""

    def meet(self, doing: str, alike: int = 0, everywhere: bool = False) -> None:
        """Waits until all have come to this call; afterwards each sees what the others wrote before.

        doing: what a user would call it; alike: a digest of the numbers that it is done with. Both must be the same
        everywhere: where each changes its part, different numbers would leave no trace but wrong results.
        everywhere: waits also for those who do not share this memory, which takes longer, as before they all make some.
        """


class Private:
    """Memory of this process alone."""

    writes = True

    def zeros(self, count: int, dtype: np.dtype[Any]) -> Array:
        memory = np.zeros(count * dtype.itemsize + ALIGNMENT, np.uint8)
        first = -memory.ctypes.data % ALIGNMENT
        return memory[first : first + count * dtype.itemsize].view(dtype)

    def part(self, count: int, dtype: np.dtype[Any]) -> slice:
        return slice(0, count)

    def meet(self, doing: str, alike: int = 0, everywhere: bool = False) -> None:
        return None


PRIVATE = Private()


def digest(*numbers: float) -> int:
    """A number for these: the same in every process."""
    return zlib.crc32(struct.pack(f"{len(numbers)}d", *numbers))


def read_only(array: Array) -> Array:
    """The same memory, which can't be changed through this array."""
    view = array.view()
    view.flags.writeable = False
    return view


def refuse_frozen(array: Array) -> None:
    """RuntimeError, which says what to do instead, if the array can't be changed."""
    if not array.flags.writeable:
        raise RuntimeError(_FROZEN)
