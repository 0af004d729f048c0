"""What the scripts of `cases` need of the package, on PyTorch's DistributedDataParallel: for what happens there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

comm = SimpleNamespace(note=lambda **_: None)


def init(timeout: float) -> None:
    """Starts gloo with PyTorch's own time-out, which is what its users have."""
    global _model
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    _model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 3))


def rank() -> int:
    return dist.get_rank()


def all_reduce(x: np.ndarray[Any, Any]) -> None:
    """A backward of the wrapped model, then a sum as of a metric: a rank that is missing is missed in the backward."""
    _model(torch.ones(6, 4)).sum().backward()
    dist.all_reduce(torch.from_numpy(x))


def broadcast(x: np.ndarray[Any, Any]) -> None:
    dist.broadcast(torch.from_numpy(x), 0)


def barrier() -> None:
    dist.barrier()
