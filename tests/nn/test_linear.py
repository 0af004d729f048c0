"""The linear layer: its parameters, and arguments that make no sense."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn
from sorix_dist.core.ops import blocks, matrix


@pytest.mark.parametrize("dtype", [None, sx.float32, "float64", np.float64])
def test_parameters_have_the_dtype_that_was_asked_for(dtype: Any) -> None:
    layer = nn.Linear(3, 2, device=None, dtype=dtype)
    expected = np.dtype(dtype.dtype if isinstance(dtype, type(sx.float32)) else dtype or np.float32)
    assert layer.b is not None
    assert (layer.W.array.dtype, layer.b.array.dtype) == (expected, expected)
    assert layer(np.ones((4, 3), expected)).array.dtype == expected


def test_the_same_seed_gives_the_same_weights_in_any_dtype() -> None:
    sx.manual_seed(1)
    single = nn.Linear(30, 20)
    sx.manual_seed(1)
    assert np.array_equal(nn.Linear(30, 20, dtype=sx.float64).W.array, single.W.array)
    assert nn.Linear(30, 20, True, None, None).b is not None  # as a subclass passes PyTorch's device and dtype on


@pytest.mark.parametrize("without_copies", [True, False])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [
    (64, 64, 64), (64, 64, 10), (200, 50, 1), (3, 64, 64), (300, 60, 64), (40, 500, 520), (0, 64, 64), (64, 0, 3),
    (64, 256, 256), (48, 400, 304), (512, 32, 513), (32, 320, 1000),
])  # fmt: skip
def test_the_product_with_transposed_weights_is_the_product(
    rows: int, inputs: int, outputs: int, dtype: Any, without_copies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((matrix, "without_copies"), (matrix, "one_thread"), (blocks, "one_thread")):
        monkeypatch.setattr(module, name, lambda: without_copies)
    rng = np.random.default_rng(0)
    g, w = (rng.standard_normal(shape).astype(dtype) for shape in ((rows, outputs), (inputs, outputs)))
    eps = 10 * np.sqrt(outputs) * np.finfo(dtype).eps
    for weights in (w, np.asfortranarray(w)):
        got = matrix.times_transposed(g, weights)
        assert (got.dtype, got.flags.c_contiguous) == (dtype, True)
        np.testing.assert_allclose(got, g.astype(float) @ w.astype(float).T, rtol=eps, atol=10 * eps)


@pytest.mark.parametrize("init", ["he", "xavier"])
def test_the_variance_of_the_first_weights(init: str) -> None:
    weights = nn.Linear(400, 200, init=init).W.array
    fan = 400 if init == "he" else 600
    assert weights.std() == pytest.approx(np.sqrt(2 / fan), rel=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 0}, "Linear: features must be >= 1, got 0"),
        ({"neurons": 2.5}, "Linear: neurons must be an integer >= 1, got 2.5"),
        ({"init": "zeros"}, "init must be 'he' or 'xavier', got 'zeros'"),
        ({"device": "abacus"}, "device must be 'cpu', got 'abacus'"),
    ],
)
def test_arguments_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nn.Linear(**{"features": 2, "neurons": 2} | options)
