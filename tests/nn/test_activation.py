"""Activation layers: what they are called, what they refuse, dtypes, no rows, and extreme inputs."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np
import pytest

from sorix_dist import nn
from sorix_dist.core import Tensor
from sorix_dist.nn import functional as F

LAYERS = [
    nn.ReLU(),
    nn.LeakyReLU(0.2),
    nn.Sigmoid(),
    nn.Tanh(),
    nn.GELU(),
    nn.SiLU(),
    nn.ELU(),
    nn.Softplus(),
    nn.Softmax(dim=1),
    nn.LogSoftmax(dim=1),
    nn.Softmax(dim=0),
    nn.Flatten(),
    nn.Identity(),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("layer", LAYERS, ids=repr)
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_dtype_is_kept_with_any_number_of_rows(layer: nn.Module, rows: int) -> None:
    for dtype in (np.float16, np.float32, np.float64):
        x = Tensor(np.linspace(-3, 3, rows * 4).reshape(rows, 4).astype(dtype), requires_grad=True)
        y = layer(x)
        y.sum().backward()
        assert y.shape == x.grad.shape == (rows, 4)
        assert y.numpy().dtype == x.grad.numpy().dtype == dtype


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_large_inputs_give_finite_values_and_gradients(layer: nn.Module) -> None:
    for dtype in (np.float32, np.float64):
        x = Tensor(np.array([[-1e4, -100, 0, 100, 1e4]], dtype), requires_grad=True)
        y = layer(x)
        y.sum().backward()
        assert np.isfinite(y.numpy()).all()
        assert np.isfinite(x.grad.numpy()).all()


def test_small_probabilities_keep_their_digits() -> None:
    np.testing.assert_allclose(F.sigmoid(np.array([-40.0, -700.0])).numpy(), np.exp([-40.0, -700.0]), rtol=1e-12)
    np.testing.assert_allclose(F.softplus(np.array([-40.0])).numpy(), np.exp([-40.0]), rtol=1e-12)
    np.testing.assert_allclose(F.log_softmax(np.array([[0.0, 1e4]])).numpy(), [[-1e4, 0]])


def test_softmax_goes_along_its_dimension() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    for dim in (0, 1, 2, -1, -3):
        np.testing.assert_allclose(F.softmax(x, dim).numpy().sum(axis=dim), 1)
        np.testing.assert_allclose(nn.LogSoftmax(dim)(x).numpy(), np.log(nn.Softmax(dim)(x).numpy()))
    with pytest.raises(IndexError, match=r"dim must be in \[-3, 3\) .*got 3"):
        F.softmax(x, 3)


def test_gelu_by_name() -> None:
    x = np.linspace(-4, 4, 101)
    with pytest.raises(ValueError, match="approximate must be 'tanh' or 'none', got 'erf'"):
        nn.GELU("erf")
    if importlib.util.find_spec("scipy"):
        np.testing.assert_allclose(F.gelu(x, "none").numpy(), F.gelu(x).numpy(), atol=5e-4)


def test_gelu_without_scipy_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(importlib.import_module("sys").modules, "scipy.special", None)
    with pytest.raises(ImportError, match=r"SciPy.*approximate='tanh'"):
        F.gelu(np.zeros(3), approximate="none")


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.ReLU(), "ReLU()"),
        (nn.LeakyReLU(), "LeakyReLU(negative_slope=0.01)"),
        (nn.GELU(), "GELU(approximate='tanh')"),
        (nn.ELU(), "ELU(alpha=1.0)"),
        (nn.Softplus(2), "Softplus(beta=2, threshold=20.0)"),
        (nn.Softmax(1), "Softmax(dim=1)"),
        (nn.Flatten(), "Flatten(start_dim=1, end_dim=-1)"),
        (nn.Identity(3, a=4), "Identity()"),
    ],
)
def test_repr(layer: nn.Module, text: str) -> None:
    assert repr(layer) == text


def test_the_places_that_sorix_has() -> None:
    for place, names in {
        "layers": ["Linear", "ReLU", "LeakyReLU", "Sigmoid", "Tanh", "BatchNorm1d", "Dropout"],
        "net": ["Module", "Sequential", "ModuleList"],
        "loss": ["MSELoss", "BCEWithLogitsLoss", "CrossEntropyLoss"],
    }.items():
        module: Any = importlib.import_module(f"sorix_dist.nn.{place}")
        for name in names:
            assert getattr(module, name) is getattr(nn, name)


def test_flatten_keeps_the_batch() -> None:
    x = Tensor(np.zeros((0, 3, 4)), requires_grad=True)
    assert nn.Flatten()(x).shape == (0, 12)
    assert nn.Flatten(0, 1)(np.zeros((2, 3, 4))).shape == (6, 4)
    assert nn.Identity()(x) is x
