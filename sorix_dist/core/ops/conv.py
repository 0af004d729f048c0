"""Convolution as im2col and a matrix product, tile by tile, and its gradients, which are written alike.

With x an image, w a kernel and y = x * w their convolution, three operations close under differentiation:
`convolution(x, w)`, `transposed_convolution(y, w)`, the gradient to x, and `kernel_correlation(x, y)`, the
gradient to w. The gradients of each are the other two, so derivatives of any order need nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from sorix_dist.core.graph import Rule
from sorix_dist.core.op import in_kind, op
from sorix_dist.core.ops.shape import reshape
from sorix_dist.core.ops.windows import Geometry, Pair, batch_innermost, geometry, pad, pair, single, windows
from sorix_dist.core.tensor import Array, Tensor

TILE = 1 << 20  # bytes of windows that are multiplied at a time, so that they stay in the cache

Result = tuple[Array, tuple[Rule, ...]]


def _tiles(places: Geometry, pixel_bytes: int) -> Iterator[tuple[Pair, Pair]]:
    """The output in ranges of rows and columns whose windows, of `pixel_bytes` each, take about a TILE."""
    rows, columns = places.output
    fits = max(1, TILE // max(1, pixel_bytes))
    high, wide = (min(rows, fits // columns), columns) if fits >= columns else (1, fits)
    # Parts of even size: a thin last one would cost as much as a whole one.
    high, wide = (-(-whole // -(-whole // part)) for whole, part in ((rows, high), (columns, wide)))
    for top in range(0, rows, high):
        for left in range(0, columns, wide):
            yield (top, min(top + high, rows)), (left, min(left + wide, columns))


def _columns(x: Array, places: Geometry, groups: int) -> Iterator[tuple[Pair, Pair, Array]]:
    """im2col: tiles of the output, with their windows as matrices (groups, C / groups * kH * kW, pixels)."""
    everywhere = windows(batch_innermost(pad(x, places)), places)
    depth = int(np.prod(everywhere.shape[:3]))
    scratch = np.empty(0, x.dtype)
    for rows, columns in _tiles(places, depth * len(x) * x.itemsize):
        tile = everywhere[:, :, :, slice(*rows), slice(*columns)]
        if places.kernel != (1, 1):  # else the windows are the image, and no copy is needed
            if scratch.size < tile.size:
                scratch = np.empty(tile.size, x.dtype)
            copied = scratch[: tile.size].reshape(tile.shape)
            np.copyto(copied, tile)
            tile = copied
        pixels = (rows[1] - rows[0]) * (columns[1] - columns[0]) * len(x)
        yield rows, columns, tile.reshape(groups, depth // groups, pixels)


def _part(y: Array, rows: Pair, columns: Pair, groups: int) -> Array:
    """A tile of y (O, H, W, N) as matrices (groups, O / groups, pixels): a view if y is contiguous."""
    tile = y[:, slice(*rows), slice(*columns)]
    return tile.reshape(groups, len(y) // groups, int(np.prod(tile.shape[1:])))


def _matrices(w: Array, groups: int) -> Array:
    """A kernel (O, C / groups, kH, kW) as matrices (groups, O / groups, C / groups * kH * kW)."""
    return w.reshape(groups, len(w) // groups, int(np.prod(w.shape[1:])))


def _to_kernel(x: Any, g: Any, out: Array | None, places: Geometry, groups: int) -> Any:
    """`kernel_correlation`, into `out` if there is one."""
    if isinstance(x, Tensor) or isinstance(g, Tensor):
        return kernel_correlation(x, g, places=places, groups=groups)
    dtype = np.result_type(x, g)
    w = np.empty((g.shape[1], x.shape[1] // groups, *places.kernel), dtype) if out is None else out
    total, part = _matrices(w, groups), None
    inner = batch_innermost(g)
    for rows, columns, matrices in _columns(x.astype(dtype, copy=False), places, groups):
        pixels = _part(inner, rows, columns, groups)
        if part is None:
            np.matmul(pixels, matrices.swapaxes(1, 2), out=total)
            part = np.empty_like(total)
        else:
            total += np.matmul(pixels, matrices.swapaxes(1, 2), out=part)
    return w


def _to_bias(g: Any, out: Array | None) -> Any:
    return np.sum(g, axis=(0, 2, 3), out=out)


@op()
def convolution(x: Array, w: Array, b: Array | None, *, places: Geometry, groups: int) -> Result:
    """The convolution (a cross-correlation, as usual) of images x (N, C, H, W) with w (O, C / groups, kH,
    kW), plus b of shape (O,) or None: (N, O, *places.output)."""
    dtype = np.result_type(x, w)
    y = np.empty((len(w), *places.output, len(x)), dtype)
    kernels = _matrices(w, groups)
    for rows, columns, matrices in _columns(x.astype(dtype, copy=False), places, groups):
        pixels = _part(y, rows, columns, groups)
        np.matmul(kernels, matrices, out=pixels)
        if b is not None:
            pixels += b.reshape(groups, -1, 1)
    return y.transpose(3, 0, 1, 2), (
        lambda g, out: in_kind(transposed_convolution, g, w, None, places=places, groups=groups),
        lambda g, out: _to_kernel(x, g, out, places, groups),
        lambda g, out: _to_bias(g, out),
    )


@op()
def transposed_convolution(y: Array, w: Array, b: Array | None, *, places: Geometry, groups: int) -> Result:
    """The transpose of `convolution` with w (O, C / groups, kH, kW): y (N, O, *places.output) becomes
    (N, C, *places.size), plus b of shape (C,) or None."""
    dtype = np.result_type(y, w)
    kernels = _matrices(w, groups).swapaxes(1, 2)
    inner = batch_innermost(y)
    count, channels = len(y), w.shape[1] * groups
    depth = channels * int(np.prod(places.kernel))
    x = np.zeros((channels, *places.padded, count), dtype)
    scratch = np.empty(0, dtype)
    for rows, columns in _tiles(places, depth * count * dtype.itemsize):
        pixels = _part(inner, rows, columns, groups)
        shape = (channels, *places.kernel, rows[1] - rows[0], columns[1] - columns[0], count)
        if scratch.size < np.prod(shape):
            scratch = np.empty(int(np.prod(shape)), dtype)
        spread = scratch[: int(np.prod(shape))]
        np.matmul(kernels, pixels, out=spread.reshape(groups, depth // groups, pixels.shape[2]))
        spread = spread.reshape(shape)
        for i, j, vertical, horizontal in places.offsets(rows, columns):
            under = x[:, vertical, horizontal]
            np.add(under, spread[:, i, j], out=under)
    value = x[:, *places.inner].transpose(3, 0, 1, 2)
    if b is not None:
        value += b.reshape(-1, 1, 1)
    return value, (
        lambda g, out: in_kind(convolution, g, w, None, places=places, groups=groups),
        lambda g, out: _to_kernel(g, y, out, places, groups),
        lambda g, out: _to_bias(g, out),
    )


@op()
def kernel_correlation(x: Array, y: Array, *, places: Geometry, groups: int) -> Result:
    """The gradient of `convolution` to its kernel: x (N, C, H, W) and y (N, O, *places.output) become
    (O, C / groups, kH, kW)."""
    return _to_kernel(x, y, None, places, groups), (
        lambda g, out: in_kind(transposed_convolution, y, g, None, places=places, groups=groups),
        lambda g, out: in_kind(convolution, x, g, None, places=places, groups=groups),
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
        return (total[0] // 2, total[0] - total[0] // 2), (total[1] // 2, total[1] - total[1] // 2)
    vertical, horizontal = pair(name, "padding", padding, 0)
    return (vertical, vertical), (horizontal, horizontal)


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
    kernel, size = tuple(weight.shape[2:]), tuple(input.shape[2:])
    steps, spacing = pair("conv2d", "stride", stride, 1), pair("conv2d", "dilation", dilation, 1)
    around = _padding("conv2d", padding, kernel, steps, spacing)
    places = geometry("conv2d", size, kernel, steps, around, spacing)
    return convolution(input, weight, bias, places=places, groups=groups)


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
    kernel = (weight.shape[2], 1)
    steps, spacing = ((single("conv1d", n, v, 1), 1) for n, v in (("stride", stride), ("dilation", dilation)))
    pixels = padding if isinstance(padding, str) else (single("conv1d", "padding", padding, 0), 0)
    around = _padding("conv1d", pixels, kernel, steps, spacing)
    places = geometry("conv1d", (input.shape[2], 1), kernel, steps, around, spacing)
    image, kernels = reshape(input, (*input.shape, 1)), reshape(weight, (*weight.shape, 1))
    y = convolution(image, kernels, bias, places=places, groups=groups)
    sequence: Tensor = reshape(y, y.shape[:3])
    return sequence


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
