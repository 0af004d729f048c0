"""How long ranks wait for each other.

Each rank adds up its waiting on its status page, where the others of its host can read it without a message. A listener
in a thread gets every single wait, for the profile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter, sleep
from typing import Any

from sorix_dist.comm.protocol import Started
from sorix_dist.comm.shared_memory import yield_core
from sorix_dist.watchdog import status_page as layout
from sorix_dist.watchdog import watch

AWAKE, NAP, LONGEST = 50e-6, 50e-6, 1e-3
"""Seconds that a rank waits for a message from another host without sleeping, and that it then sleeps at a time, at
least and at most: a sixteenth of what it has waited. The system receives meanwhile. Inside of MPI, and by waking up
often, it would take the core from ranks and threads that compute."""

_interrupted: list[Any] = []


def waited_on_this_host(ranks: int) -> dict[int, float]:
    """By rank the seconds that the ranks of this host have waited so far; empty where they have no status pages.

    ranks: how many there are on all hosts.
    """
    page = watch.page()
    if page is None or not page.pages.shared:
        return {}
    pages = page.pages
    found = range(min(ranks, pages.ranks))
    return {rank: pages.words[pages.at(rank) + layout.WAITED] / 1e9 for rank in found if pages.owner(rank)[0]}


def comparison(shares: dict[int, float], rank: int) -> str:
    """The shares of time that ranks wait, in words: those of a slow one and of the others."""
    others = [share for other, share in shares.items() if other != rank]
    return f"rank {rank}: {shares[rank]:.0%} waiting, the others {sum(others) / len(others):.0%}"


def wait_patiently(request: Any, meanwhile: Callable[[], None] | None = None) -> None:
    """Waits for a request of mpi4py, and calls `meanwhile` over and over."""
    since = perf_counter()
    try:
        while not request.Test():
            if meanwhile is not None:
                meanwhile()
            if (so_far := perf_counter() - since) < AWAKE:
                yield_core()
            else:
                sleep(min(max(NAP, so_far / 16), LONGEST))
    except BaseException:  # of a signal handler: MPI goes on to use the request's memory
        _interrupted.append(request)
        raise


def first_of(under_way: deque[Any], most: int) -> Iterator[Any]:
    """Yields the first of some requests of mpi4py, which must be complete then, until at most `most` are left."""
    while len(under_way) > most:
        yield under_way[0]
        under_way.popleft()


def message_sequence(steps: Iterator[Any]) -> Started:
    """Messages that a generator sends and receives: it yields each request of mpi4py that it needs to be complete."""
    awaited = next(steps, None)

    def advance() -> None:
        nonlocal awaited
        while awaited is not None and awaited.Test():
            awaited = next(steps, None)

    def finish() -> None:
        nonlocal awaited
        while awaited is not None:
            wait_patiently(awaited)
            awaited = next(steps, None)

    return Started(advance, finish)


@contextmanager
def under_way() -> Iterator[deque[Any]]:
    """A context with requests of mpi4py. If an exception ends it, of a signal handler say, their memory stays: MPI goes
    on to use it."""
    requests: deque[Any] = deque()
    try:
        yield requests
    except BaseException:
        _interrupted.append(requests)
        raise
