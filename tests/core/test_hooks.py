"""Hooks see the complete gradient that a backward has for a tensor, and may replace it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sorix_dist import Tensor, grad, nn
from sorix_dist.core.flat import flatten


def leaf(*values: float) -> Tensor:
    return Tensor(np.array(values), requires_grad=True)


@pytest.mark.parametrize("stored", [False, True])
def test_a_leaf_that_is_used_twice_is_seen_once_with_its_sum(stored: bool) -> None:
    x, seen = leaf(1.0, 2.0), []
    if stored:
        flatten([x])
    x.register_hook(lambda g: seen.append(g.data.copy()))
    (x * x + 3 * x).sum().backward()
    assert [g.tolist() for g in seen] == [[5, 7]]
    assert x.grad.data.tolist() == [5, 7]


@pytest.mark.parametrize("stored", [False, True])
def test_what_a_hook_returns_is_added(stored: bool) -> None:
    x = leaf(1.0, 2.0)
    if stored:
        flatten([x])
    x.register_hook(lambda g: Tensor(np.minimum(g.data, 6)))
    x.register_hook(lambda g: g * 10)
    (x * x + 3 * x).sum().backward()
    assert x.grad.data.tolist() == [50, 60]
    x.sum().backward()
    assert x.grad.data.tolist() == [60, 70]


def test_a_computed_tensor() -> None:
    x, seen = leaf(1.0, 2.0), []
    y = x * 2
    y.retain_grad()
    y.register_hook(lambda g: seen.append(g.data.tolist()))
    y.register_hook(lambda g: -g)
    (y * y + y).sum().backward()
    assert seen == [[5, 9]]
    assert x.grad.data.tolist() == [-10, -18]
    assert y.grad.data.tolist() == [5, 9]


def test_a_removed_hook_is_silent() -> None:
    x, seen = leaf(1.0), []
    handle = x.register_hook(seen.append)
    other = x.register_hook(lambda g: g * 2)
    handle.remove()
    handle.remove()
    x.sum().backward()
    assert not seen
    assert x.grad.item() == 2
    other.remove()
    x.sum().backward()
    assert x.grad.item() == 3


def test_hooks_of_a_differentiable_backward() -> None:
    x = leaf(3.0)
    x.register_hook(lambda g: g * 2)
    (x**3).sum().backward(create_graph=True)
    assert x.grad.item() == 54
    (second,) = grad(x.grad.sum(), x)
    assert second.item() == 36


def test_hooks_outlive_a_move_and_a_conversion() -> None:
    model = nn.Linear(2, 1)
    model.W.register_hook(lambda g: g * 100)
    model.double()
    flatten(model.parameters())
    model(Tensor(np.ones((1, 2)))).sum().backward()
    assert model.W.grad.data.tolist() == [[100], [100]]


def wrong_shape(gradient: Any) -> Any:
    return np.zeros(7)


def test_errors() -> None:
    with pytest.raises(RuntimeError, match="does not require grad"):
        Tensor(np.ones(2)).register_hook(lambda g: g)
    x = leaf(1.0, 2.0)
    x.register_hook(wrong_shape)
    with pytest.raises(ValueError, match=r"gradient of shape .*2.*, got \(7,\)"):
        x.sum().backward()
    assert x.grad is None
