"""Pooling: one number for each window of an image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from sorix_dist.core import rules
from sorix_dist.core.graph import Rule
from sorix_dist.core.op import like_input, op
from sorix_dist.core.ops.axes import along
from sorix_dist.core.ops.indexing import take
from sorix_dist.core.ops.join import stack_along
from sorix_dist.core.ops.reduce import mean_over
from sorix_dist.core.ops.shape import squeeze, unsqueeze, with_rows
from sorix_dist.core.ops.windows import TILE, Geometry, Pair, geometry, pad, pair, single
from sorix_dist.core.placement import shard_of
from sorix_dist.core.rules import rows_along
from sorix_dist.core.tensor import Array, Tensor, shape_of

Result = tuple[Array, tuple[Rule, ...]]


def _windows_for_max(x: Array, places: Geometry) -> tuple[Array, list[Array]]:
    """x with its padding, which is never the maximum; and for each place of the kernel the pixels under it."""
    padded = pad(x, places, -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min)
    return padded, [padded[:, :, v, h] for v, h in places.pixels()]


def _maxima(x: Array, places: Geometry) -> tuple[Array, Array]:
    """The rows and the columns in x of the maxima of its windows."""
    _, views = _windows_for_max(x, places)
    # argmax takes the first of equals, and a window's first place in memory is its first in the kernel.
    down, right = np.unravel_index(np.argmax(np.stack(views), axis=0), places.kernel)
    rows, columns = np.ogrid[: places.output[0], : places.output[1]]
    (top, _), (left, _) = places.padding
    rows = rows * places.stride[0] + down * places.dilation[0] - top
    return rows, columns * places.stride[1] + right * places.dilation[1] - left


def _max_pool(x: Any, *, places: Geometry) -> Tensor:
    """`max_pool` as an index of x: where the maxima are does not change with a small change of x."""
    rows, columns = _maxima(x.array, places)
    samples, channels = np.ogrid[: rows.shape[0], : rows.shape[1]]
    at = samples[..., None, None], channels[..., None, None], rows, columns
    return take(x, index=tuple(np.broadcast_arrays(*at)))


@op(differentiable=False, rule=rules.rows_at(0))
def max_pool_indices(x: Array, *, places: Geometry) -> Result:
    """Where the maximum of each window of x (N, C, H, W) is: its row * W + its column."""
    rows, columns = _maxima(x, places)
    return rows * x.shape[3] + columns, ()


@op(composite=_max_pool, rule=rules.rows_at(0))
def max_pool(x: Array, *, places: Geometry) -> Result:
    """The maximum of each window of x (N, C, H, W); the gradient goes to the first of equal maxima."""
    padded, views = _windows_for_max(x, places)
    y = np.empty_like(views[0])  # in memory in the order of x
    # Which place of the kernel the maximum is at: less to keep, and faster to use, than the image.
    chosen = np.zeros_like(y, np.min_scalar_type(len(views) - 1))
    step = max(1, 2 * TILE * x.shape[1] // max(1, padded.nbytes))  # channels that stay in the cache for several passes
    for channels in (slice(start, start + step) for start in range(0, x.shape[1], step)):
        _choose(y[:, channels], chosen[:, channels], [view[:, channels] for view in views])
    strides = y.strides

    def to_x(g: Array, out: Array | None) -> Array:
        # Every pixel is under one window, or some under none or several.
        tiled = places.stride == places.kernel and places.dilation == (1, 1)
        tiled &= places.padded == tuple(s * n for s, n in zip(places.stride, places.output, strict=True))
        make: Any = np.empty_like if tiled else np.zeros_like
        gradient = make(chosen, g.dtype, shape=(*g.shape[:2], *places.padded))
        if g.strides != strides:  # products of arrays that lie differently in memory are slow
            g, there = np.empty_like(chosen, g.dtype), g
            np.copyto(g, there)
        for place, (vertical, horizontal) in enumerate(places.pixels()):
            under = gradient[:, :, vertical, horizontal]
            part = (chosen == place).astype(g.dtype)
            part *= g
            if tiled:
                under[...] = part
            else:
                under += part
        image: Array = gradient[:, :, *places.inner]
        return image

    return y, (to_x,)


def _choose(y: Array, chosen: Array, views: list[Array]) -> None:
    """The maxima of `views` into y and the first place that each is found at into `chosen`, which is 0."""
    seen, better, place = np.empty_like(y), np.empty_like(y, bool), np.empty_like(chosen)
    np.copyto(y, views[0])
    for number, view in enumerate(views[1:], 1):
        np.copyto(seen, view)  # what lies together is compared faster
        np.greater(seen, y, out=better)
        np.maximum(y, seen, out=y)
        np.multiply(better.view(np.uint8), chosen.dtype.type(number), out=place)
        np.maximum(chosen, place, out=chosen)  # later places have larger numbers


def _divide(total: Array, divisor: int | Array) -> Array:
    """total / divisor in total's own dtype, in place; a divisor per window has the shape of the output."""
    if total.dtype.kind != "f":
        return np.trunc(total / divisor).astype(total.dtype)
    total /= divisor if isinstance(divisor, int) else divisor.astype(total.dtype)
    return total


@op(rule=rules.rows_at(0), called="avg_pool")
def average_pool(x: Array, *, places: Geometry, divisor: int | Array) -> Result:
    """The sum of each window of x (N, C, H, W), over `divisor`: an integer, or one per window (H', W')."""
    views = (pad(x, places)[:, :, v, h] for v, h in places.pixels())
    y = next(views).astype(np.promote_types(x.dtype, np.float32) if x.dtype.kind == "f" else x.dtype, order="K")
    for view in views:
        y += view
    return _divide(y, divisor).astype(x.dtype, copy=False), (
        lambda g, out: like_input(transposed_average_pool, g, places=places, divisor=divisor),
    )


@op(rule=rules.rows_at(0))
def transposed_average_pool(y: Array, *, places: Geometry, divisor: int | Array) -> Result:
    """The transpose of `average_pool`: each pixel gets y / divisor of all windows that it lies in."""
    part = _divide(y.copy(order="K"), divisor)
    count, channels = y.shape[:2]
    x = np.zeros((channels, *places.padded, count), y.dtype).transpose(3, 0, 1, 2)
    for vertical, horizontal in places.pixels():
        x[:, :, vertical, horizontal] += part
    return x[:, :, *places.inner], (lambda g, out: like_input(average_pool, g, places=places, divisor=divisor),)


def _places(
    name: str, shape: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> Geometry:
    """The windows of a pooling by name `name`, checked."""
    if len(shape) != 4:
        raise ValueError(f"{name}: input must have shape (N, C, H, W), got shape {tuple(shape)}")
    kernel = pair(name, "kernel_size", kernel_size, 1)
    steps = kernel if stride in (None, ()) else pair(name, "stride", stride, 1)
    around, spacing = pair(name, "padding", padding, 0), pair(name, "dilation", dilation, 1)
    if any(2 * p > d * (k - 1) + 1 for p, k, d in zip(around, kernel, spacing, strict=True)):
        raise ValueError(f"{name}: padding must be at most half of kernel_size {kernel}, got {padding!r}")
    both = ((around[0],) * 2, (around[1],) * 2)
    return geometry(name, tuple(shape[2:]), kernel, steps, both, spacing, ceil_mode=ceil_mode)


def max_pool2d(
    input: Any,
    kernel_size: int | Pair,
    stride: int | Pair | None = None,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The maximum of each window; stride: kernel_size if None.

    input: (N, C, H, W); returns (N, C, H', W'), H' = (H + 2 padding - dilation (kH - 1) - 1) // stride + 1,
    rounded up with `ceil_mode`. The padding never is the maximum. Of equal maxima the first gets the gradient.
    With `return_indices` also returns where in its image each maximum is, row * W + column.
    """
    input = rows_along("max_pool2d", input, (0,))
    places = _places("max_pool2d", shape_of(input), kernel_size, stride, padding, dilation, ceil_mode)
    return _max_pooled(input, places, return_indices)


def _max_pooled(input: Any, places: Geometry, return_indices: bool) -> Any:
    values = max_pool(input, places=places)
    return (values, max_pool_indices(input, places=places)) if return_indices else values


def max_pool1d(
    input: Any,
    kernel_size: int,
    stride: int | None = None,
    padding: int = 0,
    dilation: int = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The maximum of each window of sequences (N, C, L); options as for `max_pool2d`."""
    input = rows_along("max_pool1d", input, (0,))
    name, shape = "max_pool1d", shape_of(input)
    if len(shape) != 3:
        raise ValueError(f"{name}: input must have shape (N, C, L), got shape {tuple(shape)}")
    kernel, step, around, spacing = (
        (single(name, option, value, least), least)
        for option, value, least in (
            ("kernel_size", kernel_size, 1),
            ("stride", kernel_size if stride is None else stride, 1),
            ("padding", padding, 0),
            ("dilation", dilation, 1),
        )
    )
    places = _places(name, (*shape, 1), kernel, step, around, spacing, ceil_mode)
    pooled = _max_pooled(unsqueeze(input, 3), places, return_indices)
    return tuple(squeeze(x, 3) for x in pooled) if return_indices else squeeze(pooled, 3)


def avg_pool2d(
    input: Any,
    kernel_size: int | Pair,
    stride: int | Pair | None = None,
    padding: int | Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window, with the zeros of the padding if `count_include_pad`.

    Shapes and windows are those of `max_pool2d`.
    divisor_override: what the sums are divided by instead of the size of the window.
    """
    input = rows_along("avg_pool2d", input, (0,))
    places = _places("avg_pool2d", shape_of(input), kernel_size, stride, padding, 1, ceil_mode)
    if divisor_override is None:
        return average_pool(input, places=places, divisor=_window_sizes(places, count_include_pad))
    if not isinstance(divisor_override, int) or divisor_override == 0:
        raise ValueError(f"avg_pool2d: divisor_override must be an integer but 0, got {divisor_override!r}")
    return average_pool(input, places=places, divisor=divisor_override)


def _window_sizes(places: Geometry, count_include_pad: bool) -> int | Array:
    """The number of pixels per window: one number, or one per window (H', W') if they differ."""

    def sizes(axis: int) -> Array:
        before, after = places.padding[axis]
        first = np.arange(places.output[axis]) * places.stride[axis] - before
        last = np.minimum(first + places.kernel[axis], places.size[axis] + after)
        if not count_include_pad:
            first, last = np.maximum(first, 0), np.minimum(last, places.size[axis])
        return last - first

    counts = np.outer(sizes(0), sizes(1))
    return int(counts[0, 0]) if (counts == counts[0, 0]).all() else counts


def adaptive_avg_pool2d(input: Any, output_size: Any) -> Tensor:
    """The means of windows that cover the image: `output_size` of them, an integer or a pair (H', W').

    input: (N, C, H, W); window i reaches from floor(i H / H') to ceil((i + 1) H / H'). None in the place of
    an integer keeps the size.
    """
    input = rows_along("adaptive_avg_pool2d", input, (0, 1))
    name, shape = "adaptive_avg_pool2d", tuple(shape_of(input))
    if len(shape) != 4:
        raise ValueError(f"{name}: input must have shape (N, C, H, W), got shape {shape}")
    wanted = output_size if isinstance(output_size, tuple | list) else (output_size, output_size)
    count, channels, height, width = shape
    kept = [n if w is None else w for n, w in zip((height, width), wanted, strict=False)]
    rows, columns = pair(name, "output_size", kept if len(wanted) == 2 else wanted, 1)
    if height % rows == 0 and width % columns == 0:
        windows = (count, channels, rows, height // rows, columns, width // columns)
        cells = with_rows(input, windows, shard_of(input))
        return mean_over(cells, axis=(3, 5), keepdims=False)
    narrow = stack_along(*_means(input, 3, width, columns), axis=3)
    both: Tensor = stack_along(*_means(narrow, 2, height, rows), axis=2)
    return both


def _means(x: Any, axis: int, size: int, count: int) -> Iterator[Any]:
    """The means of `count` windows that cover an axis; an infinity affects only the windows that contain it."""
    for start, stop in ((i * size // count, -(-(i + 1) * size // count)) for i in range(count)):
        yield mean_over(take(x, index=along(axis, slice(start, stop))), axis=(axis,), keepdims=False)
