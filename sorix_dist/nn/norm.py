"""Layers that normalise: over the rows of the global batch, or over the features of each row."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.arguments import at_least, parameter_dtype
from sorix_dist.core.ops import norm
from sorix_dist.nn.module import Module, Parameter
from sorix_dist.nn.torch_state import OPTIONAL, ROW


def _scale_and_shift(shape: tuple[int, ...], wanted: bool, kind: Any) -> tuple[Parameter | None, Parameter | None]:
    return (Parameter(np.ones(shape, kind)), Parameter(np.zeros(shape, kind))) if wanted else (None, None)


class _BatchNorm(Module):
    """What batch norms have in common; see BatchNorm2d.

    shapes: that an input may have, by its number of dimensions; names: of scale and shift.
    """

    shapes: ClassVar[dict[int, str]]
    names: ClassVar[tuple[str, str]]
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float,
        momentum: float | None,
        affine: bool,
        track_running_stats: bool,
        device: Any,
        dtype: Any,
        shape: tuple[int, ...],
        counted: bool,
    ) -> None:
        kind = parameter_dtype(device, dtype)
        name = type(self).__name__
        at_least(1, name, num_features=num_features)
        if eps <= 0:
            raise ValueError(f"{name}: eps must be > 0, got {eps!r}")
        if momentum is not None and not 0 <= momentum <= 1:
            raise ValueError(f"{name}: momentum must be in [0, 1] or None, got {momentum!r}")
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        for attribute, parameter in zip(self.names, _scale_and_shift(shape, affine, kind), strict=True):
            setattr(self, attribute, parameter)
        self.register_buffer("running_mean", np.zeros(shape, kind) if track_running_stats else None)
        self.register_buffer("running_var", np.ones(shape, kind) if track_running_stats else None)
        counts = track_running_stats and counted
        self.register_buffer("num_batches_tracked", np.zeros((), np.int64) if counts else None)

    def forward(self, x: Any) -> Tensor:
        shape = tuple(np.shape(x))
        if len(shape) not in self.shapes or shape[1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__}: input must have shape {' or '.join(self.shapes.values())} with C = "
                f"{self.num_features}, got shape {shape}"
            )
        fraction = self.momentum
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.array[...] += 1
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

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        device: Any = "cpu",
        *,
        affine: bool = True,
        track_running_stats: bool = True,
        dtype: Any = None,
    ) -> None:
        counted = momentum is None
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, (1, num_features), counted
        )


class BatchNorm2d(_BatchNorm):
    """Batch normalisation of images (N, C, H, W): each channel gets mean 0 and variance 1, times `weight`, plus
    `bias`, of shape (num_features,).

    In training the statistics are those of the global batch, however its rows are shared out, and move
    `running_mean` and `running_var` (unbiased) by the fraction `momentum`; None makes these the mean over all
    batches. In evaluation these are used, unless `track_running_stats` is off. A global batch of one value per
    channel raises ValueError in training.
    """

    shapes: ClassVar[dict[int, str]] = {4: "(N, C, H, W)"}
    names = ("weight", "bias")

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = "cpu",
        dtype: Any = None,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, (num_features,), counted=True
        )


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
        shape = (normalized_shape,) if isinstance(normalized_shape, int | np.integer) else tuple(normalized_shape)
        if not shape or min(shape) < 1:
            raise ValueError(f"LayerNorm: normalized_shape must hold integers >= 1, got {normalized_shape!r}")
        self.normalized_shape, self.eps, self.elementwise_affine = shape, eps, elementwise_affine
        self.weight, shift = _scale_and_shift(shape, elementwise_affine, kind)
        self.bias = shift if bias else None

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
    ) -> None:
        kind = parameter_dtype(device, dtype)
        if num_groups < 1 or num_channels < 1 or num_channels % num_groups:
            raise ValueError(
                f"GroupNorm: num_groups must be >= 1 and divide num_channels {num_channels}, got {num_groups!r}"
            )
        self.num_groups, self.num_channels, self.eps, self.affine = num_groups, num_channels, eps, affine
        self.weight, self.bias = _scale_and_shift((num_channels,), affine, kind)

    def forward(self, x: Any) -> Tensor:
        if np.ndim(x) < 2 or np.shape(x)[1] != self.num_channels:
            raise ValueError(
                f"GroupNorm: input must have shape (N, {self.num_channels}, ...), got shape {tuple(np.shape(x))}"
            )
        return norm.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"
