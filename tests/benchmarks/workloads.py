"""What is trained: five models, from one that is all overhead to one that is all matrix products."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import sorix_dist as sx
from sorix_dist import Tensor, nn, optim
from sorix_dist.nn import functional as F
from sorix_dist.utils.data import DataLoader, Dataset
from tests.benchmarks.products import Product, attended, convolved, dense

Array = np.ndarray[Any, Any]
BATCHES = 4  # different ones, so that a step does not find its batch in the cache because of the step before


@dataclass(frozen=True)
class Workload:
    """A model with a batch to train it on.

    rows: of the global batch; data: makes so many rows of inputs and targets; products: the matrix products
    of a step on so many rows; sizes: what makes another model of this kind another one.
    """

    words: str
    rows: int
    model: Callable[[], nn.Module]
    data: Callable[[np.random.Generator, int], tuple[Array, Array]]
    products: Callable[[int], list[Product]]
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    sizes: tuple[int, ...] = ()


def store(workload: Workload, path: Path) -> None:
    """Writes weights and batches of `training_step` to a file for other libraries, in the layout of PyTorch."""
    model, (x, y) = _beginning(workload)
    weights = {id(module.W) for module in model.modules() if isinstance(module, nn.Linear)}
    arrays = [
        p.array.T if id(p) in weights else p.array[0] if len(p.shape) == 2 and len(p) == 1 else p.array
        for p in model.parameters()
    ]
    shape = (BATCHES, workload.rows)
    x, y = x.reshape(*shape, *x.shape[1:]), y.reshape(*shape, *y.shape[1:])
    np.savez(path, *arrays, x=x, y=y, rows=workload.rows, sizes=np.array(workload.sizes, int))


def training_step(workload: Workload, hook: Callable[..., None] | None = None) -> Callable[[], Tensor]:
    """A function that makes one training step, on one of some batches that exist already, and returns the loss;
    `hook`: a communication hook of the model."""
    model, optimizer, batches = prepared(workload)
    if hook is not None:
        model.register_comm_hook(hook)

    def step() -> Tensor:
        x, y = next(batches)
        optimizer.zero_grad()
        loss = workload.loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


def prepared(workload: Workload) -> tuple[sx.DistributedDataParallel, optim.SGD, Iterator[tuple[Tensor, Tensor]]]:
    """What `training_step` works with: the wrapped model, its optimizer, and batches without end."""
    model, data = _beginning(workload)
    wrapped = sx.DistributedDataParallel(model)
    optimizer = optim.SGD(wrapped.parameters(), lr=1e-3, momentum=0.9)
    return wrapped, optimizer, itertools.cycle(list(DataLoader(Dataset(*data), batch_size=workload.rows)))


def _beginning(workload: Workload) -> tuple[nn.Module, tuple[Array, Array]]:
    """The model and all its batches, the same ones every time."""
    sx.manual_seed(0)
    return workload.model(), workload.data(np.random.default_rng(0), BATCHES * workload.rows)


def _perceptron(sizes: tuple[int, ...], rows: int) -> Workload:
    layers = [*itertools.pairwise(sizes)]

    def model() -> nn.Module:
        modules: list[nn.Module] = []
        for inputs, outputs in layers:
            modules += [nn.Linear(inputs, outputs), nn.ReLU()]
        return nn.Sequential(*modules[:-1])

    def data(generator: np.random.Generator, count: int) -> tuple[Array, Array]:
        return generator.standard_normal((count, sizes[0]), np.float32), generator.integers(0, sizes[-1], count)

    def products(count: int) -> list[Product]:
        return [p for i, (n, m) in enumerate(layers) for p in dense(count, n, m, first=i == 0)]

    return Workload(f"MLP {'-'.join(map(str, sizes))}, batch {rows}", rows, model, data, products, sizes=sizes)


def _convolutional() -> Workload:
    def model() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * 7 * 7, 10),
        )  # fmt: skip

    def data(generator: np.random.Generator, count: int) -> tuple[Array, Array]:
        return generator.standard_normal((count, 1, 28, 28), np.float32), generator.integers(0, 10, count)

    def products(count: int) -> list[Product]:
        first = convolved(count * 28 * 28, 9, 16, first=True)
        return first + convolved(count * 14 * 14, 16 * 9, 32) + dense(count, 32 * 7 * 7, 10)

    return Workload("CNN 28x28: conv 16, conv 32, linear; batch 128", 128, model, data, products)


class _Language(nn.Module):
    """A GPT: which symbol comes next, at every place of a sequence."""

    def __init__(self, symbols: int, length: int, width: int, heads: int, layers: int) -> None:
        self.symbol = nn.Embedding(symbols, width)
        self.place = nn.Parameter(np.zeros((length, width), np.float32))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width))
        self.head = nn.Linear(width, symbols, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(self.symbol(x) + self.place, is_causal=True))
        return scores


def _language() -> Workload:
    symbols, length, width, heads, layers = 256, 64, 128, 4, 2

    def data(generator: np.random.Generator, count: int) -> tuple[Array, Array]:
        text = generator.integers(0, symbols, (count, length + 1))
        return text[:, :-1], text[:, 1:]

    def products(count: int) -> list[Product]:
        places = count * length
        layer = [
            *dense(places, width, 3 * width),
            *attended(count * heads, length, width // heads),
            *dense(places, width, width),
            *dense(places, width, 4 * width),
            *dense(places, 4 * width, width),
        ]
        return layer * layers + dense(places, width, symbols)

    return Workload(
        f"GPT of width {width}, {heads} heads, {layers} layers, sequences of {length}; batch 16",
        16,
        lambda: _Language(symbols, length, width, heads, layers),
        data,
        products,
        lambda scores, y: F.cross_entropy(scores.reshape(-1, symbols), y.reshape(-1)),
        (symbols, length, width, layers),
    )


WORKLOADS = {
    "W1": _perceptron((784, 512, 512, 10), 256),
    "W2": _perceptron((1024, 4096, 4096, 1000), 512),
    "W3": _perceptron((64, 64, 10), 64),
    "W4": _convolutional(),
    "W5": _language(),
}
