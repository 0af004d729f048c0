"""Attention as a function."""

from __future__ import annotations

import math
from functools import lru_cache, reduce
from typing import Any

import numpy as np

from sorix_dist.core import Tensor, as_tensor
from sorix_dist.core.capture import host
from sorix_dist.core.dtype import name_of
from sorix_dist.core.memory import read_only
from sorix_dist.core.ops.activation import dropout
from sorix_dist.core.ops.attention import attention, beside_queries
from sorix_dist.core.ops.axes import broadcasts_to
from sorix_dist.core.ops.elementwise import add, cast, half_in_float32
from sorix_dist.core.ops.shape import extents
from sorix_dist.core.placement import shard_of, tagged
from sorix_dist.core.random import Draws
from sorix_dist.core.rules import beside, whole
from sorix_dist.core.tensor import Array, ndarray_of


@half_in_float32
def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    draws: Draws | None = None,
) -> Tensor:
    """softmax(scale * query @ key^T + mask) @ value.

    query: (..., L, E), key: (..., S, E), value: (..., S, V); with dropout the first dimension is the batch.
    attn_mask: broadcasts to (..., L, S); bools, True where a query sees a key, or floats that are added to the
    scores (-inf where it does not). is_causal: query i sees keys up to i. A query that sees no key gets zeros.
    dropout_p: the probability that a weight is dropped (there is no training switch here); scale: 1 / sqrt(E)
    unless given; draws: a layer's count of dropout masks. ValueError names what does not fit.
    """
    q, k, v = (as_tensor(x) for x in (query, key, value))
    scores_shape(*map(extents, (q, k, v)))
    q, k, v, attn_mask = beside_queries("scaled_dot_product_attention", (q, k, v, attn_mask))
    shape = scores_shape(q.shape, k.shape, v.shape)
    if is_causal and attn_mask is not None:
        raise ValueError("scaled_dot_product_attention: attn_mask must be None with is_causal=True, got both")
    dtype, rows = q.array.dtype, shard_of(q)
    if is_causal:
        bias = causal_bias(extents(q)[-2], shape[-1], dtype)
        bias = bias if rows is None else beside(bias, rows, q.ndim - rows.axis)
    else:
        bias = bias_of("attn_mask", attn_mask, shape, dtype)
    return attention(q, k, v, bias, drop_factors(shape, dropout_p, dtype, draws, q), scale=scale_of(q.shape, scale))


def scores_shape(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...]) -> tuple[int, ...]:
    """The shape (..., L, S) of the scores, if these shapes fit each other, else ValueError."""
    if min(len(query), len(key), len(value)) >= 2 and query[-1] == key[-1] and key[-2] == value[-2]:
        try:
            lead = np.broadcast_shapes(query[:-2], key[:-2], value[:-2])
        except ValueError:
            lead = None
        if lead is not None:
            return (*lead, query[-2], key[-2])
    raise ValueError(
        "scaled_dot_product_attention: query (..., L, E), key (..., S, E) and value (..., S, V) must fit each other, "
        f"got shapes {tuple(query)}, {tuple(key)} and {tuple(value)}"
    )


def scale_of(query: tuple[int, ...], scale: float | None = None) -> float:
    """`scale`, or 1 / sqrt(features)."""
    return 1 / math.sqrt(max(1, query[-1])) if scale is None else float(scale)


@host
@lru_cache(maxsize=4)
def causal_bias(length: int, keys: int, dtype: Any) -> Array:
    """-inf where key j > query i, (length, keys); read-only."""
    return read_only(np.triu(np.full((length, keys), -np.inf, dtype), 1))


def bias_of(name: str, mask: Any, shape: tuple[int, ...], dtype: Any, *, sees: bool = True) -> Any:
    """The bias of a mask on scores of `shape`: -inf where a bool mask is not `sees`, or the floats themselves."""
    if mask is None:
        return None
    mask = mask if shard_of(mask) is not None else whole(mask, name)
    array = ndarray_of(mask)
    if not broadcasts_to(array.shape, shape):
        raise ValueError(f"{name} must broadcast to the shape {tuple(shape)} of the scores, got shape {array.shape}")
    if array.dtype.kind == "b":
        bias = _of_bools(array, sees, dtype)
    elif array.dtype.kind != "f":
        raise TypeError(f"{name} must hold bools or floats, got dtype {name_of(array.dtype)}")
    elif isinstance(mask, Tensor) and mask.requires_grad:
        return mask if array.dtype == dtype else cast(mask, dtype)
    else:
        bias = array.astype(dtype, copy=False)
    rows = shard_of(mask)
    return bias if rows is None else tagged(Tensor.of(bias), rows)


@host
def _of_bools(mask: Array, sees: bool, dtype: Any) -> Array:
    return np.where(mask == sees, 0, -np.inf).astype(dtype)


def together(*biases: Any) -> Any:
    """The sum of those biases that are not None."""
    given = [bias for bias in biases if bias is not None]
    return reduce(add, given) if given else None


@host
def drop_factors(shape: tuple[int, ...], p: float, dtype: Any, draws: Draws | None, query: Tensor) -> Array | None:
    """The factors of dropout on attention weights of `shape`, for the rows of the query; None if it drops nothing."""
    if p == 0:
        return None
    ones, rows = Tensor(np.ones(shape, dtype)), shard_of(query)
    return dropout(ones if rows is None else tagged(ones, rows), p, draws=draws).array
