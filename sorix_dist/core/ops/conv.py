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
from sorix_dist.core.ops.matrix import row_sums
from sorix_dist.core.ops.shape import squeeze, unsqueeze
from sorix_dist.core.ops.windows import WIDE, Geometry, Pair, Scratch, Taps, Tile, geometry, pair, single
from sorix_dist.core.tensor import Array, Tensor

Result = tuple[Array, tuple[Rule, ...]]


def _groups(image: Array, groups: int) -> Array:
    """An image (C, H, W, N) or a kernel (O, C, kH, kW) with its first dimension in two, (groups, ... / groups)."""
    return image.reshape(groups, len(image) // groups, *image.shape[1:])


def _unfolded(x: Array, places: Geometry, groups: int, outputs: int) -> Iterator[tuple[Tile, Array]]:
    """im2col: tiles of the output of a convolution of images x (N, C, H, W) to `outputs` channels, and their
    windows as matrices (groups, products, kH * kW * C / groups, pixels)."""
    image = _groups(windows.batch_innermost(x), groups)
    down, right = (
        Taps(-before, step, kernel, spacing)
        for (before, _), step, kernel, spacing in zip(
            places.padding, places.stride, places.kernel, places.dilation, strict=True
        )
    )
    scratch = Scratch(x.dtype)
    pixel = (x.shape[1] * right.count * min(down.step, down.count) + outputs) * len(x) * x.itemsize
    for tile in windows.tiles(places.output, down.shared, pixel, len(x), outputs // groups):
        if places.kernel == (1, 1) and places.padded == places.size:  # the windows are the image
            yield tile, tile.matrices(image[:, :, :: down.step, :: right.step])
        else:
            yield tile, windows.columns(image, down, right, tile, scratch)


def _to_kernel(x: Any, g: Any, out: Array | None, places: Geometry, groups: int) -> Any:
    """`kernel_correlation`, into `out` if there is one."""
    if isinstance(x, Tensor) or isinstance(g, Tensor):
        return kernel_correlation(x, g, places=places, groups=groups)
    dtype = np.result_type(x, g)
    outputs, each = g.shape[1], x.shape[1] // groups
    w = np.empty((outputs, each, *places.kernel), dtype) if out is None else out
    image = _groups(windows.batch_innermost(g), groups)
    total = np.zeros((groups, each * prod(places.kernel), outputs // groups), dtype)
    for tile, matrices in _unfolded(x.astype(dtype, copy=False), places, groups, outputs):
        # In this order, not transposed: a product is faster if its columns are few.
        count = windows.pieces(matrices, outputs // groups, 2 * WIDE)
        total += np.matmul(windows.cut(matrices, count), windows.cut(tile.matrices(image), count).swapaxes(3, 4)).sum(
            axis=(1, 2)
        )
    _groups(w, groups)[...] = total.reshape(groups, *places.kernel, each, -1).transpose(0, 4, 3, 1, 2)
    return w


def _to_bias(g: Any, out: Array | None) -> Any:
    """The sum of g (N, O, H, W) over all but its channels, into `out` if there is one."""
    if isinstance(g, Tensor) or not g.transpose(1, 2, 3, 0).flags.c_contiguous:
        return np.sum(g, axis=(0, 2, 3), out=out)
    count, outputs, high, wide = g.shape
    rows = g.transpose(1, 2, 3, 0).reshape(outputs * high, wide * count)
    return np.sum(row_sums(rows).reshape(outputs, high), axis=1, out=out)


@op(rule=rules.rows_at(0), called="a convolution")
def convolution(x: Array, w: Array, b: Array | None, *, places: Geometry, groups: int) -> Result:
    """The convolution (a cross-correlation, as usual) of images x (N, C, H, W) with w (O, C / groups, kH,
    kW), plus b of shape (O,) or None: (N, O, *places.output)."""
    dtype = np.result_type(x, w)
    y = np.empty((len(w), *places.output, len(x)), dtype)
    image = _groups(y, groups)
    kernels = _groups(w, groups).transpose(0, 1, 3, 4, 2).reshape(groups, 1, len(w) // groups, -1)
    bias = None if b is None else b.reshape(groups, -1, 1, 1, 1)
    for tile, matrices in _unfolded(x.astype(dtype, copy=False), places, groups, len(w)):
        part = tile.of(image)
        if tile.by_rows:
            count = windows.pieces(matrices, kernels.shape[2], WIDE)
            np.matmul(kernels[:, :, None], windows.cut(matrices, count), out=windows.cut(tile.matrices(image), count))
        else:
            part[...] = tile.pixels(np.matmul(kernels, matrices))
        if bias is not None:
            part += bias
    return y.transpose(3, 0, 1, 2), (
        lambda g, out: like_input(transposed_convolution, g, w, None, places=places, groups=groups),
        lambda g, out: _to_kernel(x, g, out, places, groups),
        lambda g, out: _to_bias(g, out),
    )


@op(rule=rules.rows_at(0), called="a transposed convolution")
def transposed_convolution(y: Array, w: Array, b: Array | None, *, places: Geometry, groups: int) -> Result:
    """The transpose of `convolution` with w (O, C / groups, kH, kW): y (N, O, *places.output) becomes
    (N, C, *places.size), plus b of shape (C,) or None."""
    dtype = np.result_type(y, w)
    x = np.zeros((w.shape[1] * groups, *places.size, len(y)), dtype)
    image, kernels = _groups(windows.batch_innermost(y), groups), _groups(w, groups)
    for phase in range(places.stride[0]):
        _fold(_groups(x, groups), image, kernels, places, phase)
    if b is not None:
        x += b.reshape(-1, 1, 1, 1)
    return x.transpose(3, 0, 1, 2), (
        lambda g, out: like_input(convolution, g, w, None, places=places, groups=groups),
        lambda g, out: _to_kernel(g, y, out, places, groups),
        lambda g, out: _to_bias(g, out),
    )


def _fold(x: Array, y: Array, w: Array, places: Geometry, phase: int) -> None:
    """Adds to each stride[0]th row of images x, from `phase` on in the padded image, what a transposed convolution
    of y puts there. All three have their groups as first dimension.

    Down the image this is a convolution with the rows of the kernel that lie over those rows, in reversed order;
    only what lies right of it is spread.
    """
    (stride, step), (spacing, right) = places.stride, places.dilation
    (top, _), (left, _) = places.padding
    groups, each, height, width, count = x.shape
    outputs = w.shape[1]
    rows = [i for i in reversed(range(places.kernel[0])) if i * spacing % stride == phase]
    # Row k of those of x lies under row k - (i * spacing - phase) / stride of y for the kernel's row i.
    under, there = windows.inside(phase - top, stride, places.padded[0], height)
    if not rows or under.start == under.stop:
        return
    behind = [(i * spacing - phase) // stride for i in rows]
    down = Taps(under.start - behind[0], 1, len(rows), behind[0] - behind[1] if len(rows) > 1 else 1)
    kernels = w[:, :, :, rows].transpose(0, 4, 2, 3, 1).reshape(groups, 1, -1, len(rows) * outputs)
    target = x[:, :, there]
    scratch, product = Scratch(x.dtype), Scratch(x.dtype)
    pixel = (outputs + each * places.kernel[1]) * groups * count * x.itemsize
    for tile in windows.tiles((under.stop - under.start, y.shape[3]), down.shared, pixel, count, kernels.shape[2]):
        matrices = windows.columns(y, down, Taps(0, 1, 1, 1), tile, scratch)
        shape = (*matrices.shape[:2], kernels.shape[2], matrices.shape[3])
        spread = np.matmul(kernels, matrices, out=product(*shape))
        for j in range(places.kernel[1]):
            among, at = windows.inside(
                tile.columns[0] * step + j * right - left, step, tile.columns[1] - tile.columns[0], width
            )
            part = target[:, :, slice(*tile.rows), at]
            part += tile.pixels(spread[:, :, j * each : (j + 1) * each])[..., among, :]


@op(rule=rules.gathers)
def kernel_correlation(x: Array, y: Array, *, places: Geometry, groups: int) -> Result:
    """The gradient of `convolution` to its kernel: x (N, C, H, W) and y (N, O, *places.output) become
    (O, C / groups, kH, kW)."""
    return _to_kernel(x, y, None, places, groups), (
        lambda g, out: like_input(transposed_convolution, y, g, None, places=places, groups=groups),
        lambda g, out: like_input(convolution, x, g, None, places=places, groups=groups),
    )


def _check(name: str, input: Any, weight: Any, bias: Any, groups: int, dims: str, transposed: bool = False) -> None:
    """Raises ValueError naming the argument of convolution `name` that does not fit the others."""
    count = len(dims.split(", "))
    if np.ndim(input) != count:
        raise ValueError(f"{name}: input must have shape ({dims}), got shape {tuple(np.shape(input))}")
    if np.ndim(weight) != count:
        raise ValueError(f"{name}: weight must have {count} dimensions, got shape {tuple(np.shape(weight))}")
    first, second = weight.shape[:2]
    if not isinstance(groups, int | np.integer) or groups < 1 or first % groups:
        raise ValueError(f"{name}: groups must be >= 1 and divide weight's {first} channels, got {groups!r}")
    expected, outputs = (first, second * groups) if transposed else (second * groups, first)
    if input.shape[1] != expected:
        raise ValueError(
            f"{name}: input must have {expected} channels for weight of shape {tuple(weight.shape)} and "
            f"groups={groups}, got {input.shape[1]} in shape {tuple(input.shape)}"
        )
    if bias is not None and tuple(bias.shape) != (outputs,):
        raise ValueError(f"{name}: bias must have shape ({outputs},), got shape {tuple(bias.shape)}")


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
    _check("conv2d", input, weight, bias, groups, "N, C, H, W")
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
    _check("conv1d", input, weight, bias, groups, "N, C, L")
    # A sequence is an image of one column, so that a tile is a range of rows.
    steps, spacing = ((single("conv1d", n, v, 1), 1) for n, v in (("stride", stride), ("dilation", dilation)))
    pixels = padding if isinstance(padding, str) else (single("conv1d", "padding", padding, 0), 0)
    y = _conv("conv1d", unsqueeze(input, 3), unsqueeze(weight, 3), bias, steps, pixels, spacing, groups)
    return squeeze(y, 3)  # type: ignore[no-any-return]


def _conv(
    name: str, input: Any, weight: Any, bias: Any, stride: Pair, padding: Any, dilation: Pair, groups: int
) -> Tensor:
    size, kernel = tuple(input.shape[2:]), tuple(weight.shape[2:])
    around = _padding(name, padding, kernel, stride, dilation)
    places = geometry(name, size, kernel, stride, around, dilation)
    return convolution(input, weight, bias, places=places, groups=groups)


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
    _check(name, input, weight, bias, groups, "N, C, H, W", transposed=True)
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
