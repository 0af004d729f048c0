"""Convolution and pooling of sequences (N, C, L), images (N, C, H, W) and volumes (N, C, D, H, W).

Each function also takes one sample without the batch dimension N, and then returns one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from math import prod
from typing import Any, TypeVar

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.arguments import as_int, at_least, named, unsupported
from sorix_dist.core.arrange import index_add, scatter, unflatten
from sorix_dist.core.capture import of_shapes
from sorix_dist.core.create import as_tensor, zeros, zeros_like
from sorix_dist.core.ops import activation, conv, pool
from sorix_dist.core.ops.indexing import take
from sorix_dist.core.ops.join import pad
from sorix_dist.core.ops.shape import flatten, reshape, squeeze, swapaxes, unsqueeze
from sorix_dist.core.ops.windows import Pair, pair, per_axis, single
from sorix_dist.core.rules import rows_along
from sorix_dist.core.tensor import shape_of

__all__ = [
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "channel_shuffle", "conv1d", "conv2d", "conv3d", "conv_transpose1d",
    "conv_transpose2d", "dropout1d", "dropout3d", "fold", "local_response_norm", "lp_pool1d", "lp_pool2d", "max_pool1d",
    "max_pool2d", "max_pool3d", "max_unpool1d", "max_unpool2d", "pixel_shuffle", "pixel_unshuffle", "unfold",
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
dropout1d = _also_unbatched(3)(activation.dropout2d)
dropout3d = _also_unbatched(5)(activation.dropout2d)


@_also_unbatched(5)
def conv3d(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    """The cross-correlation of volumes with kernels; options as for `conv2d`, each one integer or three.

    input: (N, C, D, H, W); weight: (O, C / groups, kD, kH, kW); bias: (O,). Returns (N, O, D', H', W').
    """
    x, w = rows_along("conv3d", as_tensor(input), (0,)), as_tensor(weight)
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
    slices = of_shapes(np.add.outer(np.arange(count) * step, np.arange(depth) * spacing))
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
    options = {"ceil_mode": ceil_mode, "count_include_pad": count_include_pad}
    return _means_along("avg_pool1d", input, kernel_size, stride, padding, **options)


def _means_along(name: str, input: Any, kernel_size: Any, stride: Any, padding: Any, **options: Any) -> Tensor:
    window = single(name, "kernel_size", kernel_size, 1), 1
    steps = None if stride is None else (single(name, "stride", stride, 1), 1)
    around = single(name, "padding", padding, 0), 0
    return squeeze(pool.avg_pool2d(unsqueeze(input, -1), window, steps, around, **options), -1)


@_also_unbatched(3)
def adaptive_avg_pool1d(input: Any, output_size: Any) -> Tensor:
    """The means of `output_size` windows that cover each sequence of input (N, C, L)."""
    size = single("adaptive_avg_pool1d", "output_size", output_size, 1), 1
    return squeeze(pool.adaptive_avg_pool2d(unsqueeze(input, -1), size), -1)


# -- volumes, plane by plane and then along the depth


def _needs_floats(name: str, input: Any) -> None:
    """TypeError for an input of integers or bools."""
    if not as_tensor(input).is_floating_point():
        raise TypeError(f"{name}: input must hold floats, got {as_tensor(input).dtype}")


def _of_volumes(input: Any, planes: Callable[[Any], Any], lines: Callable[[Any], Any]) -> Tensor:
    x = as_tensor(input)
    if x.ndim != 5:
        raise ValueError(f"a pooling of volumes takes shapes (N, C, D, H, W) or (C, D, H, W), got {tuple(x.shape)}")
    batch, channels, depth, *plane = x.shape
    y = planes(reshape(x, (batch, channels * depth, *plane)))
    height, width = y.shape[2:]
    y = lines(flatten(swapaxes(reshape(y, (batch, channels, depth, height * width)), 2, 3), 1, 2))
    y = swapaxes(reshape(y, (batch, channels, height * width, y.shape[2])), 2, 3)
    return reshape(y, (*y.shape[:3], height, width))


def _by_depth(name: str, **numbers: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The numbers of windows along the depth, and those in the planes."""
    numbers["stride"] = numbers["kernel_size"] if numbers["stride"] is None else numbers["stride"]
    split = {key: per_axis(name, key, n, key != "padding", 3) for key, n in numbers.items()}
    return {key: n[0] for key, n in split.items()}, {key: n[1:] for key, n in split.items()}


@_also_unbatched(5)
def max_pool3d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """The maximum of each window of volumes (N, C, D, H, W); options as for `max_pool2d`, one integer or three."""
    unsupported("max_pool3d", return_indices=return_indices)
    of_depth, of_plane = _by_depth(
        "max_pool3d", kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation
    )
    return _of_volumes(
        input,
        lambda x: pool.max_pool2d(x, **of_plane, ceil_mode=ceil_mode),
        lambda x: pool.max_pool1d(x, **of_depth, ceil_mode=ceil_mode),
    )


@_also_unbatched(5)
def avg_pool3d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window of volumes (N, C, D, H, W); options as for `avg_pool2d`, one integer or three."""
    _needs_floats("avg_pool3d", input)
    of_depth, of_plane = _by_depth("avg_pool3d", kernel_size=kernel_size, stride=stride, padding=padding)
    options: Any = {"ceil_mode": ceil_mode, "count_include_pad": count_include_pad}
    sums = None if divisor_override is None else 1
    return _of_volumes(
        input,
        lambda x: pool.avg_pool2d(x, **of_plane, **options, divisor_override=sums),
        lambda x: _means_along("avg_pool3d", x, **of_depth, **options, divisor_override=divisor_override),
    )


@_also_unbatched(5)
def adaptive_avg_pool3d(input: Any, output_size: Any) -> Tensor:
    """The means of output_size windows, an integer or three (None: as in the input), that cover the volume."""
    depth, *plane = output_size if isinstance(output_size, tuple | list) else (output_size,) * 3
    depth = shape_of(input)[2] if depth is None else depth
    return _of_volumes(
        input, lambda x: pool.adaptive_avg_pool2d(x, tuple(plane)), lambda x: adaptive_avg_pool1d(x, depth)
    )


@_also_unbatched(4)
def adaptive_max_pool2d(input: Any, output_size: Any, return_indices: bool = False) -> Tensor:
    """The maxima of output_size windows, an integer or a pair (None: as in the input), that cover the image."""
    unsupported("adaptive_max_pool2d", return_indices=return_indices)
    x = as_tensor(input)
    wanted = output_size if isinstance(output_size, tuple | list) else (output_size,) * 2
    places = []
    for length, given in zip(x.shape[2:], wanted, strict=True):
        count = length if given is None else as_int("adaptive_max_pool2d: output_size", given, 1)
        starts, ends = np.arange(count) * length // count, -(-np.arange(1, count + 1) * length // count)
        reach = np.arange((ends - starts).max())
        places.append(np.minimum(starts[:, None] + reach, ends[:, None] - 1))
    largest: Tensor = flatten(_windows(x, *places), 4, 5).max(-1).values
    return largest


@_also_unbatched(3)
def adaptive_max_pool1d(input: Any, output_size: Any, return_indices: bool = False) -> Tensor:
    """The maxima of output_size windows that cover each sequence of input (N, C, L)."""
    size = single("adaptive_max_pool1d", "output_size", output_size, 1), 1
    return squeeze(adaptive_max_pool2d(unsqueeze(input, -1), size, return_indices), -1)


# -- channels


def local_response_norm(input: Any, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """x / (k + alpha * mean(x²))^beta, with the mean over `size` neighbouring channels of (N, C, ...), zeros beyond the
    first and the last (Krizhevsky et al. 2012)."""
    x = rows_along("local_response_norm", as_tensor(input), (0,))
    _needs_floats("local_response_norm", x)
    squares = unsqueeze(flatten(x * x, 2), 1) if x.ndim > 2 else unsqueeze(unsqueeze(x * x, 1), -1)
    near = pool.avg_pool2d(pad(squares, (0, 0, size // 2, (size - 1) // 2)), (size, 1), 1)
    return x / (reshape(near, x.shape) * alpha + k) ** beta


def channel_shuffle(input: Any, groups: int) -> Tensor:
    """(N, C, ...) with the channels of `groups` groups in turn (Zhang et al. 2018)."""
    x = as_tensor(input)
    return flatten(swapaxes(unflatten(x, 1, (groups, -1)), 1, 2), 1, 2)


def pixel_unshuffle(input: Any, downscale_factor: int) -> Tensor:
    """(..., C, H r, W r) as (..., C r², H, W), where r is `downscale_factor`: the inverse of `pixel_shuffle`."""
    x, r = as_tensor(input), downscale_factor
    at_least(1, "pixel_unshuffle", downscale_factor=r)
    if x.ndim < 3 or x.shape[-2] % r or x.shape[-1] % r:
        raise ValueError(f"pixel_unshuffle: input must have shape (..., C, H * {r}, W * {r}), got {tuple(x.shape)}")
    *lead, channels, height, width = x.shape
    n = len(lead)
    split = x.reshape(*lead, channels, height // r, r, width // r, r)
    mixed = split.permute(*range(n), n, n + 2, n + 4, n + 1, n + 3)
    return mixed.reshape(*lead, channels * r * r, height // r, width // r)


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


def _window_places(name: str, sizes: Any, kernel: Pair, spacing: Pair, step: Pair) -> list[Any]:
    """The rows (kH, H') and the columns (kW, W') of an image that its windows see; ValueError if there is none."""
    places = []
    for axis in (0, 1):
        reach = spacing[axis] * (kernel[axis] - 1) + 1
        if sizes[axis] < reach:
            raise ValueError(f"{name}: the window must fit the image, got {kernel} for {tuple(sizes)} with its padding")
        starts = np.arange(0, sizes[axis] - reach + 1, step[axis])
        places.append(np.arange(kernel[axis])[:, None] * spacing[axis] + starts)
    return places


def _windows(images: Any, rows: Any, columns: Any) -> Any:
    """The pixels (N, C, a, c, b, d) of windows at rows (a, b) and columns (c, d) of images."""
    rows, columns = of_shapes(rows[:, None, :, None]), of_shapes(columns[:, None])
    return take(images, index=(slice(None), slice(None), rows, columns))


@_also_unbatched(4)
def unfold(input: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Tensor:
    """The windows of images (N, C, H, W) as columns (N, C * kH * kW, windows)."""
    kernel, spacing = pair("unfold", "kernel_size", kernel_size, 1), pair("unfold", "dilation", dilation, 1)
    around, step = pair("unfold", "padding", padding, 0), pair("unfold", "stride", stride, 1)
    padded = pad(input, (around[1], around[1], around[0], around[0]))
    windows = _windows(padded, *_window_places("unfold", shape_of(padded)[2:], kernel, spacing, step))
    return flatten(flatten(windows, 4, 5), 1, 3)


@_also_unbatched(3)
def fold(
    input: Any, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
) -> Tensor:
    """Images (N, C, H, W) of `output_size` that are the sums of the windows in columns (N, C * kH * kW, windows): the
    transpose of `unfold`."""
    kernel, spacing = pair("fold", "kernel_size", kernel_size, 1), pair("fold", "dilation", dilation, 1)
    around, step = pair("fold", "padding", padding, 0), pair("fold", "stride", stride, 1)
    height, width = (n + 2 * p for n, p in zip(pair("fold", "output_size", output_size, 1), around, strict=True))
    rows, columns = _window_places("fold", (height, width), kernel, spacing, step)
    pixels = (rows[:, None, :, None] * width + columns[:, None]).reshape(-1)
    x = rows_along("fold", as_tensor(input), (0,))
    if x.shape[1] % (kernel[0] * kernel[1]) or x.shape[2] != rows.shape[1] * columns.shape[1]:
        raise ValueError(
            f"fold: input must have shape (N, C * {kernel[0] * kernel[1]}, {rows.shape[1] * columns.shape[1]}), got "
            f"shape {tuple(x.shape)}"
        )
    apart = flatten(unflatten(x, 1, (-1, kernel[0] * kernel[1])), 2)
    empty = zeros_like(apart[..., :1]).expand(-1, -1, height * width)
    image = unflatten(index_add(empty, 2, pixels, apart), 2, (height, width))
    return pad(image, (-around[1], -around[1], -around[0], -around[0]))  # type: ignore[no-any-return]


def _lp_pool(name: str, average: Callable[..., Tensor], windows: Callable[..., Any]) -> Callable[..., Tensor]:
    def lp_pool(input: Any, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False) -> Tensor:
        count = prod(windows(name, "kernel_size", kernel_size, 1))
        means = average(as_tensor(input) ** norm_type, kernel_size, stride, 0, ceil_mode)
        return (means.sign() * activation.relu(abs(means)) * count) ** (1 / norm_type)  # type: ignore[no-any-return]

    return named(lp_pool, name, "(sum x^norm_type)^(1 / norm_type) of each window.")


lp_pool1d = _lp_pool("lp_pool1d", avg_pool1d, lambda *given: (single(*given),))
lp_pool2d = _lp_pool("lp_pool2d", avg_pool2d, pair)
