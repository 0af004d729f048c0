"""Where the ranks are, and how long a training step of a workload takes, as one line of JSON.

python across_hosts.py [WORKLOAD SECONDS]
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
from sorix_dist.bench.workloads import WORKLOADS, training_step
from sorix_dist.parallel import world


def main() -> None:
    """Prints on rank 0."""
    comm = world()
    mine = [socket.gethostname(), comm.host, comm.hosts, comm.local_rank, comm.local_size]
    results: dict[str, object] = {"places": comm.gather_objects(mine)}
    if len(sys.argv) > 1:
        name, seconds = sys.argv[1], float(sys.argv[2])
        step = training_step(WORKLOADS[name])
        for _ in range(3):
            step()
        gc.disable()
        count = int(np.ceil(seconds / max(timed(step), 1e-4)))
        times = [timed(step) for _ in range(sx.all_reduce(count) // sx.size())]
        results["ms"] = {"p10": 1e3 * float(np.quantile(times, 0.1)), "median": 1e3 * float(np.median(times))}
        results["steps"] = len(times)
    if comm.rank == 0:
        print(json.dumps(results), flush=True)


def timed(step: Callable[[], None]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
