"""`python -m tests.benchmarks.local_sgd`: the samples per second of LocalSGD on four hosts over 1 Gbit/s, exact and
with fp16_compress, without and with overlap, and of one process alone, in alternating turns. All hosts share the cores
of this machine."""

from __future__ import annotations

import json
import sys
from functools import partial
from time import perf_counter

import numpy as np

import sorix_dist as sx
from sorix_dist import optim
from sorix_dist.nn import functional as F
from sorix_dist.utils.data import DataLoader, Dataset
from tests.benchmarks.workloads import WORKLOADS
from tests.clusters.hosts import PACKAGES, Network
from tests.clusters.service import PYTHON, Machine, expect, main, need_packages, need_root

WORKERS, EVERY, SUMS, TURNS = 4, 16, 6, 5


def train(workers: int, method: str) -> list[float]:
    """Seconds of each 16 batches, with one sum of weights in them if there are several workers."""
    sx.init(threads=1, virtual_shards=WORKERS if workers > 1 else None)
    sx.manual_seed(0)
    work = WORKLOADS["W1"]
    rows = work.rows * workers
    model = work.model()
    data = work.data(np.random.default_rng(0), 4 * rows)
    loader = [*DataLoader(Dataset(*data), batch_size=rows)]
    if workers == 1:
        model = sx.DistributedDataParallel(model)
    optimizer = optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    hook = sx.comm_hooks.fp16_compress if "fp16" in method else None
    overlap = "overlap" in method
    local = sx.LocalSGD(model, optimizer, every=EVERY, hook=hook, overlap=overlap) if workers > 1 else None

    def step(x: sx.Tensor, y: sx.Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    times = []
    for _ in range(SUMS):
        sx.barrier()
        began = perf_counter()
        for i in range(EVERY):
            xb, yb = loader[i % len(loader)]
            for x, y in [(xb, yb)] if local is None else local.workers(xb, yb):
                step(x, y)
        times.append(perf_counter() - began)
    return times[1:]


def check() -> None:
    """Measures all in turns, and prints the ratios."""
    need_root("a host that is a network namespace")
    need_packages(PACKAGES)
    script = ["-m", "tests.benchmarks.local_sgd"]
    methods = ["LocalSGD", "LocalSGD, overlap", "LocalSGD, fp16", "LocalSGD, fp16, overlap"]
    found: dict[str, list[float]] = {name: [] for name in ["one process", *methods]}
    rows = WORKLOADS["W1"].rows * EVERY
    with Machine() as machine, Network(machine, WORKERS) as network:
        network.wait()
        network.limit()
        for _ in range(TURNS):
            for name in found:
                workers = 1 if name == "one process" else WORKERS
                words = [*script, str(workers), name]
                command = [PYTHON, *words] if workers == 1 else network.command((1,) * WORKERS, *words)
                batch = rows * workers
                said = machine.run(*command, limit=120).stdout
                times = json.loads(next(line for line in said.splitlines() if line.startswith("[")))
                found[name] += [batch / seconds for seconds in times]
    for name, rates in found.items():
        expect(rates, f"{name}: {np.quantile(rates, 0.9):,.0f} samples/s (median {np.median(rates):,.0f})")
    alone = found.pop("one process")
    for name, rates in found.items():
        best, median = np.quantile(rates, 0.9) / np.quantile(alone, 0.9), np.median(rates) / np.median(alone)
        print(f"{name}, every {EVERY} batches: {best:.2f} times the samples of one process (medians: {median:.2f})")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        times = train(int(sys.argv[1]), sys.argv[2])
        if sx.is_main_process():
            print(json.dumps(times), flush=True)
    else:
        sys.exit(main(partial(check)))
