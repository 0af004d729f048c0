"""Scaled dot-product attention (Vaswani et al. 2017), as one operation.

bias: what is added to the scores before the softmax, -inf where a query must not see a key, or None; a query that
sees no key gets zeros. dropped: factors on the weights after the softmax, 0 for what is left out, or None.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from sorix_dist.core import rules
from sorix_dist.core.op import memoize_last, op
from sorix_dist.core.ops.axes import maxima
from sorix_dist.core.ops.blocks import product
from sorix_dist.core.ops.elementwise import add, div, exp, mul, sub
from sorix_dist.core.ops.indexing import index
from sorix_dist.core.ops.matrix import matmul, row_sums
from sorix_dist.core.ops.reduce import sum_over
from sorix_dist.core.ops.shape import permute_to, reshape, swapaxes
from sorix_dist.core.rules import Answer, Apply, Inputs, Options, applied, beside, in_order, placement_of, whole
from sorix_dist.core.tensor import Array, shape_of


def attention_rule(apply: Apply, inputs: Inputs, options: Options) -> Answer:
    """Attention: rows along a leading dimension of queries, keys, values and masks; or queries that are rows, with keys
    and values that are Replicates."""
    operands = beside_queries(apply.__name__, inputs)
    lead = placement_of(operands[0])
    if lead is None:
        return apply(*operands, **options)
    place = lead.moved(max(len(shape_of(x)) for x in operands) - len(shape_of(operands[0])) + lead.axis)
    return applied(apply, operands, inputs, options, place)


def beside_queries(name: str, inputs: Sequence[Any]) -> list[Any]:
    """Aligns keys, values and masks with the rows of the queries."""
    queries, *others = rules.whole_sums(inputs, name)
    lead = placement_of(queries)
    if lead is None or lead.axis == len(shape_of(queries)) - 1 or in_order(lead) or rules.one_row(lead):
        return [whole(x, name) for x in (queries, *others)]
    at = len(shape_of(queries)) - lead.axis
    for i, x in enumerate(others):
        # The second last dimension of keys and values is none of queries.
        place, has_rows = placement_of(x), at > 2 or i > 1
        if place is not None and not (has_rows and len(shape_of(x)) - place.axis == at and lead.like(place)):
            x = whole(x, name)
        others[i] = beside(x, lead, at) if has_rows else x
    return [queries, *others]


def attention_and_weights(q: Any, k: Any, v: Any, bias: Any, dropped: Any, *, scale: float) -> tuple[Any, Any]:
    """`attention` by plain operations, and the weights (..., L, S) that it gives the values."""
    scores = matmul(mul(q, scale), swapaxes(k, -1, -2))
    if bias is not None:
        scores = add(scores, bias)
    e = exp(sub(scores, _highest(scores.array)))
    sums = sum_over(e, axis=-1, keepdims=True)
    weights = div(e, add(sums, (sums.array == 0).astype(sums.array.dtype)))
    if dropped is not None:
        weights = mul(weights, dropped)
    return matmul(weights, v), weights


def _attention(q: Any, k: Any, v: Any, bias: Any, dropped: Any, *, scale: float) -> Any:
    return attention_and_weights(q, k, v, bias, dropped, scale=scale)[0]


@op(composite=_attention, rule=attention_rule)
def attention(q: Any, k: Any, v: Any, bias: Any, dropped: Any, *, scale: float) -> Any:
    """softmax(scale * q @ k^T + bias) @ v.

    q: (..., L, E), k: (..., S, E), v: (..., S, V); bias and dropped broadcast to (..., L, S).
    """
    weights = _weights(q, k, bias, scale)
    used = weights if dropped is None else weights * dropped
    y = product(used, v)
    to_scores = memoize_last(lambda g: _to_scores(g, y, v, weights, dropped))

    def to_q(g: Any, out: Any) -> Any:
        return product(to_scores(g), k * scale)

    def to_k(g: Any, out: Any) -> Any:
        return product(np.swapaxes(to_scores(g), -1, -2), q * scale)

    def to_v(g: Any, out: Any) -> Any:
        return product(np.swapaxes(used, -1, -2), g)

    return y, (to_q, to_k, to_v, lambda g, out: to_scores(g), None)


def _self_attention(qkv: Any, bias: Any, dropped: Any, *, heads: int, scale: float) -> Any:
    n, length, width = qkv.shape
    parts = permute_to(reshape(qkv, (n, length, 3, heads, width // 3 // heads)), axes=(2, 0, 3, 1, 4))
    y = attention(*(index(parts, i) for i in range(3)), bias, dropped, scale=scale)
    return reshape(permute_to(y, axes=(0, 2, 1, 3)), (n, length, width // 3))


@op(composite=_self_attention, rule=rules.rows_at(0, states=(1, 2), at=4))
def self_attention(qkv: Any, bias: Any, dropped: Any, *, heads: int, scale: float) -> Any:
    """`attention` of several heads over queries, keys and values that lie side by side.

    qkv: (N, L, 3 * E), each third in `heads` equal parts; bias and dropped broadcast to (N, heads, L, L).
    The result, (N, L, E), has the heads side by side.
    """
    n, length, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    q, k, v = _parts(qkv, heads)
    weights = _weights(q, k, bias, scale)
    used = weights if dropped is None else weights * dropped

    def by_head(x: Any) -> Any:
        return x.reshape(n, length, heads, width // heads).transpose(0, 2, 1, 3)

    y = np.empty((n, length, width), qkv.dtype)
    product(used, v, out=by_head(y))
    to_scores = memoize_last(lambda g: _to_scores(by_head(g), by_head(y), v, weights, dropped))

    def to_qkv(g: Any, out: Any) -> Any:
        gradient = np.empty(qkv.shape, qkv.dtype) if out is None else out
        to_q, to_k, to_v = _parts(gradient, heads)
        scores = to_scores(g)
        product(scores, k * scale, out=to_q)
        product(np.swapaxes(scores, -1, -2), q * scale, out=to_k)
        product(np.swapaxes(used, -1, -2), by_head(g), out=to_v)
        return gradient

    return y, (to_qkv, lambda g, out: to_scores(g), None)


def _parts(qkv: Array, heads: int) -> Array:
    """Views of queries, keys and values, (3, N, heads, L, E / heads), in an array (N, L, 3 * E)."""
    n, length, width = qkv.shape
    parts: Array = qkv.reshape(n, length, 3, heads, width // 3 // heads).transpose(2, 0, 3, 1, 4)
    return parts


def _highest(scores: Array) -> Array:
    """The largest score of each query, 0 where it sees no key."""
    highest = maxima(scores)
    highest[highest == -np.inf] = 0
    return highest


def _weights(q: Array, k: Array, bias: Array | None, scale: float) -> Array:
    scores = product(q * scale, np.swapaxes(k, -1, -2))
    if bias is not None:
        scores += bias
    scores -= _highest(scores)
    weights: Array = np.exp(scores, out=scores)
    sums = _sums(weights)
    sums[sums == 0] = 1
    weights /= sums
    return weights


def _sums(rows: Array) -> Array:
    """The sums along the last dimension, which stays with length 1."""
    return row_sums(rows.reshape(prod(rows.shape[:-1]), rows.shape[-1])).reshape(*rows.shape[:-1], 1)


def _to_scores(g: Array, y: Array, v: Array, weights: Array, dropped: Array | None) -> Array:
    """The gradient of the scores. That of a softmax is weights * (h - sum(weights * h)) for the gradient h of
    the weights, and this sum is that of g * y over the features, which are fewer."""
    scores: Array = product(g, np.swapaxes(v, -1, -2))
    if dropped is not None:
        scores *= dropped
    scores -= np.vecdot(g, y)[..., None]
    scores *= weights
    return scores
