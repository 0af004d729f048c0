"""Collective frees of communicators and windows, some time after all their ranks have dropped them.

A finalizer can't make a call of all ranks, because objects are collected at different times on each.
"""

from __future__ import annotations

import gc
import itertools
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

CALLS, NBYTES = 32, 32 << 20
"""After this many calls, or this much new shared memory, a garbage collection is worth its time."""

Key = tuple[int, int]
"""A communicator's number and that of one of its windows, 0 for itself: the same on all its ranks, and no others'."""

live: dict[Key, int] = {}
"""The keys of what is not freed yet, with its bytes of shared memory."""
_unused: dict[Key, tuple[int, Callable[[], None]]] = {}
_calls = itertools.count(1)
_new_bytes = 0


def deferred_free(thing: Any, key: Key, ranks: int, free: Callable[[], None], nbytes: int = 0) -> Callable[[], None]:
    """Schedules the collective `free` once `thing` has been collected on all its `ranks`. Returns a function that frees
    at once."""
    global _new_bytes
    _new_bytes += nbytes
    live[key] = nbytes

    def free_once() -> None:
        if live.pop(key, None) is not None:
            _unused.pop(key, None)
            free()

    finalizer = weakref.finalize(thing, _unused.__setitem__, key, (ranks, free_once))
    finalizer.atexit = False

    def free_now() -> None:
        finalizer.detach()
        free_once()

    return free_now


def free_unused(communicator: Any) -> None:
    """Frees what all of its ranks have dropped, if they belong to an mpi4py communicator. A call of all ranks of the
    latter."""
    global _new_bytes
    if next(_calls) % CALLS == 0 or _new_bytes > NBYTES:
        _new_bytes = 0
        gc.collect()
    unused = _unused.copy()
    offered = Counter(key for keys in communicator.allgather([*unused]) for key in keys)
    for key, (ranks, free) in sorted(unused.items(), key=lambda each: each[0]):  # everywhere in the same order
        if offered[key] == ranks:
            free()
