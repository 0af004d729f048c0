"""Embedding: rows, gradients of repeated rows, padding, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sorix_dist import nn
from sorix_dist.core import Tensor, grad
from sorix_dist.nn import functional as F


def test_rows_and_the_gradients_of_repeated_ones() -> None:
    layer = nn.Embedding(7, 3)
    index = np.array([[1, 1, 6], [0, 1, 6]])
    y = layer(Tensor(index))
    np.testing.assert_array_equal(y.numpy(), layer.W.numpy()[index])
    y.backward(np.ones((2, 3, 3)))
    np.testing.assert_array_equal(layer.W.grad.numpy(), np.array([1, 3, 0, 0, 0, 0, 2])[:, None] * np.ones(3))
    assert layer.W.grad.numpy().dtype == np.float32


@pytest.mark.parametrize("count", [5, 400])
def test_many_repeated_rows_add_up(count: int) -> None:
    rng = np.random.default_rng(0)
    table = Tensor(rng.standard_normal((count, 4)), requires_grad=True)
    index = np.minimum(rng.zipf(1.3, (50, 30)) - 1, count - 1)
    weights = rng.standard_normal((50, 30, 4))
    F.embedding(index, table).backward(weights)
    expected = np.zeros((count, 4))
    np.add.at(expected, index, weights)
    np.testing.assert_allclose(table.grad.numpy(), expected, rtol=1e-11, atol=1e-12)


def test_the_padding_row_starts_at_zero_and_is_not_trained() -> None:
    layer = nn.Embedding(5, 3, padding_idx=-1)
    assert layer.padding_idx == 4
    assert not layer.W.numpy()[4].any()
    layer.W.numpy()[4] = 7
    y = layer([4, 4, 2])
    np.testing.assert_array_equal(y.numpy()[0], [7, 7, 7])
    (first,) = grad((y * y).sum(), layer.W, create_graph=True)
    assert not first.numpy()[4].any()
    np.testing.assert_allclose(first.numpy()[2], 2 * layer.W.numpy()[2])
    (second,) = grad(first.sum(), layer.W)
    np.testing.assert_array_equal(second.numpy(), np.outer([0, 0, 2, 0, 0], [1, 1, 1]))


def test_no_rows_and_dtype() -> None:
    for dtype in ("float32", "float64"):
        layer = nn.Embedding(4, 2, dtype=dtype)
        y = layer(np.zeros((0, 3), int))
        assert y.shape == (0, 3, 2)
        y.sum().backward()
        assert not layer.W.grad.numpy().any()
        assert y.dtype == layer.W.grad.dtype == dtype


def test_bad_input_is_named() -> None:
    layer = nn.Embedding(10, 2)
    for index in ([1, 10], [-1, 2]):
        with pytest.raises(IndexError, match=r"\[0, 10\), got (10|-1) at"):
            layer(index)
    with pytest.raises(TypeError, match="integers, got dtype float64"):
        layer(np.array([1.0]))
    with pytest.raises(ValueError, match="num_embeddings must be >= 1"):
        nn.Embedding(0, 2)
    with pytest.raises(ValueError, match="embedding_dim must be >= 1"):
        nn.Embedding(2, 0)
    with pytest.raises(ValueError, match=r"padding_idx must be in \[-3, 3\), got 3"):
        nn.Embedding(3, 2, padding_idx=3)
    with pytest.raises(RuntimeError, match="computes on the CPU"):
        nn.Embedding(3, 2, "cuda")  # sorix's third argument
    assert nn.Embedding(3, 2, 1).padding_idx == 1  # PyTorch's
    assert repr(nn.Embedding(3, 2, padding_idx=1)) == "Embedding(3, 2, padding_idx=1)"


BAGS: list[tuple[dict[str, Any], list[float]]] = [  # options, and what bags of the rows 1, 2, 3 and 0, 0, 3 give
    ({"mode": "sum"}, [6, 3]),
    ({}, [2, 1]),
    ({"mode": "max"}, [3, 3]),
    ({"mode": "sum", "padding_idx": 3}, [3, 0]),
    ({"padding_idx": 3}, [1.5, 0]),
    ({"mode": "max", "padding_idx": 3}, [2, 0]),
    ({"padding_idx": 0}, [2, 3]),
]


@pytest.mark.parametrize(("options", "expected"), BAGS)
def test_bags(options: dict[str, Any], expected: list[float]) -> None:
    layer = nn.EmbeddingBag(4, 1, _weight=np.arange(4.0).reshape(4, 1), **options)
    assert layer(np.array([[1, 2, 3], [0, 0, 3]])).flatten().tolist() == expected
    assert layer(np.array([1, 2, 3, 0, 0, 3]), np.array([0, 3])).flatten().tolist() == expected
    assert layer(np.array([1, 2, 3]), np.array([0, 3])).flatten().tolist() == [expected[0], 0]
    none = np.zeros(0, int)
    assert layer(none, np.array([0, 0])).tolist() == layer(none.reshape(2, 0)).tolist() == [[0], [0]]
    assert layer(none, []).shape == (0, 1)


def test_bad_bags() -> None:
    layer = nn.EmbeddingBag(4, 1)
    for inputs, message in (
        ((np.array([1, 2]),), r"input must be \(B, L\), or a vector with offsets, got shape \(2,\)"),
        ((np.array([1, 2]), np.array([1])), "offsets must start at 0 and rise to at most 2"),
        ((np.array([1, 2]), np.array([0, 3])), "offsets must start at 0"),
        ((np.array([1, 2]), [0.0, 1.0]), r"offsets must be a vector of integers, got shape \(2,\) and dtype float64"),
        ((np.array([1, 2]), [[0, 1]]), r"offsets must be a vector of integers, got shape \(1, 2\)"),
        ((np.array([[1, 2]]), None, np.ones((1, 2))), "per_sample_weights need mode \"sum\", got 'mean'"),
    ):
        with pytest.raises(ValueError, match=message):
            layer(*inputs)
    with pytest.raises(ValueError, match="mode must be 'mean', 'sum' or 'max', got 'min'"):
        nn.EmbeddingBag(4, 1, mode="min")
    with pytest.raises(ValueError, match=r"_weight must have shape \(4, 1\), got \(4, 2\)"):
        nn.EmbeddingBag(4, 1, _weight=np.ones((4, 2)))
    summing = nn.EmbeddingBag.from_pretrained(np.ones((4, 1)), mode="sum")
    for factors in (np.ones(2), np.ones((2, 3))):
        with pytest.raises(ValueError, match=r"per_sample_weights must have the shape \(2, 2\) of input, got"):
            summing(np.ones((2, 2), int), None, factors)
