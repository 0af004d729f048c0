"""Activations as layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.arguments import at_least, in_range, one_of, parameter_dtype
from sorix_dist.core.ops.activation import relu
from sorix_dist.nn.functional import activation as F
from sorix_dist.nn.module import Module
from sorix_dist.nn.net import FunctionLayer
from sorix_dist.nn.parameter import Parameter

__all__ = [
    "ELU", "GELU", "GLU", "SELU", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "LogSigmoid", "LogSoftmax",
    "Mish", "PReLU", "ReLU", "ReLU6", "SiLU", "Sigmoid", "Softmax", "Softplus", "Softsign", "Tanh",
]  # fmt: skip


class _Activation(FunctionLayer):
    def __init__(self, inplace: bool = False) -> None:  # inplace is ignored
        pass


class ReLU(_Activation):
    """max(x, 0)."""

    def forward(self, x: Any) -> Tensor:
        return relu(x)


class ReLU6(_Activation):
    function = staticmethod(F.relu6)


class LeakyReLU(_Activation):
    function, _options = staticmethod(F.leaky_relu), ("negative_slope",)

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
    function = staticmethod(F.sigmoid)


class LogSigmoid(_Activation):
    function = staticmethod(F.logsigmoid)


class Hardsigmoid(_Activation):
    function = staticmethod(F.hardsigmoid)


class Tanh(_Activation):
    function = staticmethod(F.tanh)


class Hardtanh(_Activation):
    function, _options = staticmethod(F.hardtanh), ("min_val", "max_val")

    def __init__(self, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> None:
        self.min_val, self.max_val = min_val, max_val


class SiLU(_Activation):
    function = staticmethod(F.silu)


class Mish(_Activation):
    function = staticmethod(F.mish)


class Hardswish(_Activation):
    function = staticmethod(F.hardswish)


class GELU(_Activation):
    function, _options = staticmethod(F.gelu), ("approximate",)

    def __init__(self, approximate: str = "tanh") -> None:
        one_of("GELU: approximate", approximate, "tanh", "none")
        self.approximate = approximate


class ELU(_Activation):
    function, _options = staticmethod(F.elu), ("alpha",)

    def __init__(self, alpha: float = 1.0, inplace: bool = False) -> None:
        self.alpha = alpha


class SELU(_Activation):
    function = staticmethod(F.selu)


class Softplus(_Activation):
    function, _options = staticmethod(F.softplus), ("beta", "threshold")

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        in_range("Softplus: beta", beta, 0, above=True)
        self.beta, self.threshold = beta, threshold


class Softsign(_Activation):
    function = staticmethod(F.softsign)


class GLU(_Activation):
    function, _options = staticmethod(F.glu), ("dim",)

    def __init__(self, dim: int = -1) -> None:
        self.dim = dim


class Softmax(_Activation):
    function, _options = staticmethod(F.softmax), ("dim",)

    def __init__(self, dim: int | None = None) -> None:
        self.dim = dim


class LogSoftmax(Softmax):
    function = staticmethod(F.log_softmax)
