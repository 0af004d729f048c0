"""Attention and transformer layers: masks, layouts, dropout, empty batches, and what is refused."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn
from sorix_dist.core import Tensor
from sorix_dist.nn import functional as F
from tests.support.core.sharded import sharded

RNG = np.random.default_rng(0)


def tensor(*shape: int) -> Tensor:
    return Tensor(RNG.standard_normal(shape), requires_grad=True)


def test_bool_float_and_causal_masks_say_the_same() -> None:
    q, k, v = tensor(2, 3, 4, 5), tensor(2, 3, 4, 5), tensor(2, 3, 4, 6)
    sees = np.tril(np.ones((4, 4), bool))
    causal = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    by_bool = F.scaled_dot_product_attention(q, k, v, sees)
    by_float = F.scaled_dot_product_attention(q, k, v, Tensor(np.where(sees, 0, -np.inf)))
    np.testing.assert_array_equal(causal.numpy(), by_bool.numpy())
    np.testing.assert_array_equal(causal.numpy(), by_float.numpy())
    np.testing.assert_allclose(causal.numpy()[..., 0, :], v.numpy()[..., 0, :])  # the first sees itself only


@pytest.mark.filterwarnings("error")
def test_a_query_that_sees_nothing_gets_zeros_and_gives_no_gradient() -> None:
    q, k, v = tensor(2, 3, 4), tensor(2, 5, 4), tensor(2, 5, 4)
    sees = np.ones((3, 5), bool)
    sees[1] = False
    y = F.scaled_dot_product_attention(q, k, v, sees)
    (y * y).sum().backward()
    assert not y.numpy()[:, 1].any()
    assert y.numpy()[:, 0].all()
    assert not q.grad.numpy()[:, 1].any()
    assert all(np.isfinite(x.grad.numpy()).all() for x in (q, k, v))


def test_a_float_mask_learns() -> None:
    q, bias = tensor(2, 3, 4), tensor(3, 3)
    F.scaled_dot_product_attention(q, q, q, bias).sum().backward()
    assert bias.grad.shape == (3, 3)
    np.testing.assert_allclose(bias.grad.numpy().sum(axis=1), 0, atol=1e-12)  # a softmax ignores what all share


def test_large_scores_stay_finite() -> None:
    q = Tensor(np.array([[[1e4], [-1e4]]], np.float32), requires_grad=True)
    y = F.scaled_dot_product_attention(q, q, q)
    y.sum().backward()
    np.testing.assert_array_equal(y.numpy(), q.numpy())
    assert np.isfinite(q.grad.numpy()).all()


def attend(layer: Any, x: np.ndarray, **options: Any) -> np.ndarray:
    return layer(Tensor(x), Tensor(x.copy()), Tensor(x.copy()), **options)[0].numpy()


@pytest.mark.parametrize("bias", [True, False])
def test_the_fast_way_is_the_general_way(bias: bool) -> None:
    layer = nn.MultiheadAttention(6, 2, bias=bias, batch_first=True, dtype="float64")
    if bias:
        layer.in_proj_bias.numpy()[:] = RNG.standard_normal(18)
    x = Tensor(RNG.standard_normal((3, 4, 6)), requires_grad=True)
    padding = np.array([[0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]], bool)
    weights = RNG.standard_normal((3, 4, 6))
    results = []
    for call in (
        lambda: layer(x, key_padding_mask=padding, need_weights=False, is_causal=True)[0],
        lambda: layer(x, x, x, key_padding_mask=padding, is_causal=True)[0],
        lambda: layer(x, x * 1, x * 1, key_padding_mask=padding, need_weights=False, is_causal=True)[0],
        lambda: layer(
            x * 1, x, x, np.where(padding, -np.inf, 0), attn_mask=np.triu(np.ones((4, 4), bool), 1), need_weights=False
        )[0],
        lambda: nn.Sequential(nn.Identity())(
            layer(x, x, x, padding, attn_mask=np.tile(np.triu(np.ones((4, 4), bool), 1), (6, 1, 1)))[0]
        ),
    ):
        x.grad = None
        layer.zero_grad()
        y = call()
        y.backward(weights)
        results.append([y.numpy(), x.grad.numpy().copy(), *(p.grad.numpy().copy() for p in layer.parameters())])
    for other in results[1:]:
        for got, expected in zip(other, results[0], strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)


def test_layouts() -> None:
    first = nn.MultiheadAttention(6, 3, batch_first=True, dtype="float64")
    second = nn.MultiheadAttention(6, 3, dtype="float64")
    second.load_state_dict(first.state_dict())
    x = RNG.standard_normal((4, 5, 6))
    expected, weights = first(x, x, x)
    y, other = second(*[np.swapaxes(x, 0, 1)] * 3)
    np.testing.assert_allclose(np.swapaxes(y.numpy(), 0, 1), expected.numpy())
    np.testing.assert_allclose(other.numpy(), weights.numpy())
    assert weights.shape == (4, 5, 5)
    np.testing.assert_allclose(weights.numpy().sum(axis=-1), 1)
    assert first(x, x, x, average_attn_weights=False)[1].shape == (4, 3, 5, 5)
    reference, weights = second(x[0], x[0], x[0])
    np.testing.assert_allclose(reference.numpy(), expected.numpy()[0])
    assert weights.shape == (5, 5)
    assert second(x[0], need_weights=False)[1] is None


def test_names_of_parameters() -> None:
    assert {n: p.shape for n, p in nn.MultiheadAttention(4, 2).named_parameters()} == {
        "in_proj_weight": (12, 4), "in_proj_bias": (12,), "out_proj.W": (4, 4), "out_proj.b": (1, 4),
    }  # fmt: skip
    assert {n: p.shape for n, p in nn.MultiheadAttention(4, 2, kdim=3, vdim=5, bias=False).named_parameters()} == {
        "q_proj_weight": (4, 4), "k_proj_weight": (4, 3), "v_proj_weight": (4, 5), "out_proj.W": (4, 4),
    }  # fmt: skip
    names = [n for n, _ in nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8), 2).named_parameters()]
    assert len(names) == 2 * 12
    assert "layers.1.self_attn.in_proj_weight" in names
    assert {"layers.0.linear1.W", "layers.0.linear2.b", "layers.0.norm1.weight", "layers.0.norm2.bias"} < set(names)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_encoder_with_no_rows(norm_first: bool, dtype: str) -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, norm_first=norm_first, batch_first=True, activation="gelu", dtype=dtype)
    for rows in (0, 2):
        x = Tensor(np.ones((rows, 3, 4), dtype), requires_grad=True)
        y = layer(x, is_causal=True)
        assert y.shape == (rows, 3, 4)
        assert y.dtype == dtype
        y.sum().backward()
        for parameter in layer.parameters():
            assert parameter.grad.dtype == dtype
            assert rows or not parameter.grad.numpy().any()
        layer.zero_grad()


def test_encoder_layouts_and_copies() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, dtype="float64")
    encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(4, dtype="float64"))
    other = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True, dtype="float64"), 2, deepcopy(encoder.norm)
    )
    other.load_state_dict(encoder.state_dict())
    x = RNG.standard_normal((5, 3, 4))
    np.testing.assert_allclose(encoder(x).numpy(), np.swapaxes(other(np.swapaxes(x, 0, 1)).numpy(), 0, 1))
    np.testing.assert_allclose(encoder(x).numpy()[:, 1], encoder(x[:, 1]).numpy())
    a, b = (encoder.layers[i].linear1.W for i in range(2))
    np.testing.assert_array_equal(a.numpy(), b.numpy())
    a.numpy()[:] = 0
    assert b.numpy().all()


@pytest.mark.parametrize("batch_first", [True, False])
def test_dropout_belongs_to_the_rows_of_the_batch(batch_first: bool) -> None:
    x = RNG.standard_normal((6, 3, 4))

    def run(*cuts: int) -> np.ndarray:
        sx.manual_seed(3)
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=batch_first, dtype="float64")
        parts = []
        for start, stop in zip((0, *cuts), (*cuts, 6), strict=True):
            ours = deepcopy_with_draws(layer)
            part = x[start:stop] if batch_first else np.swapaxes(x[start:stop], 0, 1)
            input = sharded(part, start, 6, axis=0 if batch_first else 1)
            result = ours(input)
            assert result.place is input.place
            y = result.numpy()
            parts.append(y if batch_first else np.swapaxes(y, 0, 1))
        return np.concatenate(parts)

    def deepcopy_with_draws(layer: nn.Module) -> nn.Module:
        made = deepcopy(layer)
        pairs = zip(made.modules(), layer.modules(), strict=True)
        for new, old in pairs:
            if isinstance(new, nn.Dropout):
                new.draws.number = old.draws.number
        return made

    whole = run()
    np.testing.assert_allclose(run(2), whole, rtol=1e-12)
    np.testing.assert_allclose(run(1, 1, 5), whole, rtol=1e-12)
    sx.manual_seed(3)
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=batch_first, dtype="float64").eval()
    np.testing.assert_array_equal(layer(x).numpy(), layer(x).numpy())


def test_attention_dropout_keeps_the_mean() -> None:
    sx.manual_seed(0)
    q = Tensor(np.zeros((1, 1, 1)))
    v = Tensor(np.ones((1, 20000, 1)))
    y = F.scaled_dot_product_attention(q, Tensor(np.zeros((1, 20000, 1))), v, dropout_p=0.3)
    assert y.item() == pytest.approx(1, abs=0.02)
    assert y.item() != 1


X = np.zeros((2, 3, 4))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: F.scaled_dot_product_attention(X, X[..., :2], X), ["query", "key", "(2, 3, 4)", "(2, 3, 2)"]),
        (lambda: F.scaled_dot_product_attention(X, X, X[:, :2]), ["value", "(2, 2, 4)"]),
        (lambda: F.scaled_dot_product_attention(X, X, X, np.ones((2, 2), bool)), ["attn_mask", "(2, 3, 3)", "(2, 2)"]),
        (lambda: F.scaled_dot_product_attention(X, X, X, np.ones((3, 3), bool), is_causal=True), ["is_causal"]),
        (lambda: F.scaled_dot_product_attention(X, X, X, dropout_p=1.5), ["1.5", "[0, 1]"]),
        (lambda: nn.MultiheadAttention(6, 4), ["embed_dim", "num_heads 4", "6"]),
        (lambda: nn.MultiheadAttention(0, 4), ["embed_dim", ">= 1", "0"]),
        (lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True), ["add_bias_kv", "False"]),
        (lambda: nn.MultiheadAttention(4, 2, dropout=2), ["p", "[0, 1]", "2"]),
        (lambda: nn.MultiheadAttention(5, 1)(X), ["query", "(L, N, 5)", "(2, 3, 4)"]),
        (lambda: nn.MultiheadAttention(4, 1)(X, X[:, :2], X[:, :2]), ["batch", "(2, 2, 4)"]),
        (lambda: nn.MultiheadAttention(4, 1)(X, key_padding_mask=np.ones((2, 3))), ["key_padding_mask", "(3, 2)"]),
        (lambda: nn.MultiheadAttention(4, 1)(X, attn_mask=np.ones((3, 3))), ["attn_mask", "(3, 1, 2, 2)"]),
        (lambda: nn.TransformerEncoderLayer(4, 2, activation="swish"), ["activation", "'swish'", "'relu'"]),
    ],
)
def test_bad_input_is_named(call: Any, words: list[str]) -> None:
    with pytest.raises(ValueError) as raised:
        call()
    for word in words:
        assert word in str(raised.value)
