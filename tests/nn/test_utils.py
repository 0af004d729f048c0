"""Clipping of gradients, and parameters as one vector."""

from __future__ import annotations

import tracemalloc
from math import inf, nan
from typing import Any

import numpy as np
import pytest

from sorix_dist import Tensor, grad, nn, optim
from sorix_dist.core import flat
from sorix_dist.nn.utils import clip_grad_norm_, clip_grad_value_, parameters_to_vector, vector_to_parameters


def with_gradients(*values: Any, dtype: Any = np.float64, stored: bool = True) -> list[Tensor]:
    ps = [nn.Parameter(np.zeros(np.shape(v), dtype)) for v in values]
    if stored:
        flat.flatten(ps)
    for p, value in zip(ps, values, strict=True):
        p.grad = np.asarray(value, dtype)
    return ps


def gradients(ps: list[Tensor]) -> Any:
    return np.concatenate([p.grad.data.reshape(-1) for p in ps])


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(("norm_type", "norm"), [(2, 13.0), (1, 19.0), (inf, 12.0), (3, (27 + 64 + 1728) ** (1 / 3))])
def test_norms(norm_type: float, norm: float, stored: bool) -> None:
    ps = with_gradients([3.0], [[-4.0], [-12.0]], stored=stored)
    total = clip_grad_norm_(ps, 6.5, norm_type)
    assert total.item() == pytest.approx(norm)
    assert np.allclose(gradients(ps), np.array([3, -4, -12]) * 6.5 / norm, rtol=1e-6)
    assert np.linalg.norm(gradients(ps), norm_type) <= 6.5


def test_a_small_norm_is_left_as_it_is() -> None:
    ps = with_gradients([3.0], [4.0])
    assert clip_grad_norm_(iter(ps), 5.1).item() == 5
    assert gradients(ps).tolist() == [3, 4]
    assert clip_grad_norm_(ps, inf).item() == 5
    assert gradients(ps).tolist() == [3, 4]


def test_the_norm_can_be_used_as_a_number() -> None:
    norm = clip_grad_norm_(with_gradients([3.0, 4.0], dtype=np.float32), 1)
    assert norm.dtype == np.float32
    assert f"{norm:.1f}" == "5.0"
    assert float(norm) == 5
    assert norm > 4


def test_parameters_without_gradient_do_not_count() -> None:
    ps = with_gradients([3.0], [100.0], [4.0])
    ps[1].grad = None
    assert clip_grad_norm_(ps, 1).item() == 5
    assert ps[1].grad is None
    assert clip_grad_norm_([], 1).item() == 0
    assert clip_grad_norm_(ps[1], 1).item() == 0


def test_a_tied_parameter_counts_once() -> None:
    (p,) = with_gradients([3.0, 4.0])
    assert clip_grad_norm_([p, p], 1).item() == 5
    assert np.linalg.norm(p.grad.data) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_large_numbers_do_not_overflow(dtype: Any) -> None:
    large = {np.float16: 3e4, np.float32: 2e38, np.float64: 1e150}[dtype]
    ps = with_gradients([large, 0.0], dtype=dtype)
    assert float(clip_grad_norm_(ps, 1)) == pytest.approx(large, rel=1e-3)
    assert gradients(ps)[0] == pytest.approx(1, rel=1e-2)


def test_a_norm_that_is_not_finite() -> None:
    for bad in (nan, inf):
        ps = with_gradients([3.0, bad], [4.0])
        with pytest.raises(RuntimeError, match=f"norm of the gradients is {bad}"):
            clip_grad_norm_(ps, 1.0, error_if_nonfinite=True)
        assert gradients(ps)[[0, 2]].tolist() == [3, 4]
    assert clip_grad_norm_(ps, 1.0).item() == inf
    assert gradients(ps)[[0, 2]].tolist() == [0, 0]
    ps = with_gradients([3.0, nan], [4.0])
    assert np.isnan(clip_grad_norm_(ps, 1.0).item())
    assert np.isnan(gradients(ps)).all()


@pytest.mark.parametrize("bad", [nan, inf])
def test_the_step_after_one_that_was_not_finite_is_sound(bad: float) -> None:
    """The gaps of flat storage stay zero, whatever the gradients are multiplied with."""
    ps = with_gradients([3.0, bad], [4.0])
    clip_grad_norm_(ps, 1.0)
    for p, value in zip(ps, ([3.0, 0.0], [4.0]), strict=True):
        p.grad = np.array(value)
    assert clip_grad_norm_(ps, 1.0).item() == 5


def test_a_gradient_with_history_shows_what_was_clipped() -> None:
    x = nn.Parameter(np.array([2.0]))
    (x**3).sum().backward(create_graph=True)
    first = x.grad
    clip_grad_norm_(x, 1.0)
    assert x.grad.item() == pytest.approx(1, rel=1e-6)
    assert grad(first.sum(), x)[0].item() == 12


def test_values() -> None:
    ps = with_gradients([3.0, -7.0], [[0.5]])
    clip_grad_value_(ps, 2)
    assert gradients(ps).tolist() == [2, -2, 0.5]


def test_no_large_temporary() -> None:
    ps = with_gradients(np.ones((1000, 1000)), dtype=np.float32)
    clip_grad_norm_(ps, 1.0)
    tracemalloc.start()
    for norm_type in (2.0, 1.0, 3.0, inf):
        clip_grad_norm_(ps, 0.5, norm_type)
    clip_grad_value_(ps, 1e-4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("bad", [-1, nan])
def test_bounds_are_checked(bad: float) -> None:
    ps = with_gradients([3.0])
    with pytest.raises(ValueError, match="max_norm must be >= 0"):
        clip_grad_norm_(ps, bad)
    with pytest.raises(ValueError, match="norm_type must be >"):
        clip_grad_norm_(ps, 1, norm_type=bad)
    with pytest.raises(ValueError, match="norm_type must be > 0, got 0"):
        clip_grad_norm_(ps, 1, norm_type=0)
    with pytest.raises(ValueError, match="clip_value must be >= 0"):
        clip_grad_value_(ps, bad)
    with pytest.raises(TypeError, match="parameters must hold tensors, got Linear at 0"):
        clip_grad_norm_(nn.Sequential(nn.Linear(2, 2)), 1.0)
    assert gradients(ps).tolist() == [3]


def test_the_optimizer_takes_the_clipped_gradient() -> None:
    ps = with_gradients([3.0], [4.0], stored=False)
    optimizer = optim.SGD(ps, lr=1.0)
    clip_grad_norm_(ps, 0.5)
    optimizer.step()
    assert np.allclose([p.item() for p in ps], [-0.3, -0.4], rtol=1e-6)


def test_vectors() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    vector = parameters_to_vector(model.parameters())
    assert vector.shape == (3 * 2 + 2 + 2 + 1,)
    (vector * vector).sum().backward()
    assert np.array_equal(model[1].W.grad.data, 2 * model[1].W.data)
    assert not np.shares_memory(parameters_to_vector([model[0].W]).data, model[0].W.data)
    memory = model[0].W.data
    vector_to_parameters(vector * 2, model.parameters())
    assert model[0].W.data is memory
    assert np.array_equal(parameters_to_vector(model.parameters()).data, 2 * vector.data)
    vector_to_parameters(np.zeros(11), model.parameters())
    assert not optimizer.param_groups[0]["params"][0].data.any()
    with pytest.raises(ValueError, match=r"vec must have shape \(11,\) for these parameters, got \(10,\)"):
        vector_to_parameters(np.ones(10), model.parameters())
    assert not model[0].W.data.any()
    with pytest.raises(ValueError, match="at least one tensor"):
        parameters_to_vector([])
