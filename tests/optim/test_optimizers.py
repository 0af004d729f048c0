"""Every optimizer against its formula written out for one parameter, in plain NumPy."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sorix_dist import Tensor, nn, optim

Array = Any
LR = 0.05


def sgd(w: Array, g: Array, s: dict[str, Any], t: int, o: dict[str, Any]) -> Array:
    g = g + o.get("weight_decay", 0) * w
    if o.get("momentum"):
        s["v"] = g if t == 1 else o["momentum"] * s["v"] + (1 - o.get("dampening", 0)) * g
        g = g + o["momentum"] * s["v"] if o.get("nesterov") else s["v"]
    return w - LR * g


def rmsprop(w: Array, g: Array, s: dict[str, Any], t: int, o: dict[str, Any]) -> Array:
    g = g + o.get("weight_decay", 0) * w
    alpha, eps = o.get("alpha", 0.99), o.get("eps", 1e-8)
    s["v"] = alpha * s.get("v", 0) + (1 - alpha) * g * g
    s["m"] = alpha * s.get("m", 0) + (1 - alpha) * g
    u = g / (np.sqrt(s["v"] - s["m"] ** 2 * o.get("centered", False)) + eps)
    s["u"] = o.get("momentum", 0) * s.get("u", 0) + u
    return w - LR * s["u"]


def adam(w: Array, g: Array, s: dict[str, Any], t: int, o: dict[str, Any], decoupled: bool = False) -> Array:
    decay = o.get("weight_decay", 0.01 if decoupled else 0)
    (b1, b2), eps = o.get("betas", (0.9, 0.999)), o.get("eps", 1e-8)
    w, g = (w * (1 - LR * decay), g) if decoupled else (w, g + decay * w)
    s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", 0) + (1 - b2) * g * g
    return w - LR * (s["m"] / (1 - b1**t)) / (np.sqrt(s["v"] / (1 - b2**t)) + eps)


def adamw(w: Array, g: Array, s: dict[str, Any], t: int, o: dict[str, Any]) -> Array:
    return adam(w, g, s, t, o, decoupled=True)


def adagrad(w: Array, g: Array, s: dict[str, Any], t: int, o: dict[str, Any]) -> Array:
    g = g + o.get("weight_decay", 0) * w
    s["s"] = s.get("s", o.get("initial_accumulator_value", 0)) + g * g
    return w - LR / (1 + (t - 1) * o.get("lr_decay", 0)) * g / (np.sqrt(s["s"]) + o.get("eps", 1e-10))


def amsgrad(w: Array, g: Array, s: dict[str, Any], t: int, o: dict[str, Any]) -> Array:
    s["m"], s["v"] = 0.9 * s.get("m", 0) + 0.1 * g, 0.999 * s.get("v", 0) + 0.001 * g * g
    s["most"] = np.maximum(s.get("most", 0), s["v"])
    return w - LR * (s["m"] / (1 - 0.9**t)) / (np.sqrt(s["most"] / (1 - 0.999**t)) + 1e-8)


def adamax(w: Array, g: Array, s: dict[str, Any], t: int, o: dict[str, Any]) -> Array:
    g = g + o.get("weight_decay", 0) * w
    s["m"] = 0.9 * s.get("m", 0) + 0.1 * g
    s["u"] = np.maximum(0.999 * s.get("u", 0), np.abs(g) + 1e-8)
    return w - LR / (1 - 0.9**t) * s["m"] / s["u"]


def nadam(w: Array, g: Array, s: dict[str, Any], t: int, o: dict[str, Any]) -> Array:
    g = g + o.get("weight_decay", 0) * w
    now, then = (0.9 * (1 - 0.5 * 0.96 ** (n * o.get("momentum_decay", 4e-3))) for n in (t, t + 1))
    s["product"] = float(np.float32(s.get("product", 1)) * np.float32(now))  # as PyTorch rounds it
    s["m"], s["v"] = 0.9 * s.get("m", 0) + 0.1 * g, 0.999 * s.get("v", 0) + 0.001 * g * g
    step = (1 - now) * g / (1 - s["product"]) + then * s["m"] / (1 - s["product"] * then)
    return w - LR * step / (np.sqrt(s["v"] / (1 - 0.999**t)) + 1e-8)


def radam(w: Array, g: Array, s: dict[str, Any], t: int, o: dict[str, Any]) -> Array:
    s["m"], s["v"] = 0.9 * s.get("m", 0) + 0.1 * g, 0.9 * s.get("v", 0) + 0.1 * g * g
    longest = 2 / 0.1 - 1
    length = longest - 2 * t * 0.9**t / (1 - 0.9**t)
    m = s["m"] / (1 - 0.9**t)
    if length <= 5:
        return w - LR * m
    r = np.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
    return w - LR * m * r * np.sqrt(1 - 0.9**t) / (np.sqrt(s["v"]) + 1e-8)


def adadelta(w: Array, g: Array, s: dict[str, Any], t: int, o: dict[str, Any]) -> Array:
    g = g + o.get("weight_decay", 0) * w
    s["v"] = 0.9 * s.get("v", 0) + 0.1 * g * g
    step = np.sqrt((s.get("u", 0) + 1e-6) / (s["v"] + 1e-6)) * g
    s["u"] = 0.9 * s.get("u", 0) + 0.1 * step * step
    return w - LR * step


def rprop(w: Array, g: Array, s: dict[str, Any], t: int, o: dict[str, Any]) -> Array:
    turned = np.sign(g * s.get("g", 0 * g))
    s["size"] = np.clip(s.get("size", LR) * np.where(turned > 0, 1.2, np.where(turned < 0, 0.5, 1)), 1e-6, 50)
    s["g"] = np.where(turned < 0, 0, g)
    return w - np.sign(s["g"]) * s["size"]


def ascent(w: Array, g: Array, s: dict[str, Any], t: int, o: dict[str, Any]) -> Array:
    return sgd(w, -g, s, t, o)


CASES: list[tuple[type[optim.Optimizer], Callable[..., Array], dict[str, Any]]] = [
    (optim.SGD, sgd, {}),
    (optim.SGD, sgd, {"weight_decay": 0.1}),
    (optim.SGD, sgd, {"momentum": 0.9}),
    (optim.SGDMomentum, sgd, {"momentum": 0.9}),
    (optim.SGD, sgd, {"momentum": 0.8, "weight_decay": 0.1, "dampening": 0.4}),
    (optim.SGD, sgd, {"momentum": 0.8, "weight_decay": 0.1, "nesterov": True}),
    (optim.RMSprop, rmsprop, {}),
    (optim.RMSprop, rmsprop, {"alpha": 0.8, "eps": 1e-3, "momentum": 0.5, "weight_decay": 0.1}),
    (optim.RMSprop, rmsprop, {"centered": True, "momentum": 0.5}),
    (optim.Adam, adam, {}),
    (optim.Adam, adam, {"betas": (0.5, 0.7), "eps": 1e-2, "weight_decay": 0.1}),
    (optim.AdamW, adamw, {}),
    (optim.AdamW, adamw, {"weight_decay": 0.2}),
    (optim.SGD, ascent, {"maximize": True}),
    (optim.SGD, ascent, {"maximize": True, "momentum": 0.8, "weight_decay": 0.1}),
    (optim.Adagrad, adagrad, {}),
    (optim.Adagrad, adagrad, {"lr_decay": 0.1, "initial_accumulator_value": 0.5, "eps": 1e-3, "weight_decay": 0.1}),
    (optim.Adam, amsgrad, {"amsgrad": True}),
    (optim.Adamax, adamax, {"weight_decay": 0.1}),
    (optim.NAdam, nadam, {}),
    (optim.NAdam, nadam, {"momentum_decay": 0.1, "weight_decay": 0.1}),
    (optim.RAdam, radam, {"betas": (0.9, 0.9)}),
    (optim.Adadelta, adadelta, {"weight_decay": 0.1}),
    (optim.Rprop, rprop, {}),
]
SHAPES = [(3, 2), (), (200, 200), (5,), (0, 3)]
everyone = pytest.mark.parametrize(
    ("kind", "formula", "options"), CASES, ids=[f"{c[0].__name__}-{'-'.join(c[2])}" for c in CASES]
)


@everyone
@pytest.mark.parametrize("dtypes", [("float64",), ("float32", "float64", "float32", "float64", "float64")])
def test_formula(kind: Any, formula: Any, options: dict[str, Any], dtypes: tuple[str, ...]) -> None:
    """Parameters of one dtype or mixed in one group; each is used in steps of its own and skipped in others."""
    numbers = np.random.default_rng(0)
    dtypes = dtypes * (len(SHAPES) // len(dtypes))
    params = [nn.Parameter(numbers.standard_normal(s).astype(d)) for s, d in zip(SHAPES, dtypes, strict=True)]
    wanted = [p.data.astype(np.float64) for p in params]
    states: list[dict[str, Any]] = [{} for _ in params]
    counts = [0] * len(params)
    optimizer = kind(params, lr=LR, **options)
    for step in range(12):
        optimizer.zero_grad()
        for i, p in enumerate(params):
            if (step + i) % (i + 1) == 0 and step >= i:
                p.grad = numbers.standard_normal(p.shape).astype(dtypes[i])
                counts[i] += 1
                gradient = p.grad.data.astype(np.float64)
                wanted[i] = formula(wanted[i], gradient, states[i], counts[i], options)
        before = [None if p.grad is None else p.grad.data.copy() for p in params]
        optimizer.step()
        for p, gradient in zip(params, before, strict=True):
            assert (p.grad is None) == (gradient is None)
            assert gradient is None or np.array_equal(p.grad.data, gradient)
    assert counts[0] > counts[1] > counts[2]
    for p, value, dtype in zip(params, wanted, dtypes, strict=True):
        assert p.dtype == dtype
        tolerance = 1e-12 if dtype == "float64" else 2e-5
        np.testing.assert_allclose(p.data, value, rtol=tolerance, atol=tolerance)


@everyone
def test_half_precision(kind: Any, formula: Any, options: dict[str, Any]) -> None:
    p = nn.Parameter(np.ones(3, np.float16))
    optimizer = kind([p], lr=0.01, **{**options, "eps": 1e-3} if "eps" in kind([p]).defaults else options)
    for _ in range(3):
        p.grad = np.full(3, 0.5, np.float16)
        optimizer.step()
    assert p.dtype == np.float16
    assert np.isfinite(p.data).all()
    assert (p.data > 1 if options.get("maximize") else p.data < 1).all()


def test_decay_is_another_name_for_alpha() -> None:
    made = optim.RMSprop([nn.Parameter(np.ones(2))], decay=0.7)
    assert made.param_groups[0]["alpha"] == 0.7
    assert "decay" not in made.param_groups[0]


def test_a_variance_that_rounding_makes_negative() -> None:
    """With a constant gradient the averages of g and of g² meet; their difference must not fall below zero."""
    p = nn.Parameter(np.ones(1000, np.float32))
    optimizer = optim.RMSprop([p], lr=1e-6, alpha=0.5, centered=True, eps=1e-3)
    gradient = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    for _ in range(60):
        p.grad = gradient
        optimizer.step()
    assert np.isfinite(p.data).all()


@everyone
def test_no_large_temporary(kind: Any, formula: Any, options: dict[str, Any]) -> None:
    p = nn.Parameter(np.ones((1000, 500), np.float32))
    optimizer = kind([p], lr=LR, **options)
    p.grad = np.ones((1000, 500))
    optimizer.step()
    tracemalloc.start()
    optimizer.step()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam])
def test_a_small_step_costs_little(kind: Any) -> None:
    """A model of four parameters: what a step costs beside the arithmetic, which the update alone takes."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = kind(model.parameters())
    for p in model.parameters():
        p.grad = np.ones(p.shape)
    optimizer.step()
    (state,), (group,) = optimizer._states, optimizer.param_groups
    ((_, ((data, grad, scratch, buffers),)),) = state._runs  # neighbours: one run, one block

    def fastest(function: Callable[[], Any]) -> float:
        times = []
        for _ in range(300):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        return min(times)

    arithmetic = fastest(lambda: optimizer.update(data, grad, buffers, scratch, group, 5))
    assert fastest(optimizer.step) - arithmetic < 10e-6
    assert fastest(optimizer.zero_grad) < 10e-6


def test_minimises() -> None:
    for kind in (optim.SGD, optim.SGDMomentum, optim.RMSprop, optim.Adam, optim.AdamW):
        x = Tensor(np.array([3.0, -2.0]), requires_grad=True)
        optimizer = kind([x], lr=0.02)
        for _ in range(1000):
            optimizer.zero_grad()
            ((x - 1) * (x - 1)).sum().backward()
            optimizer.step()
        assert np.allclose(x.data, 1, atol=0.05), kind
