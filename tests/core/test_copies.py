"""What a copy of a tensor, a parameter, a model or an optimizer is: the values in memory of its own, no history."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import cloudpickle
import numpy as np
import pytest

from sorix_dist import Tensor, nn, optim
from sorix_dist.core.flat import flatten, leaf_of
from sorix_dist.core.placement import Batch, Rows, tagged

COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "cloudpickle": lambda thing: pickle.loads(cloudpickle.dumps(thing)),
}
pytestmark = pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES.keys())
X = Tensor(np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3))


def step(model: nn.Module, optimizer: optim.Optimizer) -> None:
    optimizer.zero_grad()
    (model(X) * model(X)).sum().backward()
    optimizer.step()


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(np.array_equal(p.data, q.data) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def test_a_tensor(duplicate: Any) -> None:
    x = tagged(Tensor(np.arange(6.0)[::2]), Batch(Rows(0, 3, 9)).at(0))
    y = duplicate(x)
    assert type(y) is Tensor
    assert y.data.tolist() == [0, 2, 4]
    assert y.rows == x.rows == (0, 3, 9, -1, -1, 0)
    assert y.place.axis == 0
    assert y.place.group is x.place.group
    assert not y.requires_grad
    y.data[0] = 7
    assert x.data[0] == 0


def test_a_shallow_copy_shares_the_values(duplicate: Any) -> None:
    p = Tensor(np.ones(2), requires_grad=True)
    p.sum().backward()
    q = copy.copy(duplicate(p))
    twin = copy.copy(q)
    assert twin.data is q.data
    twin.grad.data[...] = 0
    assert q.grad.data.tolist() == [1, 1]


def test_a_parameter_without_its_gradient(duplicate: Any) -> None:
    p = nn.Parameter(np.ones((2, 2), np.float32))
    (made,) = flatten([p, nn.Parameter(np.ones(3, np.float32))])
    (p * 3).sum().backward()
    q = duplicate(p)
    assert type(q) is nn.Parameter
    assert q.requires_grad
    assert q.is_leaf
    assert q.grad is None  # so that the copy's first backward does not add to it, as in PyTorch
    assert leaf_of(q).flat is None
    q.data[...] = 0
    (q * 5).sum().backward()
    assert p.data.sum() == 4
    assert p.grad.data.sum() == 12
    assert made.data.sum() == 7


def test_a_frozen_parameter(duplicate: Any) -> None:
    p = Tensor(np.ones(2), requires_grad=True).requires_grad_(False)
    q = duplicate(p)
    assert not q.requires_grad
    assert q.grad is None
    q.requires_grad = True
    (q * 2).sum().backward()
    assert q.grad.data.tolist() == [2, 2]


def test_a_computed_tensor_has_no_history(duplicate: Any) -> None:
    p = nn.Parameter(np.ones(2))
    y = p * 2
    y.retain_grad()
    y.sum().backward(retain_graph=True)
    z = duplicate(y)
    assert z.data.tolist() == [2, 2]
    assert not z.requires_grad
    assert y.requires_grad


def test_a_model_with_tied_parameters(duplicate: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[2].W = model[0].W
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    step(model, optimizer)
    twin = duplicate(model)
    assert twin[2].W is twin[0].W
    assert same(model, twin)
    step(model, optimizer)
    assert not same(model, twin)
    step(twin, optim.SGD(twin.parameters(), lr=0.1))
    assert same(model, twin)


def test_a_model_and_its_optimizer_stay_linked(duplicate: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    step(model, optimizer)
    twin, its_optimizer = duplicate((model, optimizer))
    assert its_optimizer.param_groups[0]["params"][0] is twin[0].W
    for _ in range(3):
        step(twin, its_optimizer)
    assert not same(model, twin)
    for _ in range(3):
        step(model, optimizer)
    assert same(model, twin)


def test_an_optimizer_and_its_scheduler_stay_linked(duplicate: Any) -> None:
    model = nn.Linear(3, 1)
    scheduler = optim.lr_scheduler.StepLR(optim.SGD(model.parameters(), lr=1.0), 1)
    twin = duplicate(scheduler)
    twin.step()
    assert twin.optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    assert scheduler.optimizer.param_groups[0]["lr"] == 1
