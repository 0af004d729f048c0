"""Activations as functions of tensors or arrays; the result is a tensor.

`inplace` is accepted and ignored: arrays are never overwritten.
"""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np

from sorix_dist.core import Tensor, as_tensor
from sorix_dist.core.arguments import one_of
from sorix_dist.core.create import ones_like, rand_like
from sorix_dist.core.ops import activation as ops
from sorix_dist.core.ops.choose import clamp, where
from sorix_dist.core.ops.elementwise import log, sign
from sorix_dist.core.random import Draws

__all__ = [
    "alpha_dropout", "celu", "elu", "gelu", "glu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "log_softmax",
    "logsigmoid", "mish", "prelu", "relu", "relu6", "relu_", "selu", "sigmoid", "silu", "softmax", "softplus",
    "softsign", "tanh", "gumbel_softmax", "hardshrink", "softmin", "softshrink", "tanhshrink", "threshold",
]  # fmt: skip

# Constants of SELU (Klambauer et al. 2017, appendix A1).
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


def relu(x: Any, inplace: bool = False) -> Tensor:
    """max(x, 0)."""
    return ops.relu(x)


def relu_(input: Tensor) -> Tensor:
    """max(x, 0), in place; returns the tensor."""
    changed: Tensor = input.relu_()
    return changed


def relu6(x: Any, inplace: bool = False) -> Tensor:
    """min(max(x, 0), 6) (Howard et al. 2017)."""
    return hardtanh(x, 0.0, 6.0)


def leaky_relu(x: Any, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """x where x > 0, negative_slope * x elsewhere."""
    return ops.leaky_relu(x, slope=float(negative_slope))


def prelu(x: Any, weight: Any) -> Tensor:
    """x where x > 0, weight * x elsewhere (He et al. 2015). weight: one number, or one for each channel (axis 1)."""
    x = as_tensor(x)
    channels = x.shape[1] if x.ndim > 1 else 1
    weight = as_tensor(weight)
    if weight.array.size not in (1, channels):
        raise ValueError(f"prelu: weight must have 1 element or {channels}, one per channel, got {weight.array.size}")
    shape = (1, -1, *(1 for _ in x.shape[2:])) if weight.array.size > 1 else (1,) * x.ndim
    return where(x > 0, x, weight.reshape(shape) * x)  # type: ignore[no-any-return]


def sigmoid(x: Any) -> Tensor:
    """1 / (1 + exp(-x))."""
    return ops.logistic(x)


def logsigmoid(x: Any) -> Tensor:
    """log(1 / (1 + exp(-x))), exact for any x."""
    return -softplus(-as_tensor(x), threshold=inf)


def hardsigmoid(x: Any, inplace: bool = False) -> Tensor:
    """min(max(x + 3, 0), 6) / 6."""
    return relu6(as_tensor(x) + 3) / 6


def tanh(x: Any) -> Tensor:
    """The hyperbolic tangent."""
    return ops.tanh(x)


def hardtanh(x: Any, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """x between `min_val` and `max_val`, those numbers beyond; the gradient on both bounds is 0."""
    x = as_tensor(x)
    bounded: Tensor = clamp(x.detach(), min_val, max_val)
    inside: Tensor = where((x > min_val) & (x < max_val), x, bounded.astype(x.dtype))
    return inside


def silu(x: Any, inplace: bool = False) -> Tensor:
    """x * sigmoid(x), also called swish (Elfwing et al. 2018)."""
    return ops.silu(x)


def mish(x: Any, inplace: bool = False) -> Tensor:
    """x * tanh(softplus(x)) (Misra 2020)."""
    return ops.tanh(softplus(x)) * as_tensor(x)


def hardswish(x: Any, inplace: bool = False) -> Tensor:
    """x * hardsigmoid(x) (Howard et al. 2019)."""
    return hardsigmoid(x) * as_tensor(x)


def gelu(x: Any, approximate: str = "tanh") -> Tensor:
    """x times the probability that a standard normal number is below x (Hendrycks and Gimpel 2016).

    approximate: "tanh" for the usual approximation, off by less than 5e-4; "none" (PyTorch's default) for the exact
    function, which needs SciPy (ImportError without).
    """
    one_of("gelu: approximate", approximate, "tanh", "none")
    return ops.gelu_by_tanh(x) if approximate == "tanh" else ops.gelu_by_erf(x)


def elu(x: Any, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x where x > 0, alpha * (exp(x) - 1) elsewhere (Clevert et al. 2016)."""
    return ops.elu(x, alpha=float(alpha))


def selu(x: Any, inplace: bool = False) -> Tensor:
    """The ELU with constants that keep mean 0 and variance 1 from layer to layer (Klambauer et al. 2017)."""
    return ops.elu(x, alpha=_SELU_ALPHA) * _SELU_SCALE


def softplus(x: Any, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + exp(beta * x)) / beta, and x itself where beta * x > threshold."""
    if not beta > 0:
        raise ValueError(f"softplus: beta must be > 0, got {beta}")
    return ops.softplus(x, beta=float(beta), threshold=float(threshold))


def softsign(x: Any) -> Tensor:
    """x / (1 + |x|)."""
    x = as_tensor(x)
    return x / (x.abs() + 1)


def glu(x: Any, dim: int = -1) -> Tensor:
    """The first half of x along `dim`, times the sigmoid of the second (Dauphin et al. 2017)."""
    x = as_tensor(x)
    if x.shape[dim] % 2:
        raise ValueError(f"glu: x must have an even number of elements along dim {dim}, got shape {tuple(x.shape)}")
    value, gate = x.chunk(2, dim)
    return value * ops.logistic(gate)


def softmax(x: Any, dim: int | None = None) -> Tensor:
    """exp(x) divided by its sum along `dim`, which may be left out for one or two dimensions: the last one then."""
    return ops.softmax(x, _given("softmax", x, dim))


def _given(name: str, x: Any, dim: int | None) -> int:
    if dim is None and np.ndim(x) > 2:
        raise ValueError(
            f"{name}: dim must be given for {np.ndim(x)} dimensions: PyTorch takes "
            f"{int(np.ndim(x) != 3)} by default, and sorix the last"
        )
    return -1 if dim is None else dim


def log_softmax(x: Any, dim: int | None = None) -> Tensor:
    """The logarithm of softmax(x), exact also where softmax underflows."""
    return ops.log_softmax(x, _given("log_softmax", x, dim))


def celu(x: Any, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """max(0, x) + min(0, alpha * (exp(x / alpha) - 1)) (Barron 2017)."""
    x = as_tensor(x)
    return relu(x) + (x.clamp(max=0) / alpha).expm1() * alpha


def tanhshrink(x: Any) -> Tensor:
    """x - tanh(x)."""
    return x - ops.tanh(x)


def hardshrink(x: Any, lambd: float = 0.5) -> Tensor:
    """x where |x| > lambd, 0 elsewhere."""
    return where(_within(x, lambd), 0.0, x)


def softshrink(x: Any, lambd: float = 0.5) -> Tensor:
    """x moved by `lambd` towards 0, and 0 where |x| <= lambd."""
    x = as_tensor(x)
    return where(_within(x, lambd), 0.0, x - sign(x) * lambd)


def _within(x: Any, bound: float) -> Tensor:
    x = as_tensor(x)
    flags: Tensor = (x >= -bound) & (as_tensor(x) <= bound)
    return flags


def threshold(x: Any, threshold: float, value: float, inplace: bool = False) -> Tensor:
    """`value` where x <= threshold, x elsewhere."""
    return where(as_tensor(x) <= threshold, value, x)


def softmin(x: Any, dim: int | None = None) -> Tensor:
    """softmax of -x along `dim`."""
    return ops.softmax(-as_tensor(x), _given("softmin", x, dim))


def gumbel_softmax(
    logits: Any, tau: float = 1.0, hard: bool = False, *, eps: float | None = None, dim: int = -1
) -> Tensor:
    """softmax of (logits + g) / tau along `dim`, with noise g from Gumbel's distribution; eps has no meaning.

    hard: 1 for the largest and 0 for others, with the gradient of the softmax (Jang et al. 2017).
    """
    x = as_tensor(logits)
    noise: Tensor = log(-log(rand_like(x)))
    soft = ops.softmax((x - noise) / tau, dim)
    return soft if not hard else (soft == soft.amax(dim, keepdim=True)).astype(x.dtype) - soft.detach() + soft


def alpha_dropout(
    input: Any, p: float = 0.5, training: bool = False, inplace: bool = False, *, draws: Draws | None = None
) -> Tensor:
    """In training, sets each element to SELU's limit with probability p, then scales and shifts all so that numbers of
    mean 0 and variance 1 keep both (Klambauer et al. 2017); else as `dropout`."""
    x = as_tensor(input)
    ops.check_dropout("alpha_dropout", p)
    if not training or p == 0:
        return x
    if p == 1:
        return x * 0
    keep = ops.dropout(ones_like(x), p, training, draws=draws) * (1 - p)
    limit = -1.7580993408473766
    scale = ((1 - p) * (1 + p * limit**2)) ** -0.5
    dropped: Tensor = (x * keep + (1 - keep) * limit) * scale - scale * limit * p
    return dropped
