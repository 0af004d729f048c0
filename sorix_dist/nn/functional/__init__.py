"""Layers and losses as functions."""

from __future__ import annotations

from typing import Any

from sorix_dist.core import Tensor
from sorix_dist.core.ops.activation import dropout, dropout2d
from sorix_dist.core.ops.conv import conv1d, conv2d, conv_transpose2d
from sorix_dist.core.ops.matrix import linear as _linear
from sorix_dist.core.ops.norm import batch_norm, group_norm, layer_norm
from sorix_dist.core.ops.pool import adaptive_avg_pool2d, avg_pool2d, max_pool1d, max_pool2d
from sorix_dist.nn.functional.activation import (
    elu,
    gelu,
    leaky_relu,
    log_softmax,
    relu,
    sigmoid,
    silu,
    softmax,
    softplus,
    tanh,
)
from sorix_dist.nn.functional.attention import scaled_dot_product_attention
from sorix_dist.nn.functional.embedding import embedding
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
