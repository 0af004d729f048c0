"""Activations as layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.arguments import at_least, parameter_dtype
from sorix_dist.core.ops.activation import relu
from sorix_dist.nn.functional import activation as F
from sorix_dist.nn.module import Module
from sorix_dist.nn.parameter import Parameter

__all__ = [
    "ELU", "GELU", "GLU", "SELU", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "LogSigmoid", "LogSoftmax",
    "Mish", "PReLU", "ReLU", "ReLU6", "SiLU", "Sigmoid", "Softmax", "Softplus", "Softsign", "Tanh",
]  # fmt: skip


class _Activation(Module):
    """A function as a layer. `_in_repr` names the function's options, in its order; `inplace` is ignored."""

    function: ClassVar[Callable[..., Tensor]]

    def __init__(self, inplace: bool = False) -> None:
        pass

    def forward(self, x: Any) -> Tensor:
        return self.function(x, *[getattr(self, name) for name in self._in_repr])


class ReLU(_Activation):
    """max(x, 0)."""

    def forward(self, x: Any) -> Tensor:
        return relu(x)


class ReLU6(_Activation):
    """min(max(x, 0), 6)."""

    function = staticmethod(F.relu6)


class LeakyReLU(_Activation):
    """x where x > 0, negative_slope * x elsewhere."""

    function, _in_repr = staticmethod(F.leaky_relu), ("negative_slope",)

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False) -> None:
        self.negative_slope = negative_slope


class PReLU(Module):
    """x where x > 0, weight * x elsewhere, with a trained weight for all channels or for each (He et al. 2015).

    num_parameters: 1, or the number of channels, which are axis 1; init: where the weights start.
    """

    def __init__(self, num_parameters: int = 1, init: float = 0.25, device: Any = "cpu", dtype: Any = None) -> None:
        at_least(1, "PReLU", num_parameters=num_parameters)
        self.weight = Parameter(np.full(num_parameters, init, parameter_dtype(device, dtype)))

    def forward(self, x: Any) -> Tensor:
        return F.prelu(x, self.weight)

    def extra_repr(self) -> str:
        return f"num_parameters={self.weight.array.size}"


class Sigmoid(_Activation):
    """1 / (1 + exp(-x))."""

    function = staticmethod(F.sigmoid)


class LogSigmoid(_Activation):
    """log(1 / (1 + exp(-x)))."""

    function = staticmethod(F.logsigmoid)


class Hardsigmoid(_Activation):
    """min(max(x + 3, 0), 6) / 6."""

    function = staticmethod(F.hardsigmoid)


class Tanh(_Activation):
    """The hyperbolic tangent."""

    function = staticmethod(F.tanh)


class Hardtanh(_Activation):
    """x, but at least min_val and at most max_val."""

    function, _in_repr = staticmethod(F.hardtanh), ("min_val", "max_val")

    def __init__(self, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> None:
        self.min_val, self.max_val = min_val, max_val


class SiLU(_Activation):
    """x * sigmoid(x)."""

    function = staticmethod(F.silu)


class Mish(_Activation):
    """x * tanh(softplus(x)) (Misra 2020)."""

    function = staticmethod(F.mish)


class Hardswish(_Activation):
    """x * min(max(x + 3, 0), 6) / 6 (Howard et al. 2019)."""

    function = staticmethod(F.hardswish)


class GELU(_Activation):
    """x times the probability that a standard normal number is below x.

    approximate: "tanh" for the usual approximation, "none" (PyTorch's default) for the exact function, which needs
    SciPy.
    """

    function, _in_repr = staticmethod(F.gelu), ("approximate",)

    def __init__(self, approximate: str = "tanh") -> None:
        if approximate not in ("tanh", "none"):
            raise ValueError(f"GELU: approximate must be 'tanh' or 'none', got {approximate!r}")
        self.approximate = approximate


class ELU(_Activation):
    """x where x > 0, alpha * (exp(x) - 1) elsewhere."""

    function, _in_repr = staticmethod(F.elu), ("alpha",)

    def __init__(self, alpha: float = 1.0, inplace: bool = False) -> None:
        self.alpha = alpha


class SELU(_Activation):
    """The ELU whose constants keep mean 0 and variance 1 from layer to layer (Klambauer et al. 2017)."""

    function = staticmethod(F.selu)


class Softplus(_Activation):
    """log(1 + exp(beta * x)) / beta, and x itself where beta * x > threshold."""

    function, _in_repr = staticmethod(F.softplus), ("beta", "threshold")

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        if not beta > 0:
            raise ValueError(f"Softplus: beta must be > 0, got {beta}")
        self.beta, self.threshold = beta, threshold


class Softsign(_Activation):
    """x / (1 + |x|)."""

    function = staticmethod(F.softsign)


class GLU(_Activation):
    """The first half of x along `dim`, times the sigmoid of the second (Dauphin et al. 2017)."""

    function, _in_repr = staticmethod(F.glu), ("dim",)

    def __init__(self, dim: int = -1) -> None:
        self.dim = dim


class Softmax(_Activation):
    """exp(x) divided by its sum along `dim`, which may be left out for one or two dimensions."""

    function, _in_repr = staticmethod(F.softmax), ("dim",)

    def __init__(self, dim: int | None = None) -> None:
        self.dim = dim


class LogSoftmax(Softmax):
    """The logarithm of softmax along `dim`."""

    function = staticmethod(F.log_softmax)
