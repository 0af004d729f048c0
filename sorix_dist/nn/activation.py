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
    "CELU", "ELU", "GELU", "GLU", "SELU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU",
    "LogSigmoid", "LogSoftmax", "Mish", "PReLU", "ReLU", "ReLU6", "SiLU", "Sigmoid", "Softmax", "Softmax2d", "Softmin",
    "Softplus", "Softshrink", "Softsign", "Tanh", "Tanhshrink", "Threshold",
]  # fmt: skip


class ReLU(FunctionLayer, function=F.relu):
    def forward(self, x: Any) -> Tensor:
        return relu(x)


class ReLU6(FunctionLayer, function=F.relu6): ...


class LeakyReLU(FunctionLayer, function=F.leaky_relu): ...


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


class Sigmoid(FunctionLayer, function=F.sigmoid): ...


class LogSigmoid(FunctionLayer, function=F.logsigmoid): ...


class Hardsigmoid(FunctionLayer, function=F.hardsigmoid): ...


class Tanh(FunctionLayer, function=F.tanh): ...


class Hardtanh(FunctionLayer, function=F.hardtanh): ...


class SiLU(FunctionLayer, function=F.silu): ...


class Mish(FunctionLayer, function=F.mish): ...


class Hardswish(FunctionLayer, function=F.hardswish): ...


class GELU(FunctionLayer, function=F.gelu):
    def _complete(self) -> None:
        one_of("GELU: approximate", self.approximate, "tanh", "none")


class ELU(FunctionLayer, function=F.elu): ...


class SELU(FunctionLayer, function=F.selu): ...


class Softplus(FunctionLayer, function=F.softplus):
    def _complete(self) -> None:
        in_range("Softplus: beta", self.beta, 0, above=True)


class Softsign(FunctionLayer, function=F.softsign): ...


class GLU(FunctionLayer, function=F.glu): ...


class Softmax(FunctionLayer, function=F.softmax): ...


class LogSoftmax(FunctionLayer, function=F.log_softmax): ...


class Softmin(FunctionLayer, function=F.softmin): ...


class Softmax2d(Module):
    """softmax over the channels of images (N, C, H, W) or (C, H, W)."""

    def forward(self, x: Any) -> Tensor:
        return F.softmax(x, -3)


class CELU(FunctionLayer, function=F.celu): ...


class Hardshrink(FunctionLayer, function=F.hardshrink): ...


class Softshrink(FunctionLayer, function=F.softshrink): ...


class Tanhshrink(FunctionLayer, function=F.tanhshrink): ...


class Threshold(FunctionLayer, function=F.threshold): ...
