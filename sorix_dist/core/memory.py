"""How the C library hands out memory: pages that a step has freed stay for the next one.

By default glibc gives arrays of more than some hundred kilobytes fresh pages each time, which the kernel clears
one by one: in a step of a small convolutional network that takes longer than the convolutions.
"""

from __future__ import annotations

import ctypes
import os
import sys

# The parameters of mallopt(3), glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20  # bytes; glibc takes no more


def keep_freed_pages() -> bool:
    """Lets this process reuse what it frees instead of giving it back; returns whether it does so now.

    Only with glibc, and not where the environment sets malloc's own variables (MALLOC_…, GLIBC_TUNABLES).
    The process stays as large as its largest step; arrays of more than 32 MB still come and go.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    wanted = ((_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD), (_TRIM_THRESHOLD, 1 << 30), (_TOP_PAD, 64 << 20))
    return all(library.mallopt(parameter, value) for parameter, value in wanted)
