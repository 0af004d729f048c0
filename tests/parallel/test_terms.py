"""The numbers that a loss is computed from are those of the global batch after its backward, as the loss itself."""

from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.comm import run_threads
from sorix_dist.nn import functional as F
from sorix_dist.utils.data import DataLoader, Dataset


def divergence(h: Any) -> Any:
    return -0.5 * (1 + h - h**2 - h.exp()).sum(1).mean()


def error(h: Any, y: Any) -> Any:
    return ((h - y) ** 2).mean()


LOSSES: dict[str, Any] = {
    # of terms a and b: the loss, and further numbers
    "sum": lambda a, b: [a + b],
    "weighted": lambda a, b: [a + (c := 0.3 * b), c],
    "divided": lambda a, b: [(a + b) / 4],
    "sum()": lambda a, b: [sum([a, b, b]) * 0.5],
    "stack": lambda a, b: [sx.stack([a, b]).sum()],
    "nested": lambda a, b: [(d := (c := a + b) * 2 - b) / 3 + a, c, d],
    "beside a root": lambda a, b: [b.sqrt() + a + b],
    "beside a product": lambda a, b: [a * b + a + b],
}


def recorded(name: str, captured: bool, pieces: bool) -> list[list[float]]:
    sx.manual_seed(0)
    draw = np.random.default_rng(5)
    data = Dataset(draw.standard_normal((44, 4)), draw.standard_normal((44, 2)))
    model = sx.DistributedDataParallel(nn.Linear(4, 2).double())
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def backward(x: Any, y: Any) -> list[Any]:
        h = model(x)
        a, b = error(h, y), divergence(h)
        loss, *others = LOSSES[name](a, b)
        loss.backward()
        return [loss, a, b, *others]

    def step(x: Any, y: Any) -> list[Any]:
        optimizer.zero_grad()
        found = backward(x, y)
        optimizer.step()
        return found

    if pieces:
        optimizer.zero_grad()
        batches = [*DataLoader(data, batch_size=9)][:3]
        found = [backward(x, y) for x, y in model.accumulate(batches)]
    else:
        step = sx.compile(step) if captured else step
        found = [step(x, y) for _ in range(3) for x, y in DataLoader(data, batch_size=9)]
    return [[x.item() for x in numbers] for numbers in found]


@pytest.mark.parametrize("way", ["eager", "captured", "pieces"])
@pytest.mark.parametrize("name", LOSSES)
def test_numbers_after_a_backward(name: str, way: str):
    if way == "pieces" and name.startswith("beside"):
        for ranks in (1, 3):
            with pytest.raises(RuntimeError, match="beside a root or a product of others"):
                run_threads(lambda: recorded(name, False, True), ranks)
        return
    wanted = run_threads(lambda: recorded(name, way == "captured", way == "pieces"), 1)[0]
    for ranks in (2, 3):
        for found in run_threads(lambda: recorded(name, way == "captured", way == "pieces"), ranks):
            np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_a_loss_of_many_terms():
    """The nearest ones are found; ranks agree on them."""

    def work() -> list[float]:
        sx.manual_seed(0)
        draw = np.random.default_rng(5)
        model = sx.DistributedDataParallel(nn.Linear(4, 2).double())
        x, y = next(iter(DataLoader(Dataset(draw.standard_normal((9, 4)), draw.standard_normal((9, 2))), batch_size=9)))
        terms = [F.mse_loss(model(x) * k, y) for k in range(1, 200)]
        loss = sum(terms)
        loss.backward()
        return [loss.item(), terms[-1].item()]

    one, two = (run_threads(work, ranks)[0] for ranks in (1, 2))
    np.testing.assert_allclose(two, one, rtol=1e-12)
