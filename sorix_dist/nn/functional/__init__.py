"""Layers and losses as functions."""

from __future__ import annotations

from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.ops import activation as ops
from sorix_dist.core.ops.activation import dropout, dropout2d, relu
from sorix_dist.core.ops.conv import conv1d, conv2d, conv_transpose2d
from sorix_dist.core.ops.indexing import table_rows
from sorix_dist.core.ops.matrix import linear as _linear
from sorix_dist.core.ops.norm import batch_norm, group_norm, layer_norm
from sorix_dist.core.ops.pool import adaptive_avg_pool2d, avg_pool2d, max_pool1d, max_pool2d
from sorix_dist.core.placement import shard_of, tagged
from sorix_dist.core.rules import whole
from sorix_dist.nn.functional.attention import scaled_dot_product_attention
from sorix_dist.nn.functional.loss import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    huber_loss,
    kl_div,
    l1_loss,
    mse_loss,
    nll_loss,
    smooth_l1_loss,
)

__all__ = [
    "embedding", "linear", "scaled_dot_product_attention",
    "elu", "gelu", "leaky_relu", "log_softmax", "relu", "sigmoid", "silu", "softmax", "softplus", "tanh",
    "conv1d", "conv2d", "conv_transpose2d",
    "adaptive_avg_pool2d", "avg_pool2d", "max_pool1d", "max_pool2d",
    "batch_norm", "group_norm", "layer_norm",
    "dropout", "dropout2d",
    "binary_cross_entropy", "binary_cross_entropy_with_logits", "cross_entropy", "huber_loss", "kl_div",
    "l1_loss", "mse_loss", "nll_loss", "smooth_l1_loss",
]  # fmt: skip


def linear(x: Any, weight: Any, bias: Any = None) -> Tensor:
    """x @ weight + bias for x of shape (..., in), weight (in, out) and bias (1, out) or (out,)."""
    return _linear(x, weight, bias)


def leaky_relu(x: Any, negative_slope: float = 0.01) -> Tensor:
    """x where x > 0, negative_slope * x elsewhere."""
    return ops.leaky_relu(x, slope=float(negative_slope))


def sigmoid(x: Any) -> Tensor:
    """1 / (1 + exp(-x))."""
    return ops.logistic(x)


def tanh(x: Any) -> Tensor:
    """The hyperbolic tangent."""
    return ops.tanh(x)


def silu(x: Any) -> Tensor:
    """x * sigmoid(x)."""
    return ops.silu(x)


def gelu(x: Any, approximate: str = "tanh") -> Tensor:
    """x times the probability that a standard normal number is below x.

    approximate: "tanh" for the usual approximation, off by less than 5e-4; "none" for the exact function,
    which needs SciPy (ImportError without).
    """
    if approximate not in ("tanh", "none"):
        raise ValueError(f"gelu: approximate must be 'tanh' or 'none', got {approximate!r}")
    return ops.gelu_by_tanh(x) if approximate == "tanh" else ops.gelu_by_erf(x)


def elu(x: Any, alpha: float = 1.0) -> Tensor:
    """x where x > 0, alpha * (exp(x) - 1) elsewhere."""
    return ops.elu(x, alpha=float(alpha))


def softplus(x: Any, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + exp(beta * x)) / beta, and x itself where beta * x > threshold."""
    if not beta > 0:
        raise ValueError(f"softplus: beta must be > 0, got {beta}")
    return ops.softplus(x, beta=float(beta), threshold=float(threshold))


def softmax(x: Any, dim: int = -1) -> Tensor:
    """exp(x) divided by its sum along `dim`."""
    return ops.softmax(x, dim)


def log_softmax(x: Any, dim: int = -1) -> Tensor:
    """The logarithm of softmax(x), exact also where softmax underflows."""
    return ops.log_softmax(x, dim)


def embedding(input: Any, weight: Any, padding_idx: int | None = None) -> Tensor:
    """The rows of `weight` (n, features) that `input`, integers in [0, n) of any shape, names.

    The row `padding_idx` gets no gradient. TypeError if `input` does not hold integers, IndexError if one is out
    of range.
    """
    weight = whole(weight, "embedding") if shard_of(weight) is not None else weight
    index = input.array if isinstance(input, Tensor) else np.asarray(input)
    count = len(weight)
    if index.dtype.kind not in "iu":
        raise TypeError(f"embedding: input must hold integers, got dtype {index.dtype}")
    # As unsigned numbers negative ones are large, so one pass finds both kinds of stranger.
    if index.size and int(index.astype(np.uint64).max()) >= count:
        where = tuple(int(i) for i in np.argwhere((index < 0) | (index >= count))[0])
        raise IndexError(f"embedding: input must be in [0, {count}), got {index[where]} at {where}")
    if padding_idx is not None:
        if not -count <= padding_idx < count:
            raise ValueError(f"embedding: padding_idx must be in [{-count}, {count}), got {padding_idx}")
        padding_idx %= count
    rows = shard_of(input)
    if rows is None:
        return table_rows(weight, index=index, skip=padding_idx)
    if rows.group.ordered and isinstance(weight, Tensor) and weight.requires_grad:
        return table_rows(weight, index=whole(input, "embedding").array, skip=padding_idx)
    return tagged(table_rows(whole(weight, "embedding"), index=index, skip=padding_idx), rows)
