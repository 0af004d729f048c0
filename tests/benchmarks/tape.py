"""What recording an operation and walking back over it costs beside the operation itself."""

from __future__ import annotations

import gc
import itertools
from time import perf_counter
from typing import Any

import numpy as np

from sorix_dist import Tensor
from tests.benchmarks.measure import LEAST, summary

ELEMENTS = 8  # so few that the operation itself is almost nothing


def measure(seconds: float, nodes: int) -> dict[str, Any]:
    """Seconds per node of a chain of `nodes` products, with Python's garbage collector on and off.

    record: computing a product and recording it; walk: going back over it; numpy: a product of arrays, which
    each way makes one of; overhead: what the first two take beyond that. The collector goes over all living
    nodes again and again, which is much for a chain of tens of thousands and little for a usual model.
    """
    times: dict[str, list[tuple[float, float, float]]] = {"on": [], "off": []}
    collects = gc.isenabled()
    end = perf_counter() + seconds
    try:
        for mode, switch in itertools.cycle(zip(times, (gc.enable, gc.disable), strict=True)):
            if perf_counter() > end and all(len(found) >= LEAST for found in times.values()):
                break
            switch()
            times[mode].append(_chain(nodes))
    finally:
        (gc.enable if collects else gc.disable)()
    return {"nodes": nodes, "collector": {mode: _summaries(found) for mode, found in times.items()}}


def _chain(nodes: int) -> tuple[float, float, float]:
    x = Tensor(np.ones(ELEMENTS, np.float32), requires_grad=True)
    factor = Tensor(np.ones(ELEMENTS, np.float32))
    seed = np.ones(ELEMENTS, np.float32)
    start = perf_counter()
    y = x
    for _ in range(nodes):
        y = y * factor
    recorded = perf_counter()
    y.backward(seed)
    walked = perf_counter()
    z, other = x.data, factor.data
    for _ in range(nodes):
        z = z * other
    end = perf_counter()
    return (recorded - start) / nodes, (walked - recorded) / nodes, (end - walked) / nodes


def _summaries(found: list[tuple[float, float, float]]) -> dict[str, Any]:
    record, walk, numpy = (summary(values) for values in zip(*found, strict=True))
    overhead = record["p10"] + walk["p10"] - 2 * numpy["p10"]
    return {"record": record, "walk": walk, "numpy": numpy, "overhead": overhead}
