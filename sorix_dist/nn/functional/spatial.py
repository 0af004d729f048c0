"""Convolution, pooling and resizing of sequences (N, C, L), images (N, C, H, W) and volumes (N, C, D, H, W).

Each function also takes one sample without the batch dimension N, and then returns one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce, wraps
from math import floor
from typing import Any, TypeVar

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.arguments import at_least, in_range
from sorix_dist.core.arrange import scatter, unflatten
from sorix_dist.core.create import as_tensor, zeros
from sorix_dist.core.ops import conv, pool
from sorix_dist.core.ops.elementwise import add, half_in_float32
from sorix_dist.core.ops.indexing import index_select, take
from sorix_dist.core.ops.join import pad
from sorix_dist.core.ops.shape import flatten, squeeze, unsqueeze
from sorix_dist.core.ops.windows import pair, per_axis, single
from sorix_dist.core.tensor import shape_of

__all__ = [
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "avg_pool1d", "avg_pool2d", "conv1d", "conv2d", "conv3d",
    "conv_transpose1d", "conv_transpose2d", "interpolate", "max_pool1d", "max_pool2d", "max_unpool1d", "max_unpool2d",
    "pixel_shuffle", "unfold",
]  # fmt: skip

Function = TypeVar("Function", bound=Callable[..., Tensor])


def _also_unbatched(ndim: int) -> Callable[[Function], Function]:
    """Makes a function of inputs with `ndim` dimensions take one sample of them, with one dimension less."""

    def decorate(function: Function) -> Function:
        @wraps(function)
        def batched(input: Any, *arguments: Any, **options: Any) -> Any:
            if len(shape_of(input)) != ndim - 1:
                return function(input, *arguments, **options)
            sample = as_tensor(input)
            answer: Any = function(sample.unsqueeze(0), *arguments, **options)
            return tuple(x.squeeze(0) for x in answer) if isinstance(answer, tuple) else answer.squeeze(0)

        return batched  # type: ignore[return-value]

    return decorate


conv1d = _also_unbatched(3)(conv.conv1d)
conv2d = _also_unbatched(4)(conv.conv2d)
conv_transpose2d = _also_unbatched(4)(conv.conv_transpose2d)
max_pool1d = _also_unbatched(3)(pool.max_pool1d)
max_pool2d = _also_unbatched(4)(pool.max_pool2d)
avg_pool2d = _also_unbatched(4)(pool.avg_pool2d)
adaptive_avg_pool2d = _also_unbatched(4)(pool.adaptive_avg_pool2d)


@_also_unbatched(5)
def conv3d(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    """The cross-correlation of volumes with kernels; options as for `conv2d`, each one integer or three.

    input: (N, C, D, H, W); weight: (O, C / groups, kD, kH, kW); bias: (O,). Returns (N, O, D', H', W').
    """
    x, w = (as_tensor(t) for t in (input, weight))
    if not x.ndim == w.ndim == 5:
        raise ValueError(f"conv3d: input and weight must have 5 dimensions, got {tuple(x.shape)} and {tuple(w.shape)}")
    step, *steps = per_axis("conv3d", "stride", stride, 1, 3)
    spacing, *spacings = per_axis("conv3d", "dilation", dilation, 1, 3)
    depth = w.shape[2]
    sides: Any = padding
    if isinstance(padding, str):
        total = spacing * (depth - 1) if padding == "same" else 0
        before, after = total // 2, total - total // 2
    else:
        before, *sides = per_axis("conv3d", "padding", padding, 0, 3)
        after = before
    x = pad(x, (0, 0, 0, 0, before, after)) if before or after else x
    count = (x.shape[2] - spacing * (depth - 1) - 1) // step + 1
    if count < 1:
        raise ValueError(f"conv3d: weight {tuple(w.shape)} does not fit into the padded input {tuple(x.shape)}")
    # The slices under a kernel's depth become channels of an image.
    slices = np.add.outer(np.arange(count) * step, np.arange(depth) * spacing)
    batch, channels, _, height, width = x.shape
    windows = x.permute(0, 2, 1, 3, 4)[:, slices].permute(0, 1, 3, 2, 4, 5)
    images = windows.reshape(batch * count, channels * depth, height, width)
    kernels = w.reshape(w.shape[0], w.shape[1] * depth, *w.shape[3:])
    y = conv.conv2d(images, kernels, bias, steps, sides, spacings, groups)  # type: ignore[arg-type]
    return y.reshape(batch, count, *y.shape[1:]).permute(0, 2, 1, 3, 4)


def max_unpool2d(
    input: Any, indices: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, output_size: Any = None
) -> Tensor:
    """Images of zeros with the elements of `input` where `max_pool2d` with `return_indices` found them.

    input, indices: (..., C, H, W); returns (..., C, H', W'), H' = (H - 1) stride - 2 padding + kernel_size, or the last
    two numbers of `output_size`: several sizes pool to the same.
    """
    x = as_tensor(input)
    given = kernel_size, kernel_size if stride is None else stride, padding
    numbers = zip(x.shape[-2:], *(per_axis("max_unpool2d", "a size", n, 0, 2) for n in given), strict=True)
    size = tuple(output_size or [(n - 1) * step - 2 * around + k for n, k, step, around in numbers])[-2:]
    if shape_of(indices) != shape_of(x):
        raise ValueError(f"max_unpool2d: indices must have input's shape {shape_of(x)}, got {shape_of(indices)}")
    empty = zeros((*x.shape[:-2], size[0] * size[1]), dtype=x.dtype)
    return unflatten(scatter(empty, -1, flatten(indices, -2), flatten(x, -2)), -1, size)  # type: ignore[no-any-return]


# -- sequences, as images of one column


def max_unpool1d(
    input: Any, indices: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, output_size: Any = None
) -> Tensor:
    """`max_unpool2d` for sequences (..., C, L)."""
    around, length = (single("max_unpool1d", "padding", padding, 0), 0), output_size and (*output_size[-1:], 1)
    kernel, step = ((single("max_unpool1d", "a size", n or kernel_size, 1), 1) for n in (kernel_size, stride))
    return squeeze(max_unpool2d(unsqueeze(input, -1), unsqueeze(indices, -1), kernel, step, around, length), -1)


@_also_unbatched(3)
def conv_transpose1d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """The transpose of `conv1d`; input: (N, C, L); weight: (C, O / groups, k); bias: (O,). Returns (N, O, L')."""
    name = "conv_transpose1d"
    steps, spacing = (single(name, "stride", stride, 1), 1), (single(name, "dilation", dilation, 1), 1)
    around, extra = (single(name, "padding", padding, 0), 0), (single(name, "output_padding", output_padding, 0), 0)
    column, kernels = unsqueeze(input, -1), unsqueeze(weight, -1)
    return squeeze(conv.conv_transpose2d(column, kernels, bias, steps, around, extra, groups, spacing), -1)


@_also_unbatched(3)
def avg_pool1d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window of sequences (N, C, L); options as for `avg_pool2d`."""
    name = "avg_pool1d"
    window = single(name, "kernel_size", kernel_size, 1), 1
    steps = None if stride is None else (single(name, "stride", stride, 1), 1)
    around = single(name, "padding", padding, 0), 0
    return squeeze(pool.avg_pool2d(unsqueeze(input, -1), window, steps, around, ceil_mode, count_include_pad), -1)


@_also_unbatched(3)
def adaptive_avg_pool1d(input: Any, output_size: Any) -> Tensor:
    """The means of `output_size` windows that cover each sequence of input (N, C, L)."""
    size = single("adaptive_avg_pool1d", "output_size", output_size, 1), 1
    return squeeze(pool.adaptive_avg_pool2d(unsqueeze(input, -1), size), -1)


# -- other sizes


@half_in_float32
def interpolate(
    input: Any,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
) -> Tensor:
    """Sequences, images or volumes (N, C, ...) in another size: `size`, or `scale_factor` times theirs, rounded down.

    mode: "nearest" takes the pixel below i * scale, "nearest-exact" that below (i + 0.5) * scale, "area" the mean of
    windows. "linear", "bilinear" or "trilinear" (for one, two or three axes) weights the two next to
    (i + 0.5) * scale - 0.5, or to i * (n - 1) / (n' - 1) with `align_corners`; "bicubic" the four next to it. Positions
    are those of PyTorch's `interpolate`.
    """
    x = as_tensor(input)
    axes = range(2, x.ndim)
    linear = {3: "linear", 4: "bilinear", 5: "trilinear"}.get(x.ndim)
    if mode in (linear, "bicubic") and x.array.dtype.kind != "f":
        raise TypeError(f"interpolate: mode {mode!r} needs floats, got {x.dtype}")
    others = {3: ("area",), 4: ("area", "bicubic")}.get(x.ndim, ())
    if linear is None or mode not in ("nearest", "nearest-exact", linear, *others):
        raise ValueError(
            f"interpolate: mode must be 'nearest', or 'linear', 'bilinear' or 'trilinear' for input with 3, 4 or 5 "
            f"dimensions, 'area' for 3 or 4, or 'bicubic' for 4, got {mode!r} for shape {tuple(x.shape)}"
        )
    if (size is None) == (scale_factor is None):
        raise ValueError("interpolate: give either size or scale_factor")
    given: Any = size if scale_factor is None else scale_factor
    numbers = list(given) if isinstance(given, tuple | list) else [given] * len(axes)
    if len(numbers) != len(axes):
        raise ValueError(f"interpolate: size or scale_factor must be one number or {len(axes)}, got {given!r}")
    if mode == "area":
        counts = [k if scale_factor is None else floor(n * k) for n, k in zip(x.shape[2:], numbers, strict=True)]
        return adaptive_avg_pool1d(x, counts) if x.ndim == 3 else adaptive_avg_pool2d(x, counts)
    for axis, number in zip(axes, numbers, strict=True):
        length = x.shape[axis]
        if scale_factor is not None:
            in_range("interpolate: scale_factor", number, 0, above=True)
        count = number if scale_factor is None else floor(length * number)
        at_least(1, "interpolate", size=count)
        scale = length / count if scale_factor is None or recompute_scale_factor else 1 / number
        if mode.startswith("nearest"):
            shift = 0.5 if mode == "nearest-exact" else 0.0
            x = index_select(x, axis, np.minimum(np.floor((np.arange(count) + shift) * scale).astype(int), length - 1))
            continue
        if align_corners:
            places = np.arange(count) * ((length - 1) / max(1, count - 1))
        else:
            places = (np.arange(count) + 0.5) * scale - 0.5
            places = places if mode == "bicubic" else np.maximum(places, 0)
        low = np.floor(places).astype(int)
        share = (places - low).reshape(-1, *(1 for _ in x.shape[axis + 1 :])).astype(x.array.dtype)
        weights = _cubic(share) if mode == "bicubic" else {0: 1 - share, 1: share}
        near = (index_select(x, axis, np.clip(low + i, 0, length - 1)) * w for i, w in weights.items())
        x = reduce(add, near)
    return x


def _cubic(share: Any) -> dict[int, Any]:
    """The weights of the pixels at -1, 0, 1 and 2 for a place between 0 and 1 (Keys 1981, with a = -0.75)."""

    def within(x: Any) -> Any:
        return (1.25 * x - 2.25) * x * x + 1

    def beyond(x: Any) -> Any:
        return ((-0.75 * x + 3.75) * x - 6) * x + 3

    return {-1: beyond(1 + share), 0: within(share), 1: within(1 - share), 2: beyond(2 - share)}


def pixel_shuffle(input: Any, upscale_factor: int) -> Tensor:
    """(..., C r², H, W) as (..., C, H r, W r), where r is `upscale_factor` (Shi et al. 2016)."""
    x = as_tensor(input)
    at_least(1, "pixel_shuffle", upscale_factor=upscale_factor)
    r = upscale_factor
    if x.ndim < 3 or x.shape[-3] % (r * r):
        raise ValueError(f"pixel_shuffle: input must have shape (..., C * {r * r}, H, W), got shape {tuple(x.shape)}")
    *lead, channels, height, width = x.shape
    n = len(lead)
    split = x.reshape(*lead, channels // (r * r), r, r, height, width)
    mixed = split.permute(*range(n), n, n + 3, n + 1, n + 4, n + 2)
    return mixed.reshape(*lead, channels // (r * r), height * r, width * r)


@_also_unbatched(4)
def unfold(input: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Tensor:
    """The windows of images (N, C, H, W) as columns (N, C * kH * kW, windows)."""
    kernel, spacing = pair("unfold", "kernel_size", kernel_size, 1), pair("unfold", "dilation", dilation, 1)
    around, step = pair("unfold", "padding", padding, 0), pair("unfold", "stride", stride, 1)
    padded = pad(input, (around[1], around[1], around[0], around[0]))
    sizes = shape_of(padded)[2:]
    places = []
    for axis in (0, 1):
        reach = spacing[axis] * (kernel[axis] - 1) + 1
        if sizes[axis] < reach:
            raise ValueError(f"unfold: the window must fit the image, got {kernel} for shape {shape_of(input)}")
        starts = np.arange(0, sizes[axis] - reach + 1, step[axis])
        places.append(np.arange(kernel[axis])[:, None] * spacing[axis] + starts)
    windows = take(padded, index=(slice(None), slice(None), places[0][:, None, :, None], places[1][:, None]))
    return flatten(flatten(windows, 4, 5), 1, 3)
