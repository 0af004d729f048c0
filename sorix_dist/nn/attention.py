"""Attention by several heads (Vaswani et al. 2017)."""

from __future__ import annotations

from typing import Any

import numpy as np

from sorix_dist.core import Tensor, as_tensor
from sorix_dist.core import random as rng
from sorix_dist.core.arguments import at_least, parameter_dtype, unsupported
from sorix_dist.core.ops.attention import attention, attention_and_weights, self_attention
from sorix_dist.core.ops.shape import reshape, squeeze, swapaxes, unsqueeze
from sorix_dist.core.placement import shard_of
from sorix_dist.core.rules import beside, rows_along
from sorix_dist.core.tensor import shape_of
from sorix_dist.nn import functional as F
from sorix_dist.nn.functional.attention import bias_of, causal_bias, drop_factors, scale_of, together
from sorix_dist.nn.layers import Dropout, Linear
from sorix_dist.nn.module import Module
from sorix_dist.nn.parameter import Parameter

__all__ = ["MultiheadAttention"]


class MultiheadAttention(Module):
    """Attention by several heads, each in its part of the features (Vaswani et al. 2017).

    embed_dim: features of queries and results, a multiple of num_heads; kdim, vdim: those of keys and values if
    others; dropout: the probability that an attention weight is dropped in training; batch_first: inputs are
    (N, L, E) instead of (L, N, E). `in_proj_weight` (3 * E, E) has the rows of queries, keys and values, in
    PyTorch's layout; with other kdim or vdim there are `q_proj_weight`, `k_proj_weight` and `v_proj_weight`.
    `out_proj` is a Linear.
    """

    _in_repr = ("embed_dim", "num_heads", "batch_first")

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = "cpu",
        dtype: Any = None,
    ) -> None:
        kind = parameter_dtype(device, dtype)
        at_least(1, "MultiheadAttention", embed_dim=embed_dim, num_heads=num_heads)
        if embed_dim % num_heads:
            raise ValueError(
                f"MultiheadAttention: embed_dim must be a multiple of num_heads {num_heads}, got {embed_dim}"
            )
        unsupported("MultiheadAttention", add_bias_kv=add_bias_kv, add_zero_attn=add_zero_attn)
        kdim, vdim = embed_dim if kdim is None else kdim, embed_dim if vdim is None else vdim
        at_least(1, "MultiheadAttention", kdim=kdim, vdim=vdim)
        self.embed_dim, self.num_heads, self.batch_first = int(embed_dim), int(num_heads), batch_first
        self.kdim, self.vdim = int(kdim), int(vdim)
        if self.kdim == self.vdim == embed_dim:
            self.in_proj_weight = _xavier((3 * embed_dim, embed_dim), kind)
        else:
            self.q_proj_weight = _xavier((embed_dim, embed_dim), kind)
            self.k_proj_weight = _xavier((embed_dim, self.kdim), kind)
            self.v_proj_weight = _xavier((embed_dim, self.vdim), kind)
        self.in_proj_bias = Parameter(np.zeros(3 * embed_dim, kind)) if bias else None
        self.out_proj = Linear(embed_dim, embed_dim, bias=bias, init="xavier").to(kind)
        self.attn_dropout = Dropout(dropout)

    def forward(
        self,
        query: Any,
        key: Any = None,
        value: Any = None,
        key_padding_mask: Any = None,
        need_weights: bool = True,
        attn_mask: Any = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The result, shaped as `query`, and the attention weights (N, L, S) as the mean over the heads, or
        (N, heads, L, S) if not `average_attn_weights`, or None if not `need_weights`, which is faster.

        query: (L, N, E), key: (S, N, kdim), value: (S, N, vdim), or with `batch_first` the batch N comes first;
        or without N. key and value are the query unless given.
        key_padding_mask: (N, S); attn_mask: (L, S) or (N * heads, L, S); True where a key is NOT seen, or floats
        that are added to the scores. is_causal: a query sees keys up to its own place (in place of attn_mask,
        or as a hint what that one says).
        """
        key = query if key is None else key
        value = key if value is None else value
        alike = key is query and value is query and self.kdim == self.vdim == self.embed_dim
        q = self._batch_first("query", query)
        k, v = (q, q) if alike else (self._batch_first("key", key), self._batch_first("value", value))
        rows = shard_of(q)
        if rows is not None:
            k, v, key_padding_mask = beside(k, rows, 3), beside(v, rows, 3), beside(key_padding_mask, rows, 2)
        (n, length), keys = q.array.shape[:2], k.array.shape[1]
        if not (n == len(k.array) == len(v.array) and keys == v.array.shape[1]):
            raise ValueError(
                "MultiheadAttention: query, key and value must have one batch size, and as many keys as values, "
                f"got shapes {tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
            )
        shape = (n, self.num_heads, length, keys)
        kind = q.array.dtype
        bias = together(self._padding(key_padding_mask, shape, kind), self._mask(attn_mask, is_causal, shape, kind))
        p = self.attn_dropout.p if self.training else 0.0
        dropped = drop_factors(shape, p, kind, self.attn_dropout.draws, q)
        weights = None
        scale = scale_of((self.embed_dim // self.num_heads,))
        if alike and not need_weights:
            qkv = F.linear(q, self.in_proj_weight, self.in_proj_bias)
            y = self_attention(qkv, bias, dropped, heads=self.num_heads, scale=scale)
        else:
            q, k, v = (self._heads(x, *self._projection(i)) for i, x in enumerate((q, k, v)))
            if need_weights:
                y, weights = attention_and_weights(q, k, v, bias, dropped, scale=scale)
            else:
                y = attention(q, k, v, bias, dropped, scale=scale)
            y = reshape(swapaxes(y, 1, 2), (n, length, self.embed_dim))
        y = self.out_proj(y)
        if weights is not None and average_attn_weights:
            weights = weights.mean(axis=1)
        if query.ndim == 2:
            return squeeze(y, 0), None if weights is None else weights[0]
        return y if self.batch_first else swapaxes(y, 0, 1), weights

    def _batch_first(self, name: str, x: Any) -> Tensor:
        """An input as (N, L, features)."""
        x = as_tensor(x)
        width = {"query": self.embed_dim, "key": self.kdim, "value": self.vdim}[name]
        if x.array.ndim not in (2, 3) or x.array.shape[-1] != width:
            form = "(N, L, {0})" if self.batch_first else "(L, N, {0})"
            raise ValueError(
                f"MultiheadAttention: {name} must have shape {form.format(width)} or (L, {width}), "
                f"got shape {tuple(x.shape)}"
            )
        x = unsqueeze(x, 0) if x.array.ndim == 2 else x if self.batch_first else swapaxes(x, 0, 1)
        return rows_along("MultiheadAttention", x, (0,))

    def _projection(self, i: int) -> tuple[Any, Any]:
        """Weight (out, in) and bias of queries (0), keys (1) or values (2)."""
        part = slice(i * self.embed_dim, (i + 1) * self.embed_dim)
        if self.kdim == self.vdim == self.embed_dim:
            weight = self.in_proj_weight[part]
        else:
            weight = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)[i]
        return weight, None if self.in_proj_bias is None else self.in_proj_bias[part]

    def _heads(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        """The projection of (N, L, in), as (N, heads, L, E / heads)."""
        y = F.linear(x, weight, bias)
        return swapaxes(reshape(y, (*x.shape[:2], self.num_heads, self.embed_dim // self.num_heads)), 1, 2)

    def _padding(self, mask: Any, shape: tuple[int, ...], kind: Any) -> Any:
        if mask is None:
            return None
        n, _, _, keys = shape
        if shape_of(mask) not in ((n, keys), (keys,)):
            raise ValueError(
                f"MultiheadAttention: key_padding_mask must have shape ({n}, {keys}), got shape {tuple(shape_of(mask))}"
            )
        by_head = reshape(mask, (n, 1, 1, keys))
        return bias_of("MultiheadAttention: key_padding_mask", by_head, shape, kind, sees=False)

    def _mask(self, mask: Any, is_causal: bool, shape: tuple[int, ...], kind: Any) -> Any:
        n, heads, length, keys = shape
        if mask is None:
            return causal_bias(length, keys, kind) if is_causal else None
        if shape_of(mask) == (n * heads, length, keys):
            mask = reshape(mask, shape)
        return bias_of("MultiheadAttention: attn_mask", mask, shape, kind, sees=False)


def _xavier(shape: tuple[int, int], kind: Any) -> Parameter:
    """Uniform weights of variance 2 / (in + out) (Glorot and Bengio 2010)."""
    bound = np.sqrt(6 / sum(shape))
    return Parameter(rng.generator().uniform(-bound, bound, shape).astype(kind))
