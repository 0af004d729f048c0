"""Layers that normalise: over the rows of the global batch, or over the features of each row."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from sorix_dist.core import Tensor, as_tensor
from sorix_dist.core.arguments import CPU, as_bool, at_least, in_range, is_integer, parameter_dtype, unsupported
from sorix_dist.core.capture import host
from sorix_dist.core.ops import norm
from sorix_dist.core.tensor import shape_of
from sorix_dist.nn import functional as F
from sorix_dist.nn.module import Module
from sorix_dist.nn.parameter import Parameter
from sorix_dist.nn.torch_state import OPTIONAL, ROW

__all__ = [
    "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "GroupNorm", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d",
    "LayerNorm", "RMSNorm",
]  # fmt: skip


def _scale_and_shift(
    shape: tuple[int, ...], scale: bool, shift: bool, kind: Any
) -> tuple[Parameter | None, Parameter | None]:
    return Parameter(np.ones(shape, kind)) if scale else None, (
        Parameter(np.zeros(shape, kind)) if scale and shift else None
    )


@host
def _count_batch(count: Any) -> None:
    count += 1


class _BatchNorm(Module):
    """Batch normalisation of inputs (N, C, ...) of certain `shapes`, by their number of dimensions; see BatchNorm2d."""

    shapes: ClassVar[dict[int, str]]
    names: ClassVar[tuple[str, str]] = ("weight", "bias")  # of scale and shift
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool | str = True,
        track_running_stats: bool = True,
        device: Any = "cpu",
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        if isinstance(affine, str | type(CPU)):  # sorix's fourth argument is the device
            affine, device = True, affine
        kind, name = parameter_dtype(device, dtype), type(self).__name__
        at_least(1, name, num_features=num_features)
        in_range(f"{name}: eps", eps, 0, above=True)
        if momentum is not None:
            in_range(f"{name}: momentum", momentum, 0, 1, closed=True)
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = as_bool(f"{name}: affine", affine), track_running_stats
        shape = self._shape()
        for attribute, parameter in zip(self.names, _scale_and_shift(shape, self.affine, bias, kind), strict=True):
            setattr(self, attribute, parameter)
        self.register_buffer("running_mean", np.zeros(shape, kind) if track_running_stats else None)
        self.register_buffer("running_var", np.ones(shape, kind) if track_running_stats else None)
        counted = track_running_stats and self._counts()
        self.register_buffer("num_batches_tracked", np.zeros((), np.int64) if counted else None)

    def _shape(self) -> tuple[int, ...]:
        return (self.num_features,)

    def _counts(self) -> bool:
        return True

    def forward(self, x: Any) -> Tensor:
        shape = tuple(shape_of(x))
        if len(shape) not in self.shapes or shape[1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__}: input must have shape {' or '.join(self.shapes.values())} with C = "
                f"{self.num_features}, got shape {shape}"
            )
        fraction = self.momentum
        if self.training and self.num_batches_tracked is not None:
            _count_batch(self.num_batches_tracked.array)
            if fraction is None:
                fraction = 1 / self.num_batches_tracked.item()
        weight, bias = (getattr(self, name) for name in self.names)
        by_batch = self.training or self.running_mean is None
        fraction = 0.0 if fraction is None else fraction
        return norm.batch_norm(x, self.running_mean, self.running_var, weight, bias, by_batch, fraction, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(_BatchNorm):
    """Batch normalisation of (N, C) or (N, C, L), with `gamma`, `beta`, `running_mean` and `running_var` of shape
    (1, num_features); see BatchNorm2d."""

    shapes: ClassVar[dict[int, str]] = {2: "(N, C)", 3: "(N, C, L)"}
    names = ("gamma", "beta")
    torch_names = MappingProxyType(
        {
            "gamma": ("weight", ROW),
            "beta": ("bias", ROW),
            "running_mean": ("running_mean", ROW),
            "running_var": ("running_var", ROW),
            "num_batches_tracked": ("num_batches_tracked", OPTIONAL),
        }
    )

    def _shape(self) -> tuple[int, ...]:
        return 1, self.num_features

    def _counts(self) -> bool:
        return self.momentum is None


class BatchNorm2d(_BatchNorm):
    """Batch normalisation of images (N, C, H, W): each channel gets mean 0 and variance 1, times `weight`, plus
    `bias`, of shape (num_features,) (Ioffe and Szegedy 2015).

    In training the statistics are those of the global batch, on any number of ranks, and move `running_mean` and
    `running_var` (unbiased) by the fraction `momentum`; None makes these the mean over all batches. In evaluation these
    are used, unless `track_running_stats` is off. Training with one value per channel in all raises ValueError.
    """

    shapes: ClassVar[dict[int, str]] = {4: "(N, C, H, W)"}


class BatchNorm3d(_BatchNorm):
    """Batch normalisation of volumes (N, C, D, H, W); see BatchNorm2d."""

    shapes: ClassVar[dict[int, str]] = {5: "(N, C, D, H, W)"}


class InstanceNorm2d(Module):
    """Each channel of each image (N, C, H, W), or of one (C, H, W), with mean 0 and variance 1 (Ulyanov et al. 2016).

    affine: then times `weight`, plus `bias`, both (C,), trained. Running statistics are not supported; `momentum` has
    no meaning without them.
    """

    shape: ClassVar[str] = "(N, C, H, W)"
    _in_repr = ("num_features", "eps", "affine")

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = "cpu",
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        name = type(self).__name__
        at_least(1, name, num_features=num_features)
        unsupported(name, track_running_stats=track_running_stats)
        self.num_features, self.eps, self.affine = num_features, eps, affine
        self.weight, self.bias = _scale_and_shift((num_features,), affine, bias, parameter_dtype(device, dtype))

    def forward(self, x: Any) -> Tensor:
        x = as_tensor(x)
        missing = self.shape.count(",") + 1 - x.ndim
        batch = x.unsqueeze(0) if missing == 1 else x
        if missing not in (0, 1) or batch.shape[1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__}: input must have shape {self.shape} with C = {self.num_features}, or one such "
                f"sample, got shape {tuple(x.shape)}"
            )
        y = F.instance_norm(batch, weight=self.weight, bias=self.bias, eps=self.eps)
        return y.squeeze(0) if missing else y


class InstanceNorm1d(InstanceNorm2d):
    """Each channel of each sequence (N, C, L) with mean 0 and variance 1; see InstanceNorm2d."""

    shape = "(N, C, L)"


class InstanceNorm3d(InstanceNorm2d):
    """Each channel of each volume (N, C, D, H, W) with mean 0 and variance 1; see InstanceNorm2d."""

    shape = "(N, C, D, H, W)"


class LayerNorm(Module):
    """Each row with mean 0 and variance 1 over its last dimensions `normalized_shape`, times `weight`, plus
    `bias`, both of that shape (Ba, Kiros and Hinton 2016)."""

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = "cpu",
        dtype: Any = None,
    ) -> None:
        kind = parameter_dtype(device, dtype)
        shape = _shape_of(normalized_shape, "LayerNorm")
        self.normalized_shape, self.eps, self.elementwise_affine = shape, eps, elementwise_affine
        self.weight, self.bias = _scale_and_shift(shape, elementwise_affine, bias, kind)

    def forward(self, x: Any) -> Tensor:
        return norm.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class GroupNorm(Module):
    """Each row's `num_groups` groups of channels with mean 0 and variance 1, times `weight`, plus `bias`, of shape
    (num_channels,), for inputs (N, num_channels, ...) (Wu and He 2018)."""

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = "cpu",
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        kind = parameter_dtype(device, dtype)
        at_least(1, "GroupNorm", num_groups=num_groups, num_channels=num_channels)
        if num_channels % num_groups:
            raise ValueError(f"GroupNorm: num_groups must divide num_channels {num_channels}, got {num_groups}")
        self.num_groups, self.num_channels, self.eps, self.affine = num_groups, num_channels, eps, affine
        self.weight, self.bias = _scale_and_shift((num_channels,), affine, bias, kind)

    def forward(self, x: Any) -> Tensor:
        if np.ndim(x) < 2 or shape_of(x)[1] != self.num_channels:
            raise ValueError(
                f"GroupNorm: input must have shape (N, {self.num_channels}, ...), got shape {tuple(shape_of(x))}"
            )
        return norm.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"


class RMSNorm(Module):
    """x / sqrt(mean(x²) + eps) over the last dimensions `normalized_shape`, times `weight` of that shape (Zhang and
    Sennrich 2019). eps: the smallest number that changes 1 in the input's dtype, if None."""

    _in_repr = ("normalized_shape", "eps", "elementwise_affine")

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = "cpu",
        dtype: Any = None,
    ) -> None:
        self.normalized_shape = _shape_of(normalized_shape, "RMSNorm")
        self.eps, self.elementwise_affine = eps, elementwise_affine
        kind = parameter_dtype(device, dtype)
        self.weight, _ = _scale_and_shift(self.normalized_shape, elementwise_affine, False, kind)

    def forward(self, x: Any) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)


def _shape_of(sizes: int | Sequence[int], layer: str) -> tuple[int, ...]:
    shape = tuple(sizes) if isinstance(sizes, Sequence | np.ndarray) and not isinstance(sizes, str) else (sizes,)
    if not shape or not all(is_integer(size) and size >= 1 for size in shape):
        raise ValueError(f"{layer}: normalized_shape must hold integers >= 1, got {sizes!r}")
    return shape
