"""Convolution and pooling layers, for sequences (N, C, L), images (N, C, H, W) and volumes (N, C, D, H, W).

Each also takes one sample without the batch dimension N, and then returns one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core import random as rng
from sorix_dist.core.arguments import at_least, one_of, parameter_dtype
from sorix_dist.core.ops.indexing import take
from sorix_dist.core.ops.join import MODES
from sorix_dist.core.ops.windows import Pair, per_axis, single
from sorix_dist.nn.functional import spatial as F
from sorix_dist.nn.module import Module
from sorix_dist.nn.net import FunctionLayer
from sorix_dist.nn.parameter import Parameter

__all__ = [
    "AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveAvgPool3d", "AdaptiveMaxPool1d", "AdaptiveMaxPool2d",
    "AvgPool1d", "AvgPool2d", "AvgPool3d", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "Fold",
    "LPPool1d", "LPPool2d", "LocalResponseNorm", "MaxPool1d", "MaxPool2d", "MaxPool3d", "MaxUnpool1d", "MaxUnpool2d",
    "Unfold",
]  # fmt: skip


class _Convolution(Module):
    """Checks the numbers of a convolution and makes its `weight` and `bias`.

    Both start uniform within 1 / sqrt(fan in), as PyTorch's do (He et al. 2015 with a = sqrt(5)).
    """

    function: ClassVar[Callable[..., Tensor]]
    dims: ClassVar[int] = 2
    transposed: ClassVar[bool] = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair | str = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = "cpu",
        dtype: Any = None,
    ) -> None:
        kind = parameter_dtype(device, dtype)
        name = type(self).__name__
        at_least(1, name, in_channels=in_channels, out_channels=out_channels, groups=groups)
        for argument, value in (("in_channels", in_channels), ("out_channels", out_channels)):
            if value % groups:
                raise ValueError(f"{name}: groups must divide {argument} {value}, got {groups}")
        one_of(f"{name}: padding_mode", padding_mode, "zeros", *MODES)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = self._numbers("kernel_size", kernel_size, 1)
        self.stride = self._numbers("stride", stride, 1)
        self.dilation = self._numbers("dilation", dilation, 1)
        self.padding: Any = padding if isinstance(padding, str) else self._numbers("padding", padding, 0)
        if isinstance(self.padding, str):
            if self.padding not in ("same", "valid"):
                raise ValueError(f"{name}: padding must be integers, 'same' or 'valid', got {padding!r}")
            if self.padding == "same" and max(self.stride) > 1:
                raise ValueError(f"{name}: padding='same' needs stride 1, got stride {stride!r}")
        self.padding_mode = padding_mode
        first, second = (in_channels, out_channels) if self.transposed else (out_channels, in_channels)
        shape = (first, second // groups, *self.kernel_size)
        bound = 1 / np.sqrt(np.prod(shape[1:]))
        generator = rng.generator()
        self.weight = Parameter(generator.uniform(-bound, bound, shape).astype(kind))
        self.bias = Parameter(generator.uniform(-bound, bound, out_channels).astype(kind)) if bias else None

    def _numbers(self, argument: str, value: Any, least: int) -> Any:
        """One integer for each of the dimensions."""
        name = type(self).__name__
        if self.dims == 1:
            return (single(name, argument, value, least),)
        return per_axis(name, argument, value, least, self.dims)

    def forward(self, x: Any) -> Tensor:
        x, padding = self._border(x)
        return self.function(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def _border(self, x: Any) -> tuple[Any, Any]:
        """The input with its border, unless that is of zeros, and the padding that remains to be done."""
        if self.padding_mode == "zeros" or np.ndim(x) not in (self.dims + 1, self.dims + 2):
            return x, self.padding
        if isinstance(self.padding, str):
            total = [d * (k - 1) * (self.padding == "same") for d, k in zip(self.dilation, self.kernel_size)]
            around = [(n // 2, n - n // 2) for n in total]
        else:
            around = [(n, n) for n in self.padding]
        sizes = x.shape[-self.dims :]
        spare = 1 if self.padding_mode == "reflect" else 0  # reflection leaves out the border itself
        for size, sides in zip(sizes, around, strict=True):
            if max(sides) > size - spare and self.padding_mode != "replicate":
                raise ValueError(
                    f"{type(self).__name__}: padding {self.padding!r} with padding_mode='{self.padding_mode}' must be "
                    f"at most {size - spare} for an input of shape {tuple(x.shape)}"
                )
        mode: Any = MODES[self.padding_mode]
        indices = [np.pad(np.arange(n), s, mode=mode) for n, s in zip(sizes, around, strict=True)]
        lead = [slice(None)] * (np.ndim(x) - self.dims)
        return take(x, index=(*lead, *np.ix_(*indices))), 0

    def extra_repr(self) -> str:
        words = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        usual: dict[str, Any] = {
            "padding": (0,) * self.dims, "output_padding": (0,) * self.dims, "dilation": (1,) * self.dims,
            "groups": 1, "padding_mode": "zeros",
        }  # fmt: skip
        words += [f"{n}={vars(self)[n]!r}" for n, v in usual.items() if vars(self).get(n, v) != v]
        return ", ".join(words + ([] if self.bias is not None else ["bias=False"]))


class Conv1d(_Convolution):
    """Cross-correlation of sequences (N, in_channels, L) with `weight` (out_channels, in_channels / groups, k),
    plus `bias` (out_channels,): (N, out_channels, L'). Options as for Conv2d."""

    function, dims = staticmethod(F.conv1d), 1


class Conv2d(_Convolution):
    """Cross-correlation of images (N, in_channels, H, W) with `weight` (out_channels, in_channels / groups, kH,
    kW), plus `bias` (out_channels,): (N, out_channels, H', W').

    padding: pixels on each side, "same" (as many outputs as inputs) or "valid" (none); padding_mode: what they
    contain, "zeros", "reflect", "replicate" or "circular"; groups: the channels are divided into this many groups,
    and each is convolved separately (in_channels of them: depthwise).
    """

    function = staticmethod(F.conv2d)


class Conv3d(_Convolution):
    """Cross-correlation of volumes (N, in_channels, D, H, W) with `weight` (out_channels, in_channels / groups, kD,
    kH, kW), plus `bias` (out_channels,): (N, out_channels, D', H', W'). Options as for Conv2d."""

    function, dims = staticmethod(F.conv3d), 3


class ConvTranspose2d(_Convolution):
    """The transpose of Conv2d, from (N, in_channels, H, W) to larger images (N, out_channels, H', W') with
    H' = (H - 1) stride - 2 padding + dilation (kH - 1) + output_padding + 1.

    `weight` is (in_channels, out_channels / groups, kH, kW), `bias` (out_channels,).
    """

    function, transposed = staticmethod(F.conv_transpose2d), True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        output_padding: int | Pair = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | Pair = 1,
        padding_mode: str = "zeros",
        device: Any = "cpu",
        dtype: Any = None,
    ) -> None:
        name = type(self).__name__
        if not isinstance(padding_mode, str) or padding_mode != "zeros":
            raise ValueError(f"{name}: padding_mode must be 'zeros', got {padding_mode!r}")
        if isinstance(padding, str):
            raise ValueError(f"{name}: padding must be integers, got {padding!r}")
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self.output_padding = self._numbers("output_padding", output_padding, 0)

    def forward(self, x: Any) -> Tensor:
        around, extra = self.padding, self.output_padding
        return self.function(x, self.weight, self.bias, self.stride, around, extra, self.groups, self.dilation)


class ConvTranspose1d(ConvTranspose2d):
    """The transpose of Conv1d, from (N, in_channels, L) to longer sequences (N, out_channels, L'); `weight` is
    (in_channels, out_channels / groups, k). Options as for ConvTranspose2d."""

    function, dims = staticmethod(F.conv_transpose1d), 1


# -- pooling


class MaxPool2d(FunctionLayer, function=F.max_pool2d):
    """The maximum of each window of images (N, C, H, W); stride: kernel_size if None.

    return_indices: also return where each maximum is, for MaxUnpool2d. It is the fifth argument, as in PyTorch.
    """

    _in_repr = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        self.kernel_size, self.padding, self.dilation, self.ceil_mode = kernel_size, padding, dilation, ceil_mode
        self.return_indices = return_indices
        self.stride = kernel_size if stride is None else stride


class MaxPool1d(MaxPool2d, function=F.max_pool1d):
    """The maximum of each window of sequences (N, C, L); arguments as for MaxPool2d, one integer each."""


class MaxPool3d(MaxPool2d, function=F.max_pool3d):
    """The maximum of each window of volumes (N, C, D, H, W); arguments as for MaxPool2d, one integer or three each."""


class MaxUnpool2d(FunctionLayer):
    """Puts the elements of images where MaxPool2d with `return_indices` found them: `layer(x, indices)`."""

    unpool = staticmethod(F.max_unpool2d)
    _options = _in_repr = ("kernel_size", "stride", "padding")

    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0) -> None:
        self.kernel_size, self.padding = kernel_size, padding
        self.stride = kernel_size if stride is None else stride

    def forward(self, x: Any, indices: Any = None, output_size: Any = None) -> Tensor:
        return self.unpool(x, indices, self.kernel_size, self.stride, self.padding, output_size)


class MaxUnpool1d(MaxUnpool2d):
    """MaxUnpool2d for sequences and MaxPool1d."""

    unpool = staticmethod(F.max_unpool1d)


class AvgPool1d(FunctionLayer, function=F.avg_pool1d):
    """The mean of each window of sequences (N, C, L); stride: kernel_size if None.

    count_include_pad: whether the zeros of the padding count.
    """

    _in_repr = ("kernel_size", "stride", "padding")
    stride: Any

    def _complete(self) -> None:
        self.stride = self.kernel_size if self.stride is None else self.stride


class AvgPool2d(AvgPool1d, function=F.avg_pool2d):
    """The mean of each window of images (N, C, H, W); stride: kernel_size if None.

    count_include_pad: whether the zeros of the padding count; divisor_override: what to divide the sums by.
    """


class AvgPool3d(AvgPool1d, function=F.avg_pool3d):
    """The mean of each window of volumes (N, C, D, H, W); options as for AvgPool1d, one integer or three."""


class AdaptiveAvgPool2d(FunctionLayer, function=F.adaptive_avg_pool2d):
    """The means of output_size windows, an integer or a pair (None: as in the input), that cover the image."""


class AdaptiveAvgPool1d(FunctionLayer, function=F.adaptive_avg_pool1d):
    """The means of output_size windows that cover each sequence."""


class AdaptiveAvgPool3d(FunctionLayer, function=F.adaptive_avg_pool3d): ...


class AdaptiveMaxPool1d(FunctionLayer, function=F.adaptive_max_pool1d): ...


class AdaptiveMaxPool2d(FunctionLayer, function=F.adaptive_max_pool2d): ...


class LocalResponseNorm(FunctionLayer, function=F.local_response_norm): ...


class Unfold(FunctionLayer, function=F.unfold): ...


class Fold(FunctionLayer, function=F.fold): ...


class LPPool1d(FunctionLayer, function=F.lp_pool1d): ...


class LPPool2d(FunctionLayer, function=F.lp_pool2d): ...
