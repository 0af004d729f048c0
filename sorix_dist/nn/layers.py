"""Basic layers: linear, embedding, dropout and shapes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from copy import deepcopy
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np

from sorix_dist.core import Tensor, as_tensor
from sorix_dist.core import random as rng
from sorix_dist.core.arguments import (
    CPU,
    as_bool,
    as_list,
    at_least,
    described,
    int_or_none,
    is_integer,
    one_of,
    parameter_dtype,
    unsupported,
)
from sorix_dist.core.arrange import unflatten
from sorix_dist.core.ops import matrix
from sorix_dist.core.ops.activation import check_dropout, dropout, dropout2d
from sorix_dist.core.ops.join import pad
from sorix_dist.core.ops.shape import flatten
from sorix_dist.nn import functional as F
from sorix_dist.nn.activation import LeakyReLU, ReLU, Sigmoid, Tanh
from sorix_dist.nn.module import Module
from sorix_dist.nn.net import FunctionLayer
from sorix_dist.nn.norm import BatchNorm1d
from sorix_dist.nn.parameter import Parameter
from sorix_dist.nn.torch_state import ROW, SAME, TRANSPOSED

__all__ = [
    "AlphaDropout", "BatchNorm1d", "Bilinear", "ChannelShuffle", "CosineSimilarity", "Dropout", "Dropout1d",
    "Dropout2d", "Dropout3d", "Embedding", "EmbeddingBag", "Flatten", "Identity", "LeakyReLU", "Linear",
    "PairwiseDistance", "PixelShuffle", "PixelUnshuffle", "ReLU", "Sigmoid", "Tanh", "Unflatten", "Upsample",
    "UpsamplingBilinear2d", "UpsamplingNearest2d", "CircularPad1d", "CircularPad2d", "CircularPad3d", "ConstantPad1d",
    "ConstantPad2d", "ConstantPad3d", "ReflectionPad1d", "ReflectionPad2d", "ReflectionPad3d", "ReplicationPad1d",
    "ReplicationPad2d", "ReplicationPad3d", "ZeroPad1d", "ZeroPad2d", "ZeroPad3d",
]  # fmt: skip


class Linear(Module):
    """x @ W + b, for inputs of shape (..., features).

    W has shape (features, neurons), b (1, neurons). Weights start normal with variance 2 / features ("he",
    He et al. 2015) or 2 / (features + neurons) ("xavier", Glorot and Bengio 2010), the bias at zero.
    std_dev is that of the first weights; in_features and out_features are PyTorch's names of `features` and `neurons`.
    """

    torch_names = MappingProxyType({"W": ("weight", TRANSPOSED), "b": ("bias", ROW)})

    def __init__(
        self,
        features: int | None = None,
        neurons: int | None = None,
        bias: bool = True,
        init: str | None = "he",
        device: Any = "cpu",
        dtype: Any = None,
        *,
        in_features: int | None = None,
        out_features: int | None = None,
    ) -> None:
        kind = parameter_dtype(device, dtype)
        sizes: Any = {
            "features": in_features if features is None else features,
            "neurons": out_features if neurons is None else neurons,
        }
        at_least(1, "Linear", **sizes)
        features, neurons = sizes.values()
        fan = {"he": features, "xavier": features + neurons}.get(init or "he")
        if fan is None:
            raise ValueError(f"Invalid initialization method: init must be 'he' or 'xavier', got {init!r}")
        weights = rng.generator().standard_normal((features, neurons), dtype=np.float32)
        self.std_dev = np.sqrt(2 / fan)
        self.W = Parameter(weights * np.float32(self.std_dev), dtype=kind)
        self.b = Parameter(np.zeros((1, neurons), kind)) if bias else None

    def forward(self, x: Any) -> Tensor:
        return matrix.linear(x, self.W, self.b)

    @property
    def in_features(self) -> int:
        """The number of features, by PyTorch's name."""
        return int(self.W.shape[0])

    @property
    def out_features(self) -> int:
        """The number of neurons, by PyTorch's name."""
        return int(self.W.shape[1])

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
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.b is not None}"


class Bilinear(Module):
    """x1 W x2 + b for each output, of (..., in1_features) and (..., in2_features); W is `weight` (out_features,
    in1_features, in2_features). Both start uniform within 1 / sqrt(in1_features), as PyTorch's do."""

    _in_repr = ("in1_features", "in2_features", "out_features")

    def __init__(
        self, in1_features: int, in2_features: int, out_features: int, bias: bool = True, device: Any = "cpu",
        dtype: Any = None,
    ) -> None:  # fmt: skip
        at_least(1, "Bilinear", in1_features=in1_features, in2_features=in2_features, out_features=out_features)
        self.in1_features, self.in2_features, self.out_features = in1_features, in2_features, out_features
        bound, draw, kind = in1_features**-0.5, rng.generator().uniform, parameter_dtype(device, dtype)
        self.weight = Parameter(draw(-bound, bound, (out_features, in1_features, in2_features)).astype(kind))
        self.bias = Parameter(draw(-bound, bound, out_features).astype(kind)) if bias else None

    def forward(self, x1: Any, x2: Any) -> Tensor:
        return F.bilinear(x1, x2, self.weight, self.bias)


class Embedding(Module):
    """The rows of `W` (num_embeddings, embedding_dim) that integers in [0, num_embeddings) name.

    W starts normal with variance 1. The row `padding_idx`, if given, starts at zero and gets no gradient.
    norm_type and sparse: PyTorch's, ignored; max_norm and scale_grad_by_freq are refused.
    """

    torch_names = MappingProxyType({"W": ("weight", SAME)})

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | str | None = None,
        device: Any = "cpu",
        *,
        dtype: Any = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> None:
        unsupported("Embedding", max_norm=max_norm, scale_grad_by_freq=scale_grad_by_freq)
        if isinstance(padding_idx, str | type(CPU)):  # sorix's third argument is the device
            padding_idx, device = None, padding_idx
        kind = parameter_dtype(device, dtype)
        at_least(1, "Embedding", num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        padding_idx = int_or_none("Embedding: padding_idx", padding_idx)
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise ValueError(f"padding_idx must be in [{-num_embeddings}, {num_embeddings}), got {padding_idx}")
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx = None if padding_idx is None else padding_idx % num_embeddings
        weights = rng.generator().standard_normal((num_embeddings, embedding_dim), dtype=np.float32)
        if self.padding_idx is not None:
            weights[self.padding_idx] = 0
        self.W = Parameter(weights.astype(kind, copy=False))

    @classmethod
    def from_pretrained(cls, embeddings: Any, freeze: bool = True, **options: Any) -> Self:
        """An Embedding whose W is a copy of `embeddings`, (num_embeddings, embedding_dim); `freeze`: not trained."""
        given = as_tensor(embeddings)
        if given.ndim != 2:
            raise ValueError(f"from_pretrained: embeddings must have two dimensions, got {described(embeddings)}")
        made = cls(*given.array.shape, dtype=given.dtype, **options)
        made.W = Parameter(given.array.copy(), requires_grad=not as_bool("from_pretrained: freeze", freeze))
        return made

    def forward(self, x: Any) -> Tensor:
        """x: integers of any shape; the result has the features as one more dimension."""
        return F.embedding(x, self.W, self.padding_idx)

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"


class EmbeddingBag(Module):
    """The mean, sum or max of rows of `W` for each bag of integers, see `functional.embedding_bag`.

    W is as an Embedding's, or `_weight`. The options of PyTorch that Embedding ignores or refuses are so here.
    """

    torch_names = MappingProxyType({"W": ("weight", SAME)})
    from_pretrained = vars(Embedding)["from_pretrained"]

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        _weight: Any = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        device: Any = "cpu",
        dtype: Any = None,
    ) -> None:
        unsupported("EmbeddingBag", max_norm=max_norm, scale_grad_by_freq=scale_grad_by_freq)
        made = Embedding(num_embeddings, embedding_dim, padding_idx, device, dtype=dtype)
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, made.padding_idx
        one_of("EmbeddingBag: mode", mode, "mean", "sum", "max")
        self.mode, self.include_last_offset = mode, as_bool("include_last_offset", include_last_offset)
        self.W = made.W if _weight is None else Parameter(as_tensor(_weight).array.copy())
        if self.W.array.shape != made.W.array.shape:
            raise ValueError(f"EmbeddingBag: _weight must have shape {made.W.array.shape}, got {self.W.array.shape}")

    def forward(self, x: Any, offsets: Any = None, per_sample_weights: Any = None) -> Tensor:
        """x: integers (B, L), or a vector with offsets (B,); the result is (B, embedding_dim)."""
        return F.embedding_bag(
            x, self.W, offsets, mode=self.mode, per_sample_weights=per_sample_weights, padding_idx=self.padding_idx,
            include_last_offset=self.include_last_offset,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, mode={self.mode!r}"


# -- dropout: the mask of a row is the same on whichever rank the row is

_layer_numbers = rng.PerSeed("numbers", itertools.count)
"""Counts the dropout layers that were made since the seed was set, in the same order on every rank."""


class Dropout(Module):
    """In training, zeroes each element with probability p and divides the others by 1 - p (Srivastava et al. 2014).

    The first dimension is the batch. A row's mask follows from the seed, the layer, its call and the row's place
    in the global batch, so that it does not change with the number of ranks. `inplace` is ignored.
    """

    _in_repr = ("p",)

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        check_dropout(type(self).__name__, p)
        self.p = p
        self.draws = rng.Draws(next(_layer_numbers()))

    def forward(self, x: Any) -> Tensor:
        return dropout(x, self.p, self.training, draws=self.draws)

    @property
    def calls(self) -> int:
        """The number of masks that this layer has drawn. A checkpoint needs only this and the seed to continue."""
        return self.draws.calls

    @calls.setter
    def calls(self, value: int) -> None:
        self.draws.calls = value

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # A copy is another layer: with the same number, two of them in one model would drop alike.
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        vars(made).update(deepcopy({k: v for k, v in vars(self).items() if k != "draws"}, memo))
        made.draws = rng.Draws(next(_layer_numbers()))
        return made


class Dropout2d(Dropout):
    """In training, zeroes whole channels of inputs (N, C, ...) with probability p; else as Dropout."""

    function = staticmethod(dropout2d)

    def forward(self, x: Any) -> Tensor:
        return self.function(x, self.p, self.training, draws=self.draws)


class Dropout1d(Dropout2d):
    """Dropout2d for sequences (N, C, L) or (C, L)."""

    function = staticmethod(F.dropout1d)


class Dropout3d(Dropout2d):
    """Dropout2d for volumes (N, C, D, H, W) or (C, D, H, W)."""

    function = staticmethod(F.dropout3d)


class AlphaDropout(Dropout2d):
    """Dropout for SELU, which keeps a mean of 0 and a variance of 1, see `functional.alpha_dropout`."""

    function = staticmethod(F.alpha_dropout)


# -- shapes


class Identity(Module):
    """Returns its input; accepts any arguments, so that it can replace another layer."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def forward(self, x: Any) -> Any:
        return x


class Flatten(FunctionLayer, function=flatten):
    """Joins the dimensions from `start_dim` to `end_dim` into one; by default all but the batch."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim, self.end_dim = start_dim, end_dim


class Unflatten(FunctionLayer, function=unflatten):
    """Splits the dimension `dim` into the dimensions `unflattened_size`."""

    _options = ("dim", "unflattened_size")

    def __init__(self, dim: int, unflattened_size: Sequence[int]) -> None:
        self.dim, self.unflattened_size = dim, tuple(as_list("unflattened_size", unflattened_size, "integers"))


class PixelShuffle(FunctionLayer, function=F.pixel_shuffle):
    """(N, C r², H, W) as (N, C, H r, W r), where r is `upscale_factor` (Shi et al. 2016)."""


class Upsample(FunctionLayer, function=F.interpolate):
    """Sequences, images or volumes in another size; arguments as for `F.interpolate`."""

    _in_repr = ("size", "scale_factor", "mode")


class UpsamplingNearest2d(Upsample):
    """Upsample with the nearest pixels."""

    def __init__(self, size: Any = None, scale_factor: Any = None) -> None:
        super().__init__(size, scale_factor)


class UpsamplingBilinear2d(Upsample):
    """Upsample between the four nearest pixels, with aligned corners."""

    def __init__(self, size: Any = None, scale_factor: Any = None) -> None:
        super().__init__(size, scale_factor, "bilinear", True)


class PixelUnshuffle(FunctionLayer, function=F.pixel_unshuffle): ...


class ChannelShuffle(FunctionLayer, function=F.channel_shuffle): ...


class CosineSimilarity(FunctionLayer, function=F.cosine_similarity, inputs=2): ...


class PairwiseDistance(FunctionLayer, function=F.pairwise_distance, inputs=2): ...


class _Pad(FunctionLayer):
    """A border around the last dimensions; padding: one width, or (before, after) for each, the last one first."""

    _options, _in_repr = ("padding", "mode", "value"), ("padding",)
    mode: ClassVar[str]
    dims: ClassVar[int]

    def __init__(self, padding: int | Sequence[int], value: float = 0.0) -> None:
        name, count = type(self).__name__, 2 * self.dims
        if value != 0 and not name.startswith("Constant"):
            raise TypeError(f"{name} takes no value")
        one = is_integer(padding)
        self.padding: Any = (padding,) * count if one else tuple(as_list("padding", padding, "integers"))
        if len(self.padding) != count:
            raise ValueError(f"{name}: padding must be one integer or {count}, got {padding!r}")
        self.value = value

    def forward(self, x: Any) -> Tensor:
        return pad(x, self.padding, self.mode, self.value)  # type: ignore[no-any-return]


def _pads(kind: str, mode: str) -> tuple[type[_Pad], ...]:
    """The layers of one, two and three dimensions."""
    common = {"mode": mode, "__doc__": _Pad.__doc__, "__module__": __name__}
    return tuple(type(f"{kind}Pad{dims}d", (_Pad,), {**common, "dims": dims}) for dims in (1, 2, 3))


ConstantPad1d, ConstantPad2d, ConstantPad3d = _pads("Constant", "constant")
ZeroPad1d, ZeroPad2d, ZeroPad3d = _pads("Zero", "constant")
ReflectionPad1d, ReflectionPad2d, ReflectionPad3d = _pads("Reflection", "reflect")
ReplicationPad1d, ReplicationPad2d, ReplicationPad3d = _pads("Replication", "replicate")
CircularPad1d, CircularPad2d, CircularPad3d = _pads("Circular", "circular")
