"""Activations and their first and second derivatives are PyTorch's."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

from sorix_dist import nn
from sorix_dist.core import Tensor, grad

torch = pytest.importorskip("torch")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ReLU", {}),
        ("LeakyReLU", {"negative_slope": 0.2}),
        ("Sigmoid", {}),
        ("Tanh", {}),
        ("GELU", {"approximate": "tanh"}),
        ("GELU", {"approximate": "none"}),
        ("SiLU", {}),
        ("ELU", {"alpha": 1.5}),
        ("Softplus", {"beta": 3.0, "threshold": 10.0}),
        ("Softmax", {"dim": 0}),
        ("Softmax", {"dim": -1}),
        ("LogSoftmax", {"dim": 1}),
        ("ReLU6", {}),
        ("PReLU", {"num_parameters": 4}),
        ("LogSigmoid", {}),
        ("Hardsigmoid", {}),
        ("Hardtanh", {"min_val": -2.0, "max_val": 3.0}),
        ("Mish", {}),
        ("Hardswish", {}),
        ("SELU", {}),
        ("Softsign", {}),
        ("GLU", {"dim": 1}),
        ("Unflatten", {"dim": 2, "unflattened_size": (5, 1)}),
        ("Flatten", {}),
        ("Identity", {}),
    ],
)
def test_values_and_derivatives(name: str, options: dict[str, Any]) -> None:
    if options.get("approximate") == "none" and not importlib.util.find_spec("scipy"):
        pytest.skip("needs SciPy")
    ours, theirs = (getattr(m, name)(**options) for m in (nn, torch.nn))
    if name == "PReLU":
        ours, theirs = ours.double(), theirs.double()
    rtol = 1e-7 if name.startswith("Hard") else 1e-10  # PyTorch divides by 6 in float32
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 4, 5)) * 6
    mine, other = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    got, expected = ours(mine), theirs(other)
    np.testing.assert_allclose(got.numpy(), expected.detach().numpy(), rtol=rtol, atol=1e-12)
    weights = rng.standard_normal(got.shape)
    (first,) = grad((got * weights).sum(), mine, create_graph=True)
    (wanted,) = torch.autograd.grad((expected * torch.tensor(weights)).sum(), other, create_graph=True)
    np.testing.assert_allclose(first.numpy(), wanted.detach().numpy(), rtol=10 * rtol, atol=1e-12)
    if not wanted.requires_grad or not first.requires_grad or name in ("ReLU", "LeakyReLU", "PReLU", "ReLU6"):
        return
    turned = rng.standard_normal(x.shape)
    (second,) = grad((first * turned).sum(), mine)
    (wanted,) = torch.autograd.grad((wanted * torch.tensor(turned)).sum(), other)
    np.testing.assert_allclose(second.numpy(), wanted.detach().numpy(), rtol=100 * rtol, atol=1e-11)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1.0])
def test_alpha_dropout(p: float) -> None:
    """The same two values of equal elements, as many of each but for chance."""
    ours = nn.functional.alpha_dropout(np.full((100, 100), 1.3), p, True).numpy()
    theirs = torch.nn.functional.alpha_dropout(torch.full((100, 100), 1.3, dtype=torch.float64), p, True).numpy()
    np.testing.assert_allclose(np.unique(ours.round(12)), np.unique(theirs.round(12)), rtol=1e-9)
    assert abs(ours.mean() - theirs.mean()) < 0.1
    assert nn.functional.alpha_dropout(np.ones(3), p).tolist() == [1, 1, 1]
