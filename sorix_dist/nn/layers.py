"""Layers without a structure of their own."""

from __future__ import annotations

from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core import random as rng
from sorix_dist.core.ops.matrix import linear
from sorix_dist.core.ops.shape import flatten
from sorix_dist.nn.activation import LeakyReLU, ReLU, Sigmoid, Tanh
from sorix_dist.nn.arguments import at_least_one, parameter_dtype
from sorix_dist.nn.dropout import Dropout
from sorix_dist.nn.module import Module, Parameter
from sorix_dist.nn.norm import BatchNorm1d

__all__ = [
    "BatchNorm1d", "Dropout", "Flatten", "Identity", "LeakyReLU", "Linear", "ReLU", "Sigmoid", "Tanh",
]  # fmt: skip


class Linear(Module):
    """x @ W + b, for inputs of shape (..., features).

    W has shape (features, neurons), b (1, neurons). Weights start normal with variance 2 / features ("he",
    He et al. 2015) or 2 / (features + neurons) ("xavier", Glorot and Bengio 2010), the bias at zero.
    """

    def __init__(
        self,
        features: int,
        neurons: int,
        bias: bool = True,
        init: str = "he",
        device: Any = "cpu",
        dtype: Any = None,
    ) -> None:
        kind = parameter_dtype(device, dtype)
        at_least_one("Linear", features=features, neurons=neurons)
        fan = {"he": features, "xavier": features + neurons}.get(init)
        if fan is None:
            raise ValueError(f"Invalid initialization method: init must be 'he' or 'xavier', got {init!r}")
        weights = rng.generator().standard_normal((features, neurons), dtype=np.float32)
        self.W = Parameter(weights * np.float32(np.sqrt(2 / fan)), dtype=kind)
        self.b = Parameter(np.zeros((1, neurons), kind)) if bias else None

    def forward(self, x: Any) -> Tensor:
        return linear(x, self.W, self.b)

    @property
    def coef_(self) -> Any:
        """The weights as a flat array."""
        return self.W.array.flatten()

    @property
    def intercept_(self) -> Any:
        """The bias as a flat array, as a number if there is one neuron, or None."""
        if self.b is None:
            return None
        return self.b.item() if self.b.numel == 1 else self.b.array.flatten()

    def extra_repr(self) -> str:
        features, neurons = self.W.shape
        return f"in_features={features}, out_features={neurons}, bias={self.b is not None}"


class Flatten(Module):
    """The dimensions from `start_dim` to `end_dim` joined into one; by default all but the batch."""

    _in_repr = ("start_dim", "end_dim")

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim = start_dim
        self.end_dim = end_dim

    def forward(self, x: Any) -> Tensor:
        return flatten(x, self.start_dim, self.end_dim)


class Identity(Module):
    """Its input; any arguments are accepted, so that it may stand for another layer."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def forward(self, x: Any) -> Any:
        return x
