"""Convolution as im2col and a matrix product, tile by tile, and its gradients, which are computed the same way.

With x an image, w a kernel and y = x * w their convolution, three operations close under differentiation:
`convolution(x, w)`, `transposed_convolution(y, w)`, the gradient to x, and `kernel_correlation(x, y)`, the
gradient to w. The gradients of each are the other two, so derivatives of any order need nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from sorix_dist.core import rules
from sorix_dist.core.graph import Rule
from sorix_dist.core.op import like_input, op
from sorix_dist.core.ops import windows
from sorix_dist.core.ops.blocks import multiply, multiply_transposed
from sorix_dist.core.ops.matrix import row_sums
from sorix_dist.core.ops.shape import squeeze, unsqueeze
from sorix_dist.core.ops.windows import Geometry, Pair, Scratch, Taps, Tile, geometry, pair, single
from sorix_dist.core.tensor import Array, Tensor, shape_of

Result = tuple[Array, tuple[Rule, ...]]


def _groups(image: Array, groups: int) -> Array:
    """An image (C, H, W, N) or a kernel (O, C, kH, kW) with its first dimension in two, (groups, ... / groups)."""
    return image.reshape(groups, len(image) // groups, *image.shape[1:])


def _taps(places: Geometry) -> tuple[Taps, Taps]:
    """The windows of a convolution along both axes."""
    down, right = (
        Taps(-before, step, kernel, spacing)
        for (before, _), step, kernel, spacing in zip(
            places.padding, places.stride, places.kernel, places.dilation, strict=True
        )
    )
    return down, right


def _unfolded(image: Array, down: Taps, right: Taps, size: Pair, outputs: int) -> Iterator[tuple[Tile, Array]]:
    """im2col: tiles of `size` windows of images (groups, C / groups, H, W, N), which become `outputs` channels, and
    the windows as matrices (groups, products, kH * kW * C / groups, pixels)."""
    groups, channels, *_, count = image.shape
    scratch = Scratch(image.dtype)
    height, depth = outputs // groups, down.count * right.count * channels
    pixel = groups * channels * right.count * count * image.itemsize
    single = all(
        taps.count == 1 and taps.first >= 0 and taps.first + (count_of - 1) * taps.step < extent
        for taps, count_of, extent in zip((down, right), size, image.shape[2:4], strict=True)
    )
    for tile in windows.tiles(size, down, pixel, count, height, height * depth):
        if single:  # the windows are pixels of the image
            yield tile, tile.matrices(image[:, :, down.first :: down.step, right.first :: right.step])
        else:
            yield tile, windows.columns(image, down, right, tile, scratch)


def _convolve(x: Array, kernels: Array, y: Array, down: Taps, right: Taps, other: Array | None = None) -> Any:
    """Writes the products of kernels (groups, O / groups, kH, kW, C / groups) and the windows of images x (groups,
    C / groups, H, W, N) into y (groups, O / groups, H', W', N). Returns those of the windows and of `other`, images of
    the shape of y, as (groups, kH * kW * C / groups, O / groups)."""
    groups, outputs, high, wide, count = y.shape
    taps = down.count * right.count
    total: Any = 0
    if other is None and down.step == right.step == 1 < taps and taps * outputs < x.shape[1]:
        _convolve_by_taps(x, kernels, y, down, right)
        return total
    matrix = kernels.reshape(groups, 1, outputs, -1)
    dense = y.strides[3] == count * y.itemsize
    for tile, matrices in _unfolded(x, down, right, (high, wide), groups * outputs):
        if tile.by_rows and dense:
            multiply(matrix, matrices, tile.matrices(y))
        else:
            product = np.empty((groups, matrices.shape[1], outputs, matrices.shape[3]), y.dtype)
            multiply(matrix, matrices, product)
            tile.of(y)[...] = tile.pixels(product)
        if other is not None:
            total += multiply_transposed(matrices, tile.matrices(other))
    return total


def _convolve_by_taps(x: Array, kernels: Array, y: Array, down: Taps, right: Taps) -> None:
    """The same for few outputs and steps of 1: one product for all elements of the kernels, and then sums of shifted
    results, which are smaller than the windows would be."""
    (groups, outputs, *size, _), (_, channels, *pixels) = y.shape, x.shape
    each = np.matmul(kernels.transpose(0, 2, 3, 1, 4).reshape(groups, -1, channels), x.reshape(groups, channels, -1))
    shifted = each.reshape(groups, down.count, right.count, outputs, *pixels)
    y[...] = 0
    for i, j in np.ndindex(down.count, right.count):
        (to_row, row), (to_column, column) = (
            windows.inside(taps.first + k * taps.spacing, 1, count, extent)
            for taps, k, count, extent in zip((down, right), (i, j), size, pixels, strict=False)
        )
        y[:, :, to_row, to_column] += shifted[:, i, j, :, row, column]


def _to_kernel(x: Any, g: Any, out: Array | None, places: Geometry, groups: int) -> Any:
    """`kernel_correlation`, into `out` if there is one."""
    if isinstance(x, Tensor) or isinstance(g, Tensor):
        return kernel_correlation(x, g, places=places, groups=groups)
    dtype = np.result_type(x, g)
    outputs, each = g.shape[1], x.shape[1] // groups
    w = np.empty((outputs, each, *places.kernel), dtype) if out is None else out
    image = _groups(windows.batch_innermost(g), groups)
    total = np.zeros((groups, each * prod(places.kernel), outputs // groups), dtype)
    taps, pixels = _taps(places), _groups(windows.batch_innermost(x.astype(dtype, copy=False)), groups)
    for tile, matrices in _unfolded(pixels, *taps, places.output, outputs):
        total += multiply_transposed(matrices, tile.matrices(image))
    _groups(w, groups)[...] = total.reshape(groups, *places.kernel, each, -1).transpose(0, 4, 3, 1, 2)
    return w


def _to_bias(g: Any, out: Array | None) -> Any:
    """The sum of g (N, O, H, W) over all but its channels, into `out` if there is one."""
    if isinstance(g, Tensor) or not g.transpose(1, 2, 3, 0).flags.c_contiguous:
        return np.sum(g, axis=(0, 2, 3), out=out)
    count, outputs, high, wide = g.shape
    rows = g.transpose(1, 2, 3, 0).reshape(outputs * high, wide * count)
    return np.sum(row_sums(rows).reshape(outputs, high), axis=1, out=out)


def _both_gradients(x: Array, w: Array, g: Array, out: Array | None, places: Geometry, groups: int) -> tuple[Any, Any]:
    """The gradients of `convolution` with steps of 1 to x and w (into `out` if there is one) by one unfolding of g."""
    to_x, to_w = np.empty(x.transpose(1, 2, 3, 0).shape, x.dtype), np.empty_like(w) if out is None else out
    (_, down, _), (_, right, _) = (*_phases(places, 0), *_phases(places, 1))
    turned = _groups(w, groups).transpose(0, 2, 3, 4, 1)[:, :, ::-1, ::-1]
    image, pixels = (_groups(windows.batch_innermost(each), groups) for each in (g, x))
    total = np.asarray(_convolve(image, turned, _groups(to_x, groups), down, right, pixels))
    by_tap = total.reshape(groups, *places.kernel, len(w) // groups, -1)[:, ::-1, ::-1]
    _groups(to_w, groups)[...] = by_tap.transpose(0, 3, 4, 1, 2)
    return to_x.transpose(3, 0, 1, 2), to_w


@op(rule=rules.rows_at(0), called="a convolution")
def convolution(x: Array, w: Array, b: Array | None, *, places: Geometry, groups: int, both: bool = False) -> Result:
    """The convolution (a cross-correlation, as usual) of images x (N, C, H, W) with w (O, C / groups, kH,
    kW), plus b of shape (O,) or None: (N, O, *places.output). both: whether x and w need gradients."""
    dtype = np.result_type(x, w)
    y = np.empty((len(w), *places.output, len(x)), dtype)
    image = _groups(windows.batch_innermost(x.astype(dtype, copy=False)), groups)
    down, right = _taps(places)
    _convolve(image, _groups(w, groups).transpose(0, 1, 3, 4, 2), _groups(y, groups), down, right)
    if b is not None:
        y += b.reshape(-1, 1, 1, 1)
    taps, each = prod(places.kernel), w.shape[1]
    # Worth it unless it makes more windows than x has: of few channels, or of far fewer than the outputs.
    once = both and places.stride == (1, 1) and taps > 1 and each >= 4 and len(w) <= taps * each * groups and x.size
    once = once and x.dtype == w.dtype
    ahead: list[Any] = []  # a gradient and what is x's for it, from the rule of w until that of x, which is called next

    def to_x(g: Any, out: Array | None) -> Any:
        if ahead and ahead[0] is g:
            made = ahead[1]
            ahead.clear()
            return made
        return like_input(transposed_convolution, g, w, None, places=places, groups=groups)

    def to_w(g: Any, out: Array | None) -> Any:
        if not once or isinstance(g, Tensor):
            return _to_kernel(x, g, out, places, groups)
        made, result = _both_gradients(x, w, g, out, places, groups)
        ahead[:] = g, made
        return result

    return y.transpose(3, 0, 1, 2), (to_x, to_w, lambda g, out: _to_bias(g, out))


@op(rule=rules.rows_at(0), called="a transposed convolution")
def transposed_convolution(y: Array, w: Array, b: Array | None, *, places: Geometry, groups: int) -> Result:
    """The transpose of `convolution` with w (O, C / groups, kH, kW): y (N, O, *places.output) becomes
    (N, C, *places.size), plus b of shape (C,) or None."""
    dtype = np.result_type(y, w)
    x = np.zeros((w.shape[1] * groups, *places.size, len(y)), dtype)
    image = _groups(windows.batch_innermost(y.astype(dtype, copy=False)), groups)
    turned = _groups(w, groups).transpose(0, 2, 3, 4, 1)
    for rows, down, vertical in _phases(places, 0):
        for columns, right, horizontal in _phases(places, 1):
            kernels = turned[:, :, rows][:, :, :, columns]
            _convolve(image, kernels, _groups(x, groups)[:, :, vertical, horizontal], down, right)
    if b is not None:
        x += b.reshape(-1, 1, 1, 1)
    return x.transpose(3, 0, 1, 2), (
        lambda g, out: like_input(convolution, g, w, None, places=places, groups=groups),
        lambda g, out: _to_kernel(g, y, out, places, groups),
        lambda g, out: _to_bias(g, out),
    )


def _phases(places: Geometry, axis: int) -> Iterator[tuple[list[int], Taps, slice]]:
    """A transposed convolution along one axis as convolutions, one for each phase of the stride: to every stride-th
    pixel of its result (a slice of them) contribute the same elements of the kernel, in reversed order."""
    stride, spacing, (before, _) = places.stride[axis], places.dilation[axis], places.padding[axis]
    for phase in range(stride):
        chosen = [i for i in reversed(range(places.kernel[axis])) if i * spacing % stride == phase]
        # Pixel k of those lies under pixel k - (i * spacing - phase) / stride for the kernel's element i.
        under, pixels = windows.inside(phase - before, stride, places.padded[axis], places.size[axis])
        if chosen and under.start < under.stop:
            behind = [(i * spacing - phase) // stride for i in chosen]
            apart = behind[0] - behind[1] if len(chosen) > 1 else 1
            yield chosen, Taps(under.start - behind[0], 1, len(chosen), apart), pixels


@op(rule=rules.gathers)
def kernel_correlation(x: Array, y: Array, *, places: Geometry, groups: int) -> Result:
    """The gradient of `convolution` to its kernel: x (N, C, H, W) and y (N, O, *places.output) become
    (O, C / groups, kH, kW)."""
    return _to_kernel(x, y, None, places, groups), (
        lambda g, out: like_input(transposed_convolution, y, g, None, places=places, groups=groups),
        lambda g, out: like_input(convolution, x, g, None, places=places, groups=groups),
    )


def _checked(name: str, input: Any, weight: Any, bias: Any, groups: int, dims: str, transposed: bool = False) -> Any:
    """The input, with all rows of a batch that lie along other axes than the first; ValueError naming the argument of
    convolution `name` that does not fit the others."""
    input = rules.rows_along(name, input, (0,))
    count = len(dims.split(", "))
    if len(shape_of(input)) != count:
        raise ValueError(f"{name}: input must have shape ({dims}), got shape {tuple(shape_of(input))}")
    if len(shape_of(weight)) != count:
        raise ValueError(f"{name}: weight must have {count} dimensions, got shape {tuple(shape_of(weight))}")
    first, second = weight.shape[:2]
    if not isinstance(groups, int | np.integer) or groups < 1 or first % groups:
        raise ValueError(f"{name}: groups must be >= 1 and divide weight's {first} channels, got {groups!r}")
    expected, outputs = (first, second * groups) if transposed else (second * groups, first)
    if input.shape[1] != expected:
        raise ValueError(
            f"{name}: input must have {expected} channels for weight of shape {tuple(weight.shape)} and "
            f"groups={groups}, got {input.shape[1]} in shape {tuple(input.shape)}"
        )
    if bias is not None and tuple(shape_of(bias)) != (outputs,):
        raise ValueError(f"{name}: bias must have shape ({outputs},), got shape {tuple(shape_of(bias))}")
    return input


def _padding(name: str, padding: Any, kernel: Pair, stride: Pair, dilation: Pair) -> tuple[Pair, Pair]:
    """(before, after) of both directions for a number, a pair, "valid" or "same"."""
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise ValueError(f"{name}: padding must be integers, 'same' or 'valid', got {padding!r}")
        if padding == "same" and max(stride) > 1:
            raise ValueError(f"{name}: padding='same' needs stride 1, got stride {stride}")
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        vertical, horizontal = ((n // 2, n - n // 2) for n in total)
        return vertical, horizontal
    down, right = pair(name, "padding", padding, 0)
    return (down, down), (right, right)


def conv2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: int | Pair = 1,
    padding: int | Pair | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> Tensor:
    """The cross-correlation of images with kernels.

    input: (N, C, H, W); weight: (O, C / groups, kH, kW); bias: (O,). Returns (N, O, H', W') with
    H' = (H + 2 padding - dilation (kH - 1) - 1) // stride + 1. padding: zeros around the image, or
    "same" (as many windows as pixels, for stride 1), or "valid" (none). ValueError names what does not fit.
    """
    input = _checked("conv2d", input, weight, bias, groups, "N, C, H, W")
    steps, spacing = pair("conv2d", "stride", stride, 1), pair("conv2d", "dilation", dilation, 1)
    return _conv("conv2d", input, weight, bias, steps, padding, spacing, groups)


def conv1d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: int = 1,
    padding: int | str = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Tensor:
    """The cross-correlation of sequences with kernels; options as for `conv2d`.

    input: (N, C, L); weight: (O, C / groups, k); bias: (O,). Returns (N, O, L').
    """
    input = _checked("conv1d", input, weight, bias, groups, "N, C, L")
    # A sequence is an image of one row, because matrices of windows take one copy along rows and two along columns.
    steps, spacing = ((1, single("conv1d", n, v, 1)) for n, v in (("stride", stride), ("dilation", dilation)))
    pixels = padding if isinstance(padding, str) else (0, single("conv1d", "padding", padding, 0))
    y = _conv("conv1d", unsqueeze(input, 2), unsqueeze(weight, 2), bias, steps, pixels, spacing, groups)
    return squeeze(y, 2)  # type: ignore[no-any-return]


def _conv(
    name: str, input: Any, weight: Any, bias: Any, stride: Pair, padding: Any, dilation: Pair, groups: int
) -> Tensor:
    size, kernel = tuple(input.shape[2:]), tuple(weight.shape[2:])
    around = _padding(name, padding, kernel, stride, dilation)
    places = geometry(name, size, kernel, stride, around, dilation)
    both = all(getattr(each, "requires_grad", False) for each in (input, weight))
    return convolution(input, weight, bias, places=places, groups=groups, both=both)


def conv_transpose2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    output_padding: int | Pair = 0,
    groups: int = 1,
    dilation: int | Pair = 1,
) -> Tensor:
    """The transpose of `conv2d`, which takes its output's shape back to its input's.

    input: (N, C, H, W); weight: (C, O / groups, kH, kW); bias: (O,). Returns (N, O, H', W') with
    H' = (H - 1) stride - 2 padding + dilation (kH - 1) + output_padding + 1. output_padding chooses between
    the sizes that `conv2d` takes to H: it must be less than stride or dilation.
    """
    name = "conv_transpose2d"
    input = _checked(name, input, weight, bias, groups, "N, C, H, W", transposed=True)
    kernel, count = tuple(weight.shape[2:]), tuple(input.shape[2:])
    steps, spacing = pair(name, "stride", stride, 1), pair(name, "dilation", dilation, 1)
    around, extra = pair(name, "padding", padding, 0), pair(name, "output_padding", output_padding, 0)
    if any(e >= max(s, d) for e, s, d in zip(extra, steps, spacing, strict=True)):
        raise ValueError(
            f"{name}: output_padding must be less than stride {steps} or dilation {spacing}, got {output_padding!r}"
        )
    size = tuple(
        (n - 1) * s - 2 * p + d * (k - 1) + e + 1
        for n, s, p, d, k, e in zip(count, steps, around, spacing, kernel, extra, strict=True)
    )
    if min(size) < 1:
        raise ValueError(f"{name}: padding {around} leaves nothing of the output: its size would be {size}")
    places = Geometry(size, count, kernel, steps, ((around[0],) * 2, (around[1],) * 2), spacing)
    return transposed_convolution(input, weight, bias, places=places, groups=groups)
