"""What MPI holds for communicators and windows that ranks have let go of, until all ranks concerned give it back.

That takes a call of all of them, which a garbage collector can't make: it comes to them at different times.
"""

from __future__ import annotations

import gc
import itertools
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

MANY = 32
"""Every so many communicators it is worth a garbage collection to find out that nobody needs the earlier ones."""

Key = tuple[int, int]
"""A communicator's number and that of one of its windows, 0 for itself: the same on all its ranks, and no others'."""

_left: dict[Key, tuple[int, Callable[[], None]]] = {}
_calls = itertools.count(1)


def when_gone(thing: Any, key: Key, ranks: int, free: Callable[[], None]) -> Callable[[], None]:
    """Makes `free`, a call of so many ranks, be called some time after `thing` is gone on all of them; returns what
    calls it at once."""
    finalizer = weakref.finalize(thing, _left.__setitem__, key, (ranks, free))
    finalizer.atexit = False

    def free_now() -> None:
        finalizer.detach()
        _left.pop(key, None)
        free()

    return free_now


def give_back(communicator: Any) -> None:
    """Frees what all ranks that have it have let go of, if they are among those of an mpi4py communicator, which all
    call this."""
    if next(_calls) % MANY == 0:
        gc.collect()
    left = _left.copy()
    offered = communicator.allgather([*left])
    counts = Counter(key for keys in offered for key in keys)
    for key, (ranks, free) in sorted(left.items(), key=lambda each: each[0]):  # everywhere in the same order
        if counts[key] == ranks:
            del _left[key]
            free()
