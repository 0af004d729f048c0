"""Where the ranks are, and how long a training step of a workload takes, as one line of JSON.

python across_hosts.py [WORKLOAD SECONDS [fp16]]
"""

from __future__ import annotations

import gc
import json
import socket
import sys
import time
from collections.abc import Callable

import numpy as np

import sorix_dist as sx
from sorix_dist.parallel import world
from tests.benchmarks.workloads import WORKLOADS, training_step


def main() -> None:
    """Prints on rank 0."""
    comm = world()
    mine = [socket.gethostname(), comm.host, comm.hosts, comm.local_rank, comm.local_size]
    results: dict[str, object] = {"places": comm.gather_objects(mine)}
    if len(sys.argv) > 1:
        name, seconds = sys.argv[1], float(sys.argv[2])
        step = training_step(WORKLOADS[name], sx.comm_hooks.fp16_compress if "fp16" in sys.argv[3:] else None)
        gradient = np.zeros(sum(parameter.numel for parameter in WORKLOADS[name].model().parameters()), np.float32)
        work = {"step": step, "all_reduce": lambda: comm.all_reduce(gradient)}
        results["ms"] = {word: measured(function, seconds / 2) for word, function in work.items()}
    if comm.rank == 0:
        print(json.dumps(results), flush=True)


def measured(function: Callable[[], None], seconds: float) -> dict[str, float]:
    """Milliseconds of a function that all ranks call, as often as it can be called in about so many seconds."""
    first = min(timed(function) for _ in range(4))
    count = max(4, int(seconds / sx.all_reduce(first, op="max")))
    gc.collect()
    times = [timed(function) for _ in range(count)]
    return {"p10": 1e3 * float(np.quantile(times, 0.1)), "median": 1e3 * float(np.median(times)), "times": count}


def timed(step: Callable[[], None]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
