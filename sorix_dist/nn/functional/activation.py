"""Activations as functions of tensors or arrays; the result is a tensor."""

from __future__ import annotations

from typing import Any

from sorix_dist.core import Tensor
from sorix_dist.core.ops import activation as ops
from sorix_dist.core.ops.activation import relu

__all__ = [
    "elu", "gelu", "leaky_relu", "log_softmax", "relu", "sigmoid", "silu", "softmax", "softplus", "tanh",
]  # fmt: skip


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
