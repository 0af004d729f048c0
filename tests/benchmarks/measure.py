"""Times of competitors that take turns, and what is told of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from time import perf_counter
from typing import Any

import numpy as np

from sorix_dist.parallel import barrier, broadcast

TURN = 0.05  # seconds that a competitor runs before the next one does
MOST = 1000  # calls in a turn: millions of times of what takes no time would have to be kept and handed on
LEAST = 3  # turns of each competitor


def interleaved(competitors: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """The seconds of each call, by competitor, in about `seconds` altogether.

    They take turns (A B A B), so that whatever else happens on the machine meets all of them alike. A call of
    all ranks, who start every turn together; the times are this rank's own.
    """
    once = {name: _warmed(call) for name, call in competitors.items()}
    # Rank 0 decides for all: they must make the same calls.
    first = broadcast(np.array([*once.values()]))
    calls = np.clip(TURN / first, 1, MOST).astype(int)
    turns = max(LEAST, int(seconds / (first @ calls)))
    times: dict[str, list[float]] = {name: [] for name in competitors}
    for _ in range(turns):
        for (name, call), count in zip(competitors.items(), calls, strict=True):
            barrier()
            times[name] += (timed(call) for _ in range(count))
    return times


def timed(call: Callable[[], Any]) -> float:
    """The seconds that one call takes."""
    start = perf_counter()
    call()
    return perf_counter() - start


def summary(times: Iterable[float]) -> dict[str, float]:
    """Median and 10th percentile, in seconds, and the number of repetitions."""
    array = np.fromiter(times, float)
    return {"median": float(np.median(array)), "p10": float(np.percentile(array, 10)), "count": len(array)}


def summaries(times: Mapping[tuple[str, ...], Iterable[float]]) -> dict[str, Any]:
    """The `summary` of each, in a dict for each part of its name but the last."""
    result: dict[str, Any] = {}
    for (*parts, last), values in times.items():
        place = result
        for part in parts:
            place = place.setdefault(part, {})
        place[last] = summary(values)
    return result


def _warmed(call: Callable[[], Any]) -> float:
    for _ in range(2):  # the first calls make buffers, and fill caches
        call()
    barrier()
    return timed(call)
