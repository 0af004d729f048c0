"""Twenty steps of every optimizer and option, with the same gradients, end where PyTorch's do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import Tensor, nn, optim
from tests.support.users_optimizers import trials, turn

torch = pytest.importorskip("torch")

CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {}),
    ("SGD", {"weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9, "dampening": 0.3}),
    ("SGD", {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("RMSprop", {}),
    ("RMSprop", {"alpha": 0.9, "eps": 1e-3, "weight_decay": 0.1}),
    ("RMSprop", {"momentum": 0.9}),
    ("RMSprop", {"centered": True}),
    ("RMSprop", {"centered": True, "momentum": 0.9, "weight_decay": 0.1}),
    ("Adam", {}),
    ("Adam", {"betas": (0.5, 0.9), "eps": 1e-2}),
    ("Adam", {"betas": (0.0, 0.0)}),
    ("Adam", {"weight_decay": 0.1}),
    ("AdamW", {}),
    ("AdamW", {"weight_decay": 0.0}),
    ("AdamW", {"betas": (0.8, 0.99), "weight_decay": 0.3}),
    ("SGD", {"maximize": True, "momentum": 0.9, "weight_decay": 0.1}),
    ("RMSprop", {"maximize": True, "centered": True}),
    ("Adagrad", {}),
    ("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.5, "weight_decay": 0.1, "maximize": True}),
    ("Adam", {"amsgrad": True, "weight_decay": 0.1}),
    ("AdamW", {"amsgrad": True, "maximize": True, "betas": (0.5, 0.7)}),
    ("Adamax", {}),
    ("Adamax", {"betas": (0.5, 0.9), "weight_decay": 0.1, "maximize": True}),
    ("NAdam", {}),
    ("NAdam", {"momentum_decay": 0.1, "weight_decay": 0.1}),
    ("NAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True}),
    ("RAdam", {}),
    ("Adadelta", {}),
    ("Adadelta", {"rho": 0.5, "eps": 1e-3, "weight_decay": 0.1, "maximize": True}),
    ("Rprop", {}),
    ("Rprop", {"etas": (0.3, 1.5), "step_sizes": (1e-3, 0.1), "maximize": True}),
    ("RAdam", {"betas": (0.8, 0.9), "weight_decay": 0.1}),
    ("RAdam", {"betas": (0.8, 0.9), "weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True}),
]
TOLERANCE = {"float32": 2e-6, "float64": 1e-13}
SHAPES = [(7, 5), (1, 5), (), (3,), (40, 1000)]  # the last one is more than one block


def used(step: int, i: int) -> bool:
    """Which parameter has a gradient in which step: the first always, others with gaps, one late."""
    return i == 0 or (i == 1 and step % 3 != 1) or (i in (2, 4) and step >= 4) or (i == 3 and step % 2 == 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{n}-{'-'.join(o)}" for n, o in CASES])
def test_twenty_steps(name: str, options: dict[str, Any], dtype: str) -> None:
    numbers = np.random.default_rng(0)
    starts = [numbers.standard_normal(shape).astype(dtype) for shape in SHAPES]
    ours = [nn.Parameter(start.copy()) for start in starts]
    theirs = [torch.nn.Parameter(torch.tensor(start)) for start in starts]
    optimizers = [
        getattr(optim, name)(ours, lr=0.03, **options),
        getattr(torch.optim, name)(theirs, lr=0.03, **options),
    ]
    for step in range(20):
        for optimizer in optimizers:
            optimizer.zero_grad()
        for i, (own, its) in enumerate(zip(ours, theirs, strict=True)):
            if used(step, i):
                gradient = numbers.standard_normal(own.shape).astype(dtype)
                own.grad, its.grad = Tensor(gradient), torch.tensor(gradient)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.param_groups[0]["lr"] *= 0.97
    tolerance = TOLERANCE[dtype]
    for own, its in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(own.data, its.detach().numpy(), rtol=tolerance, atol=3 * tolerance)


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam", "AdamW"])
def test_parameter_groups(name: str) -> None:
    """Groups with options of their own, and one that is added on the way."""
    numbers = np.random.default_rng(1)
    starts = [numbers.standard_normal((4, 3)) for _ in range(4)]
    ours = [nn.Parameter(start.copy()) for start in starts]
    theirs = [torch.nn.Parameter(torch.tensor(start)) for start in starts]
    made = []
    for package, parameters in ((optim, ours), (torch.optim, theirs)):
        groups = [{"params": parameters[:2], "lr": 0.1}, {"params": parameters[2:3], "weight_decay": 0.2}]
        made.append(getattr(package, name)(groups, lr=0.01))
    for step in range(20):
        if step == 5:
            for optimizer, parameters in zip(made, (ours, theirs), strict=True):
                optimizer.add_param_group({"params": parameters[3:], "lr": 0.2})
        for own, its in zip(ours, theirs, strict=True):
            gradient = numbers.standard_normal(own.shape)
            own.grad, its.grad = Tensor(gradient), torch.tensor(gradient)
        for optimizer in made:
            optimizer.step()
    for own, its in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(own.data, its.detach().numpy(), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "name", ["RMSprop", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "Rprop"]
)
def test_state_of_the_other_library(name: str) -> None:
    """A state dict of PyTorch's optimizer goes on here."""
    numbers = np.random.default_rng(2)
    start = numbers.standard_normal((4, 3))
    own, its = nn.Parameter(start.copy()), torch.nn.Parameter(torch.tensor(start))
    ours, theirs = getattr(optim, name)([own], lr=0.01), getattr(torch.optim, name)([its], lr=0.01)
    for step in range(10):
        gradient = numbers.standard_normal(own.shape)
        own.grad, its.grad = Tensor(gradient), torch.tensor(gradient)
        theirs.step()
        if step == 5:
            own.data = its.detach().numpy().copy()
            ours.load_state_dict(theirs.state_dict())
        elif step > 5:
            ours.step()
    np.testing.assert_allclose(own.data, its.detach().numpy(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("norm_type", [1.0, 2.0, 2.5, float("inf")])
@pytest.mark.parametrize("max_norm", [0.5, 1e9])
def test_clipping(max_norm: float, norm_type: float, dtype: str) -> None:
    numbers = np.random.default_rng(3)
    ours = [nn.Parameter(np.zeros(shape, dtype)) for shape in SHAPES]
    theirs = [torch.nn.Parameter(torch.zeros(shape, dtype=getattr(torch, dtype))) for shape in SHAPES]
    optim.SGD(ours)
    for own, its in list(zip(ours, theirs, strict=True))[1:]:
        gradient = numbers.standard_normal(own.shape).astype(dtype)
        own.grad, its.grad = Tensor(gradient), torch.tensor(gradient)
    total = nn.utils.clip_grad_norm_(ours, max_norm, norm_type)
    wanted = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    assert total.item() == pytest.approx(wanted.item(), rel=tolerance)
    nn.utils.clip_grad_value_(ours, 0.1)
    torch.nn.utils.clip_grad_value_(theirs, 0.1)
    for own, its in list(zip(ours, theirs, strict=True))[1:]:
        np.testing.assert_allclose(own.grad.data, its.grad.numpy(), rtol=tolerance)


@pytest.mark.parametrize("name", trials(torch))
def test_users_optimizers(name: str) -> None:
    """One text, written for PyTorch: after six steps the same weights."""
    numbers = np.random.default_rng(0)
    x, y = numbers.standard_normal((23, 5)), numbers.standard_normal((23, 3))
    starts = [numbers.standard_normal(shape) for shape in ((5, 7), (7,), (7, 3), (3,))]
    found = []
    for package in (torch, sx):
        parameters = [package.tensor(start, dtype=package.float64, requires_grad=True) for start in starts]
        make, how = trials(package)[name]
        optimizer, inputs, labels = make(parameters), package.tensor(x), package.tensor(y)

        def backward(package: Any = package, p: Any = parameters, inputs: Any = inputs, labels: Any = labels) -> Any:
            loss = ((package.tanh(inputs @ p[0] + p[1]) @ p[2] + p[3] - labels) ** 2).mean()
            loss.backward()
            return loss

        for _ in range(6):
            turn(optimizer, how, backward)
        found.append([p.detach().numpy() for p in parameters])
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)
