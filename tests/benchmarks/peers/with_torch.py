"""PyTorch: one process with threads, or DistributedDataParallel over gloo."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch_models as models
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

VERSION = str(torch.__version__)
KINDS: dict[str, Callable[..., nn.Module]] = {
    "W4": models.convolutional,
    "W5": models.Language,
    "W6": models.Recurrent,
    "W7": models.Residual,
    "W8": models.Encoder,
}
ADAM = ("W8", "W9")


class Peer:
    """A process of PyTorch.

    channels_last: whether images lie in memory as oneDNN's convolutions like them; hook: the name of one of
    DDP's own, without `_hook`; fused: whether its optimizer is the fused one, which a user must ask for; compiled:
    whether torch.compile makes one function of model and loss, which needs a C++ compiler.
    """

    def __init__(
        self,
        threads: int,
        rank: int,
        ranks: int,
        meeting: str,
        channels_last: bool = True,
        hook: str | None = None,
        fused: bool = True,
        compiled: bool = False,
    ) -> None:
        if compiled and shutil.which(os.environ.get("CXX", "g++")) is None:
            raise RuntimeError("torch.compile needs a C++ compiler")
        torch.set_num_threads(threads)
        self.rank, self.ranks, self.channels_last, self.hook = rank, ranks, channels_last, hook
        self.fused = True if fused else None  # None is PyTorch's default
        self.compiled = compiled
        if ranks > 1:
            dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)

    def prepare(self, act: str, **options: Any) -> Callable[[], Any]:
        """A training step, or "all_reduce" of so many `numbers`."""
        return self._all_reduce(**options) if act == "all_reduce" else self._step(**options)

    def _all_reduce(self, numbers: int) -> Callable[[], Any]:
        tensor = torch.zeros(numbers)
        return lambda: dist.all_reduce(tensor)

    def _step(self, workload: str, path: str) -> Callable[[], Any]:
        stored = np.load(path)
        model = KINDS.get(workload, models.perceptron)(*map(int, stored["sizes"]))
        with torch.no_grad():
            for i, parameter in enumerate(model.parameters()):
                parameter.copy_(torch.from_numpy(stored[f"arr_{i}"]))
        if self.channels_last:
            model = model.to(memory_format=torch.channels_last)
        batches = itertools.cycle([self._batch(x, y) for x, y in zip(stored["x"], stored["y"], strict=True)])
        optimizer: torch.optim.Optimizer
        if workload in ADAM:
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=self.fused)
        else:
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=self.fused)
        loss_of = F.mse_loss if workload == "W9" else F.cross_entropy
        if self.ranks > 1:
            model = DistributedDataParallel(model, gradient_as_bucket_view=True, static_graph=True)
            if self.hook is not None:
                model.register_comm_hook(None, getattr(default_hooks, f"{self.hook}_hook"))

        def forward(x: Tensor, y: Tensor) -> Tensor:
            return loss_of(model(x).flatten(0, -2), y)

        forward = torch.compile(forward) if self.compiled else forward

        def step() -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            loss = forward(*next(batches))
            loss.backward()
            optimizer.step()
            return loss

        return step

    def _batch(self, x: Any, y: Any) -> tuple[Tensor, Tensor]:
        """This rank's rows of a global batch."""
        count = len(x) // self.ranks
        rows = slice(self.rank * count, (self.rank + 1) * count)
        inputs, targets = (
            torch.from_numpy(x[rows]),
            torch.from_numpy(y[rows].reshape(-1) if y.dtype.kind == "i" else y[rows]),
        )
        if self.channels_last and inputs.ndim == 4:
            inputs = inputs.to(memory_format=torch.channels_last)
        return inputs, targets
