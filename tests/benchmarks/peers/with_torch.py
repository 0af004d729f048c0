"""PyTorch: one process with threads, or DistributedDataParallel over gloo."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

VERSION = str(torch.__version__)
HEADS = 4


class Peer:
    """A process of PyTorch.

    channels_last: whether images lie in memory as oneDNN's convolutions like them; hook: the name of one of
    DDP's own, without `_hook`.
    """

    def __init__(
        self, threads: int, rank: int, ranks: int, meeting: str, channels_last: bool = True, hook: str | None = None
    ) -> None:
        torch.set_num_threads(threads)
        self.rank, self.ranks, self.channels_last, self.hook = rank, ranks, channels_last, hook
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
        kinds: dict[str, Callable[..., nn.Module]] = {"W4": convolutional, "W5": Language}
        model = kinds.get(workload, perceptron)(*map(int, stored["sizes"]))
        with torch.no_grad():
            for i, parameter in enumerate(model.parameters()):
                parameter.copy_(torch.from_numpy(stored[f"arr_{i}"]))
        if self.channels_last:
            model = model.to(memory_format=torch.channels_last)
        batches = itertools.cycle([self._batch(x, y) for x, y in zip(stored["x"], stored["y"], strict=True)])
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)
        if self.ranks > 1:
            model = DistributedDataParallel(model, gradient_as_bucket_view=True, static_graph=True)
            if self.hook is not None:
                model.register_comm_hook(None, getattr(default_hooks, f"{self.hook}_hook"))

        def step() -> Tensor:
            x, y = next(batches)
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(x).flatten(0, -2), y)
            loss.backward()
            optimizer.step()
            return loss

        return step

    def _batch(self, x: Any, y: Any) -> tuple[Tensor, Tensor]:
        """This rank's rows of a global batch."""
        count = len(x) // self.ranks
        rows = slice(self.rank * count, (self.rank + 1) * count)
        inputs, targets = torch.from_numpy(x[rows]), torch.from_numpy(y[rows].reshape(-1))
        if self.channels_last and inputs.ndim == 4:
            inputs = inputs.to(memory_format=torch.channels_last)
        return inputs, targets


def perceptron(*sizes: int) -> nn.Module:
    """Linear layers with a ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def convolutional() -> nn.Module:
    """Two convolutions of images of 28x28, and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 10),
    )  # fmt: skip


class Block(nn.Module):
    """A layer of a transformer: attention to what came before, and a perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        sequences, length, width = x.shape
        heads = self.queries_keys_values(self.norm1(x)).view(sequences, length, 3, HEADS, width // HEADS)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(sequences, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Language(nn.Module):
    """A GPT."""

    def __init__(self, symbols: int, length: int, width: int, layers: int) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(length, width))
        self.symbol = nn.Embedding(symbols, width)
        self.body = nn.Sequential(*(Block(width) for _ in range(layers)), nn.LayerNorm(width))
        self.head = nn.Linear(width, symbols, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.symbol(x) + self.place))
