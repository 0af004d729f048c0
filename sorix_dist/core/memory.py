"""The memory of parameters and gradients: private to this process, or shared by several.

Also the settings of the C library's allocator. By default glibc maps fresh pages for each array of more than some
hundred kilobytes, and the kernel clears them: a small convolutional network spends more time on that than on its
convolutions.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import zlib
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

Array = np.ndarray[Any, Any]

ALIGNMENT = 64  # bytes: a cache line, and the widest vector of today's CPUs

_FROZEN = (
    "the memory of this tensor is read-only, because a wrapped model's parameters and gradients are those of all ranks "
    "of a host: load them by `model.load_state_dict` of the wrapped model, change parameters inside "
    '`with model.edit():`, gradients by hooks and clip_grad_*, or wrap the model with storage="replicated". '
    "Between two sums of LocalSGD call its synchronise() first. A tensor of `state_dict()` is a copy: give the changed "
    "state to `load_state_dict`"
)


class ParameterMemory:
    """Memory for parameters, gradients and optimizer state. This base class is private to one process.

    Processes that share memory make the same calls in the same order, and each changes its own slice of every array.
    """

    writes = True
    """Whether this process writes values that all share, such as loaded weights."""

    def zeros(self, count: int, dtype: np.dtype[Any]) -> Array:
        """A zeroed one-dimensional array that starts on a cache line: the same memory in all processes."""
        memory = np.zeros(count * dtype.itemsize + ALIGNMENT, np.uint8)
        first = -memory.ctypes.data % ALIGNMENT
        return memory[first : first + count * dtype.itemsize].view(dtype)

    def own_slice(self, count: int, dtype: np.dtype[Any]) -> slice:
        """The elements of such an array that this process changes: whole cache lines."""
        return slice(0, count)

    def fence(self, action: str, digest: int = 0, everywhere: bool = False) -> None:
        """A barrier and memory fence: afterwards each process sees what the others wrote before.

        action: the name of the user's call; digest: of the numbers that it uses. RuntimeError if one of them differs
        between processes: each changes its own slice, so the result would be silently wrong.
        everywhere: includes the processes of other hosts, which takes longer.
        """


PRIVATE = ParameterMemory()


def digest_of(*numbers: float) -> int:
    """A checksum of some numbers, the same in every process."""
    return zlib.crc32(struct.pack(f"{len(numbers)}d", *numbers))


def read_only(array: Array) -> Array:
    """A read-only view of an array."""
    view = array.view()
    view.flags.writeable = False
    return view


@lru_cache(maxsize=64)
def scalar(number: float, dtype: DTypeLike) -> Array:
    """A number as a read-only array of shape ().

    An operation with a small array takes half the time that it does with a Python or NumPy number, whose dtype NumPy
    works out each time.
    """
    return read_only(np.array(number, dtype))


def refuse_frozen(array: Array) -> None:
    """RuntimeError, which names the alternatives, if the array is read-only."""
    if not array.flags.writeable:
        raise RuntimeError(_FROZEN)


# The parameters of mallopt(3), glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20  # bytes; glibc takes no more


def keep_freed_pages() -> bool:
    """Makes malloc reuse freed pages instead of returning them to the kernel; returns whether that is set now.

    Only with glibc, and not if the environment sets malloc's own variables (MALLOC_…, GLIBC_TUNABLES).
    The process stays as large as its largest step; arrays of more than 32 MB are still returned.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    wanted = ((_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD), (_TRIM_THRESHOLD, 1 << 30), (_TOP_PAD, 64 << 20))
    return all(library.mallopt(parameter, value) for parameter, value in wanted)
