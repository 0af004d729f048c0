"""Trains a workload without an end: `sorix-dist plan -m tests.benchmarks.training --link 10gbit -- W1`."""

from __future__ import annotations

import sys

from tests.benchmarks.workloads import WORKLOADS, training_step

if __name__ == "__main__":
    step = training_step(WORKLOADS[sys.argv[1]])
    while True:
        step()
