"""What is trained: nine models, from one that is all overhead to one that is all matrix products."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import sorix_dist as sx
from sorix_dist import Tensor, nn, optim
from sorix_dist.nn import functional as F
from sorix_dist.utils.data import DataLoader, Dataset
from tests.benchmarks.models import Encoder, Language, Recurrent, Residual
from tests.benchmarks.products import Product, attended, convolved, dense, recurrent

Array = np.ndarray[Any, Any]
BATCHES = 4  # different ones, so that a step does not find its batch in the cache because of the step before


@dataclass(frozen=True)
class Workload:
    """A model with a batch to train it on.

    rows: of the global batch; data: makes so many rows of inputs and targets; products: the matrix products
    of a step on so many rows; sizes: what makes another model of this kind another one; adam: trained by Adam, not
    by SGD with momentum.
    """

    words: str
    rows: int
    model: Callable[[], nn.Module]
    data: Callable[[np.random.Generator, int], tuple[Array, Array]]
    products: Callable[[int], list[Product]]
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    sizes: tuple[int, ...] = ()
    adam: bool = False


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


def training_step(
    workload: Workload, hook: Callable[..., None] | None = None, captured: bool = False
) -> Callable[[], Tensor]:
    """A function that makes one training step, on one of some batches that exist already, and returns the loss;
    `hook`: a communication hook of the model; captured: by `sx.compile`."""
    model, optimizer, batches = prepared(workload)
    if hook is not None:
        model.register_comm_hook(hook)
    loss_of = workload.loss

    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    made = sx.compile(step) if captured else step
    return lambda: made(*next(batches))


def prepared(workload: Workload) -> tuple[sx.DistributedDataParallel, Any, Iterator[tuple[Tensor, Tensor]]]:
    """What `training_step` works with: the wrapped model, its optimizer, and batches without end."""
    model, data = _beginning(workload)
    wrapped = sx.DistributedDataParallel(model)
    parameters = wrapped.parameters()
    optimizer = optim.Adam(parameters, lr=1e-4) if workload.adam else optim.SGD(parameters, lr=1e-3, momentum=0.9)
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
        lambda: Language(symbols, length, width, heads, layers),
        data,
        products,
        lambda scores, y: F.cross_entropy(scores.reshape(-1, symbols), y.reshape(-1)),
        (symbols, length, width, layers),
    )


def _recurrent() -> Workload:
    inputs, units, length, classes = 32, 128, 50, 10

    def data(generator: np.random.Generator, count: int) -> tuple[Array, Array]:
        return generator.standard_normal((count, length, inputs), np.float32), generator.integers(0, classes, count)

    def products(count: int) -> list[Product]:
        return recurrent(count, length, inputs, units, gates=4) + dense(count, units, classes)

    return Workload(
        f"LSTM {inputs}-{units}, sequences of {length}; batch 32",
        32,
        lambda: Recurrent(inputs, units, classes),
        data,
        products,
        sizes=(inputs, units, classes),
    )


def _residual() -> Workload:
    widths, size, classes = (16, 32, 64), 32, 10

    def data(generator: np.random.Generator, count: int) -> tuple[Array, Array]:
        return generator.standard_normal((count, 3, size, size), np.float32), generator.integers(0, classes, count)

    def products(count: int) -> list[Product]:
        made = convolved(count * size**2, 27, widths[0], first=True)
        for i, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False)):
            pixels = count * (size >> i) ** 2
            made += convolved(pixels, 9 * before, width) + convolved(pixels, 9 * width, width)
            made += convolved(pixels, before, width) if before != width else []
        return made + dense(count, widths[-1], classes)

    return Workload(
        "ResNet-8 on 32x32; batch 64", 64, lambda: Residual(*widths, classes=classes), data, products, sizes=widths
    )


def _encoder() -> Workload:
    width, heads, layers, length, classes = 256, 4, 2, 128, 10

    def data(generator: np.random.Generator, count: int) -> tuple[Array, Array]:
        x = generator.standard_normal((count, length, width), np.float32)
        return x, generator.integers(0, classes, (count, length))

    def products(count: int) -> list[Product]:
        places = count * length
        made = dense(places, width, classes)
        for i in range(layers):
            made += [
                *dense(places, width, 3 * width, first=i == 0),
                *attended(count * heads, length, width // heads),
                *dense(places, width, width),
                *dense(places, width, 4 * width),
                *dense(places, 4 * width, width),
            ]
        return made

    return Workload(
        f"encoder of width {width}, {heads} heads, {layers} layers, sequences of {length}; batch 8, Adam",
        8,
        lambda: Encoder(width, heads, layers, classes),
        data,
        products,
        lambda scores, y: F.cross_entropy(scores.reshape(-1, classes), y.reshape(-1)),
        (width, layers, classes),
        adam=True,
    )


def _regression() -> Workload:
    plain = _perceptron((32, 64, 64, 1), 64)

    def data(generator: np.random.Generator, count: int) -> tuple[Array, Array]:
        return plain.data(generator, count)[0], generator.standard_normal((count, 1), np.float32)

    return replace(plain, words=f"regression by an {plain.words}, Adam", data=data, loss=F.mse_loss, adam=True)


WORKLOADS = {
    "W1": _perceptron((784, 512, 512, 10), 256),
    "W2": _perceptron((1024, 4096, 4096, 1000), 512),
    "W3": _perceptron((64, 64, 10), 64),
    "W4": _convolutional(),
    "W5": _language(),
    "W6": _recurrent(),
    "W7": _residual(),
    "W8": _encoder(),
    "W9": _regression(),
}
