"""Starting values: their distribution, their place, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import Tensor, nn
from sorix_dist.core.flat import flatten
from sorix_dist.nn import init

SCALED: list[Callable[..., Tensor]] = [
    init.xavier_uniform_, init.xavier_normal_, init.kaiming_uniform_, init.kaiming_normal_,
]  # fmt: skip


@pytest.fixture(autouse=True)
def _seed() -> None:
    sx.manual_seed(3)


def weight(*shape: int) -> Tensor:
    return nn.Parameter(np.full(shape, np.nan, np.float32))


def test_uniform() -> None:
    t = init.uniform_(weight(200, 200), -2, 3)
    assert t.data.min() >= -2
    assert t.data.max() <= 3
    assert t.data.mean() == pytest.approx(0.5, abs=0.03)
    assert t.data.std() == pytest.approx(5 / sqrt(12), rel=0.02)


def test_normal() -> None:
    t = init.normal_(weight(200, 200), 1, 2)
    assert t.data.mean() == pytest.approx(1, abs=0.05)
    assert t.data.std() == pytest.approx(2, rel=0.02)
    assert not init.normal_(weight(3), std=0).data.any()


def test_constants() -> None:
    assert (init.constant_(weight(2, 3), 7).data == 7).all()
    assert not init.zeros_(weight(2, 3)).data.any()
    assert (init.ones_(weight()).data == 1).all()


@pytest.mark.parametrize(("mean", "std", "a", "b"), [(0, 1, -2, 2), (1, 0.02, 0.99, 1.5), (0, 1, 4, 5), (0, 1, -8, -7)])
def test_truncated_normal(mean: float, std: float, a: float, b: float) -> None:
    values = init.trunc_normal_(weight(100, 100), mean, std, a, b).data.astype(np.float64)
    assert values.min() >= np.float32(a)
    assert values.max() <= np.float32(b)
    # the moments of the density itself, on a fine grid
    grid = np.linspace(max(a, mean - 9 * std), min(b, mean + 9 * std), 100_001)
    density = np.exp(-(((grid - mean) / std) ** 2) / 2)
    wanted = (grid * density).sum() / density.sum()
    spread = sqrt(((grid - wanted) ** 2 * density).sum() / density.sum())
    assert values.mean() == pytest.approx(wanted, abs=4 * spread / 100)
    assert values.std() == pytest.approx(spread, rel=0.05)


def test_truncated_normal_where_nothing_is() -> None:
    for a, b in ((2, 1), (1, 1), (50, 60)):
        with pytest.raises(ValueError, match="must hold some of the distribution"):
            init.trunc_normal_(weight(3), a=a, b=b)
    assert init.trunc_normal_(weight(3), mean=1, std=0).data.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("shape", "fans"),
    [((300, 200), (300, 200)), ((64, 32, 3, 5), (32 * 15, 64 * 15)), ((64, 128, 3), (128 * 3, 64 * 3))],
)
def test_scales_by_fan(shape: tuple[int, ...], fans: tuple[int, int]) -> None:
    """A matrix is (in, out), a convolution's weight (out, in, kernel)."""
    assert init.fans(weight(*shape)) == fans
    xavier = 2 / sum(fans)
    cases: list[tuple[Tensor, float]] = [
        (init.xavier_uniform_(weight(*shape)), xavier),
        (init.xavier_normal_(weight(*shape), gain=3), 9 * xavier),
        (init.kaiming_uniform_(weight(*shape)), 2 / fans[0]),
        (init.kaiming_normal_(weight(*shape), a=1, mode="fan_out"), 1 / fans[1]),
        (init.kaiming_normal_(weight(*shape), nonlinearity="linear"), 1 / fans[0]),
        (init.kaiming_uniform_(weight(*shape), nonlinearity="tanh", mode="fan_out"), (5 / 3) ** 2 / fans[1]),
    ]
    for t, variance in cases:
        assert t.data.var() == pytest.approx(variance, rel=0.03)
        assert t.data.mean() == pytest.approx(0, abs=5 * sqrt(variance / t.numel))
    bound = sqrt(3 * xavier)
    assert np.abs(cases[0][0].data).max() == pytest.approx(bound, rel=0.01)
    assert np.abs(cases[0][0].data).max() <= bound


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 2, 3), (4, 4)])
def test_orthogonal(shape: tuple[int, ...]) -> None:
    q = init.orthogonal_(weight(*shape), gain=2).data.reshape(shape[0], -1)
    product = q @ q.T if q.shape[0] <= q.shape[1] else q.T @ q
    assert np.allclose(product, 4 * np.eye(len(product)), atol=1e-5)


@pytest.mark.parametrize("function", [*SCALED, init.orthogonal_])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_too_few_dimensions(function: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    t = weight(*shape)
    with pytest.raises(ValueError, match="fewer than 2 dimensions"):
        function(t)
    assert np.isnan(t.data).all()


def test_names_that_are_not_known() -> None:
    with pytest.raises(ValueError, match="mode must be 'fan_in' or 'fan_out', got 'fan'"):
        init.kaiming_normal_(weight(2, 2), mode="fan")
    with pytest.raises(ValueError, match=r"nonlinearity must be .*'relu'.*, got 'softmax'"):
        init.kaiming_uniform_(weight(2, 2), nonlinearity="softmax")
    with pytest.raises(ValueError, match="std must be >= 0, got -1"):
        init.normal_(weight(2), std=-1)
    with pytest.raises(ValueError, match="a must be <= b"):
        init.uniform_(weight(2), 1, 0)
    with pytest.raises(TypeError, match="t must be a Tensor, got list"):
        init.zeros_([1.0])  # type: ignore[arg-type]


@pytest.mark.parametrize("function", [*SCALED, init.orthogonal_, init.trunc_normal_, init.uniform_, init.normal_])
def test_in_place_without_history_and_by_the_seed(function: Callable[..., Tensor]) -> None:
    t = weight(4, 3)
    (made,) = flatten([t])
    memory: Any = t.data
    sx.manual_seed(1)
    assert function(t) is t
    assert t.data is memory
    assert np.array_equal(made.data[:12], t.data.reshape(-1))
    assert t.requires_grad
    assert t.is_leaf
    assert t.dtype == sx.float32
    first = t.data.copy()
    assert not np.array_equal(function(t).data, first)
    sx.manual_seed(1)
    assert np.array_equal(function(t).data, first)


@pytest.mark.parametrize("function", [*SCALED, init.orthogonal_, init.trunc_normal_])
def test_no_elements(function: Callable[..., Tensor]) -> None:
    assert function(weight(0, 3)).shape == (0, 3)
    assert function(weight(0, 0)).shape == (0, 0)


def test_identities() -> None:
    assert init.eye_(Tensor(np.full((2, 3), 7.0))).tolist() == [[1, 0, 0], [0, 1, 0]]
    weight = init.dirac_(Tensor(np.full((4, 2, 3), 7.0)), groups=2)
    assert weight.tolist() == [[[0, 1, 0], [0, 0, 0]], [[0, 0, 0], [0, 1, 0]]] * 2
    assert init.dirac_(Tensor(np.ones((3, 1, 2, 2)))).sum().item() == 1
    with pytest.raises(ValueError, match=r"eye_: t must be a matrix, got shape \(3,\)"):
        init.eye_(Tensor(np.zeros(3)))
    with pytest.raises(ValueError, match=r"dirac_: t must be .* multiple of 2, got shape \(3, 2, 3\)"):
        init.dirac_(Tensor(np.zeros((3, 2, 3))), 2)
