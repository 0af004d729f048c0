"""A training step of PyTorch's DistributedDataParallel over gloo, for a comparison; run by the environment with torch.

RANK=0 WORLD_SIZE=2 MASTER_ADDR=... MASTER_PORT=... python ddp_step.py W1 SECONDS

Rank 0 prints 10th percentile and median of the steps in milliseconds, as JSON.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

MODELS = {"W1": ((784, 512, 512, 10), 256), "W2": ((1024, 4096, 4096, 1000), 512)}


def main(name: str, seconds: float) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo")
    sizes, rows = MODELS[name]
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    model = nn.parallel.DistributedDataParallel(nn.Sequential(*layers[:-1]))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)
    held = rows // dist.get_world_size()
    batches = itertools.cycle([(torch.randn(held, sizes[0]), torch.randint(0, sizes[-1], (held,))) for _ in range(4)])

    def step() -> float:
        began = time.perf_counter()
        x, y = next(batches)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        return time.perf_counter() - began

    count = torch.tensor([max(4, int(seconds / min(step() for _ in range(4))))])
    dist.all_reduce(count, op=dist.ReduceOp.MIN)
    times = [step() for _ in range(int(count))]
    if dist.get_rank() == 0:
        print(json.dumps({"p10": 1e3 * np.quantile(times, 0.1), "median": 1e3 * np.median(times)}), flush=True)
    dist.barrier()
    os._exit(0)  # gloo's threads abort the process now and then when their group is destroyed


main(sys.argv[1], float(sys.argv[2]))
