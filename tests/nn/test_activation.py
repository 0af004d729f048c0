"""Activation layers: what they are called, what they refuse, dtypes, no rows, and extreme inputs."""

from __future__ import annotations

import importlib
import importlib.util
import math
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
    nn.ReLU6(),
    nn.LogSigmoid(),
    nn.Hardsigmoid(),
    nn.Hardtanh(-2, 3),
    nn.Mish(),
    nn.Hardswish(),
    nn.SELU(),
    nn.Softsign(),
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


X = np.array([[-4.0, -1.0, 0.5, 7.0]])


@pytest.mark.parametrize(
    ("layer", "values"),
    [
        (nn.ReLU(inplace=True), [0, 0, 0.5, 7]),
        (nn.ReLU6(), [0, 0, 0.5, 6]),
        (nn.LeakyReLU(0.1, inplace=True), [-0.4, -0.1, 0.5, 7]),
        (nn.PReLU(init=0.5), [-2, -0.5, 0.5, 7]),
        (nn.LogSigmoid(), [-4.0181499279, -1.3132616875, -0.4740769842, -0.0009114665]),
        (nn.Hardsigmoid(), [0, 1 / 3, 3.5 / 6, 1]),
        (nn.Hardtanh(-2, 3), [-2, -1, 0.5, 3]),
        (nn.Mish(), [-0.07259174079, -0.30340146137, 0.3752452113, 6.99998837981]),
        (nn.Hardswish(), [0, -1 / 3, 1.75 / 6, 7]),
        (nn.SELU(), [-1.7258986281, -1.1113307378, 0.5253504937, 7.3549069115]),
        (nn.Softsign(), [-0.8, -0.5, 1 / 3, 7 / 8]),
        (nn.GLU(), [-2.4898373250, -0.9990889488]),
    ],
    ids=repr,
)
def test_values(layer: nn.Module, values: list[float]) -> None:
    np.testing.assert_allclose(layer(X).numpy(), [values], rtol=1e-8, atol=1e-10)


def test_prelu_trains_a_weight_for_each_channel() -> None:
    x = Tensor(np.array([[-1.0, 2.0], [-3.0, -4.0]]), requires_grad=True)
    layer = nn.PReLU(2, init=0.5, dtype=np.float64)
    layer(x).sum().backward()
    assert layer.weight.grad.numpy().tolist() == [-4, -4]
    assert x.grad.numpy().tolist() == [[0.5, 1], [0.5, 0.5]]
    with pytest.raises(ValueError, match="weight must have 1 element or 2, one per channel, got 3"):
        F.prelu(x, np.ones(3))
    with pytest.raises(ValueError, match=r"even number of elements along dim -1, got shape \(2, 3\)"):
        F.glu(np.ones((2, 3)))


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


def test_gelu_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.linspace(-4, 4, 101)
    monkeypatch.setitem(importlib.import_module("sys").modules, "scipy.special", None)
    below = np.array([(1 + math.erf(v / math.sqrt(2))) / 2 for v in x])
    np.testing.assert_allclose(F.gelu(x, approximate="none").numpy(), x * below, rtol=1e-14)


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


@pytest.mark.parametrize(("function", "value"), [(F.softmax, 1.0), (F.log_softmax, 0.0), (F.softmin, 1.0)])
def test_a_number_without_dimensions(function: Any, value: float) -> None:
    x = Tensor(1.5, requires_grad=True)
    result = function(x, dim=0)
    result.backward()
    assert (result.item(), result.shape, x.grad.item()) == (value, (), 0.0)
