"""Layers without a structure of their own: linear, embedding, dropout, shapes and activations."""

from __future__ import annotations

import itertools
from copy import deepcopy
from types import MappingProxyType
from typing import Any, Self

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core import random as rng
from sorix_dist.core.arguments import at_least, parameter_dtype
from sorix_dist.core.ops.activation import check_dropout, dropout, dropout2d
from sorix_dist.core.ops.matrix import linear
from sorix_dist.core.ops.shape import flatten
from sorix_dist.nn import functional as F
from sorix_dist.nn.module import Module, Parameter
from sorix_dist.nn.norm import BatchNorm1d
from sorix_dist.nn.torch_state import ROW, SAME, TRANSPOSED

__all__ = [
    "ELU", "GELU", "BatchNorm1d", "Dropout", "Dropout2d", "Embedding", "Flatten", "Identity", "LeakyReLU", "Linear",
    "LogSoftmax", "ReLU", "SiLU", "Sigmoid", "Softmax", "Softplus", "Tanh",
]  # fmt: skip


class Linear(Module):
    """x @ W + b, for inputs of shape (..., features).

    W has shape (features, neurons), b (1, neurons). Weights start normal with variance 2 / features ("he",
    He et al. 2015) or 2 / (features + neurons) ("xavier", Glorot and Bengio 2010), the bias at zero.
    """

    torch_names = MappingProxyType({"W": ("weight", TRANSPOSED), "b": ("bias", ROW)})

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
        at_least(1, "Linear", features=features, neurons=neurons)
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


class Embedding(Module):
    """The rows of `W` (num_embeddings, embedding_dim) that integers in [0, num_embeddings) name.

    W starts normal with variance 1. The row `padding_idx`, if given, starts at zero and gets no gradient.
    """

    torch_names = MappingProxyType({"W": ("weight", SAME)})

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        device: Any = "cpu",
        *,
        padding_idx: int | None = None,
        dtype: Any = None,
    ) -> None:
        kind = parameter_dtype(device, dtype)
        for name, value in (("num_embeddings", num_embeddings), ("embedding_dim", embedding_dim)):
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise ValueError(f"padding_idx must be in [{-num_embeddings}, {num_embeddings}), got {padding_idx}")
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx = None if padding_idx is None else padding_idx % num_embeddings
        weights = rng.generator().standard_normal((num_embeddings, embedding_dim), dtype=np.float32)
        if self.padding_idx is not None:
            weights[self.padding_idx] = 0
        self.W = Parameter(weights.astype(kind, copy=False))

    def forward(self, x: Any) -> Tensor:
        """x: integers of any shape; the result has the features as one more dimension."""
        return F.embedding(x, self.W, self.padding_idx)

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"


# How many layers were made since the seed was set, the same on every rank.
_numbers = rng.PerSeed("numbers", itertools.count)


class _Dropout(Module):
    _in_repr = ("p",)

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        check_dropout(type(self).__name__, p, inplace)
        self.p = p
        self.draws = rng.Draws(next(_numbers()))

    @property
    def calls(self) -> int:
        """How many masks this layer has drawn: what a checkpoint must keep, besides the seed, to go on alike."""
        return self.draws.calls

    @calls.setter
    def calls(self, value: int) -> None:
        self.draws.calls = value

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # A copy is another layer: with the same number, two of them in one model would drop alike.
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        vars(made).update(deepcopy({k: v for k, v in vars(self).items() if k != "draws"}, memo))
        made.draws = rng.Draws(next(_numbers()))
        return made


class Dropout(_Dropout):
    """In training, zeroes each element with probability p and divides the others by 1 - p (Srivastava et al. 2014).

    The first dimension is the batch. A row's mask follows from the seed, the layer, its call and the row's place
    in the global batch, so that it does not change with the number of ranks.
    """

    def forward(self, x: Any) -> Tensor:
        return dropout(x, self.p, self.training, draws=self.draws)


class Dropout2d(_Dropout):
    """In training, zeroes whole channels of inputs (N, C, ...) with probability p; else as Dropout."""

    def forward(self, x: Any) -> Tensor:
        return dropout2d(x, self.p, self.training, draws=self.draws)


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Any) -> Tensor:
        return F.relu(x)


class LeakyReLU(Module):
    """x where x > 0, negative_slope * x elsewhere."""

    _in_repr = ("negative_slope",)

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = negative_slope

    def forward(self, x: Any) -> Tensor:
        return F.leaky_relu(x, self.negative_slope)


class Sigmoid(Module):
    """1 / (1 + exp(-x))."""

    def forward(self, x: Any) -> Tensor:
        return F.sigmoid(x)


class Tanh(Module):
    """The hyperbolic tangent."""

    def forward(self, x: Any) -> Tensor:
        return F.tanh(x)


class SiLU(Module):
    """x * sigmoid(x)."""

    def forward(self, x: Any) -> Tensor:
        return F.silu(x)


class GELU(Module):
    """x times the probability that a standard normal number is below x.

    approximate: "tanh" for the usual approximation, "none" for the exact function, which needs SciPy.
    """

    def __init__(self, approximate: str = "tanh") -> None:
        if approximate not in ("tanh", "none"):
            raise ValueError(f"GELU: approximate must be 'tanh' or 'none', got {approximate!r}")
        self.approximate = approximate

    def forward(self, x: Any) -> Tensor:
        return F.gelu(x, self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class ELU(Module):
    """x where x > 0, alpha * (exp(x) - 1) elsewhere."""

    _in_repr = ("alpha",)

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def forward(self, x: Any) -> Tensor:
        return F.elu(x, self.alpha)


class Softplus(Module):
    """log(1 + exp(beta * x)) / beta, and x itself where beta * x > threshold."""

    _in_repr = ("beta", "threshold")

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        if not beta > 0:
            raise ValueError(f"Softplus: beta must be > 0, got {beta}")
        self.beta = beta
        self.threshold = threshold

    def forward(self, x: Any) -> Tensor:
        return F.softplus(x, self.beta, self.threshold)


class Softmax(Module):
    """exp(x) divided by its sum along `dim`."""

    _in_repr = ("dim",)

    def __init__(self, dim: int = -1) -> None:
        self.dim = dim

    def forward(self, x: Any) -> Tensor:
        return F.softmax(x, self.dim)


class LogSoftmax(Module):
    """The logarithm of softmax along `dim`."""

    _in_repr = ("dim",)

    def __init__(self, dim: int = -1) -> None:
        self.dim = dim

    def forward(self, x: Any) -> Tensor:
        return F.log_softmax(x, self.dim)
