"""Where the windows of a convolution or a pooling lie in an image, and images as matrices of windows (im2col).

Images have the shape (N, C, H, W); the results of these operations lie in memory with the rows of the batch
innermost, (C, H, W, N), because then every copy, sum and maximum over windows runs along contiguous numbers.
In a matrix of windows the pixels under each window are a column. They are copied once for each column of the kernel;
the matrices of all rows of windows are overlapping views of that copy, so the rows of the kernel cost no copies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any

import numpy as np

from sorix_dist.core.arguments import is_integer
from sorix_dist.core.ops.blocks import SMALL
from sorix_dist.core.tensor import Array

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Geometry:
    """The windows of a two-dimensional convolution or pooling; pairs are (vertical, horizontal), in pixels.

    size: the image without padding; output: the number of windows; padding: (before, after) each way.
    """

    size: Pair
    output: Pair
    kernel: Pair
    stride: Pair
    padding: tuple[Pair, Pair]
    dilation: Pair

    @property
    def padded(self) -> Pair:
        """The image with its padding, and with what windows cover beyond that."""
        height, width = (
            max(size + sum(padding), (count - 1) * stride + dilation * (kernel - 1) + 1)
            for size, padding, count, stride, dilation, kernel in zip(
                self.size, self.padding, self.output, self.stride, self.dilation, self.kernel, strict=True
            )
        )
        return height, width

    @property
    def inner(self) -> tuple[slice, slice]:
        """The slices of the image in its padding."""
        (top, _), (left, _) = self.padding
        return slice(top, top + self.size[0]), slice(left, left + self.size[1])

    def pixels(self) -> Iterator[tuple[slice, slice]]:
        """For each place of the kernel, row by row, the padded pixels under it of all windows."""

        def under(axis: int) -> list[slice]:
            stride, reach = self.stride[axis], (self.output[axis] - 1) * self.stride[axis] + 1
            starts = (k * self.dilation[axis] for k in range(self.kernel[axis]))
            return [slice(start, start + reach, stride) for start in starts]

        return product(under(0), under(1))


def per_axis(name: str, argument: str, value: Any, least: int, axes: int) -> tuple[int, ...]:
    """`value`, one integer or one per axis, as one per axis; ValueError names the argument of function `name`."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    values = values * axes if len(values) == 1 else values
    if len(values) != axes or not all(map(is_integer, values)) or min(values) < least:
        number = {2: "two", 3: "three"}[axes]
        raise ValueError(f"{name}: {argument} must be an integer >= {least} or {number} of them, got {value!r}")
    return tuple(map(int, values))


def pair(name: str, argument: str, value: Any, least: int) -> Pair:
    """`per_axis` for images."""
    rows, columns = per_axis(name, argument, value, least, 2)
    return rows, columns


def single(name: str, argument: str, value: Any, least: int) -> int:
    """`value`, an integer or a tuple of one, as an integer; ValueError names the argument of `name`."""
    if isinstance(value, tuple | list) and len(value) == 1:
        value = value[0]
    if isinstance(value, tuple | list):
        raise ValueError(f"{name}: {argument} must be one integer, got {value!r}")
    return pair(name, argument, value, least)[0]


@lru_cache(maxsize=256)
def geometry(
    name: str,
    size: Pair,
    kernel: Pair,
    stride: Pair,
    padding: tuple[Pair, Pair],
    dilation: Pair,
    *,
    ceil_mode: bool = False,
) -> Geometry:
    """All windows of an image of `size`; ValueError if there is room for none.

    ceil_mode: a last window may reach beyond the padding, if it begins in the image or the padding before it.
    """
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    room = [n + sum(p) - r for n, p, r in zip(size, padding, reach, strict=True)]
    if min(room) < 0:
        dilated = "" if max(dilation) == 1 else f" with dilation {dilation}"
        raise ValueError(
            f"{name}: kernel_size {kernel}{dilated} must fit into the padded input, which has the size "
            f"{tuple(n + sum(p) for n, p in zip(size, padding, strict=True))}"
        )
    output = [n // s + 1 for n, s in zip(room, stride, strict=True)]
    if ceil_mode:
        for axis in (0, 1):
            last = -(-room[axis] // stride[axis])
            output[axis] = last + (last * stride[axis] < size[axis] + padding[axis][0])
    return Geometry(size, (output[0], output[1]), kernel, stride, padding, dilation)


def batch_innermost(x: Array) -> Array:
    """x of shape (N, C, H, W) as (C, H, W, N), with contiguous numbers along N; a copy only if needed."""
    turned = x.transpose(1, 2, 3, 0)
    return turned if turned.strides[3] == x.itemsize or len(x) == 1 else np.ascontiguousarray(turned)


def pad(x: Array, geometry: Geometry, fill: float = 0.0) -> Array:
    """x of shape (N, C, H, W) with its padding, in the same order of dimensions; x if there is none."""
    if geometry.padded == geometry.size:
        return x
    count, channels, *_ = x.shape
    padded = np.full((channels, *geometry.padded, count), fill, x.dtype)
    padded[:, *geometry.inner] = x.transpose(1, 2, 3, 0)
    return padded.transpose(3, 0, 1, 2)


TILE = 2 << 20  # bytes that are copied at a time, so that they stay in the cache
WIDE = 512  # numbers in a row of a tile, at least, so that copies and products are long; up to four times as many for
# products with few multiplications a number
SHORT = 128  # numbers in a row of windows, at least, to multiply row by row


@dataclass(frozen=True, slots=True)
class Taps:
    """Windows along one direction: window k covers the pixels first + k * step + t * spacing for t < count."""

    first: int
    step: int
    count: int
    spacing: int

    @property
    def shared(self) -> int:
        """The number of following windows that overlap with a window."""
        return (self.count - 1) * self.spacing // self.step


@dataclass(frozen=True, slots=True)
class Tile:
    """Ranges of rows and columns, multiplied row by row or all rows at once."""

    rows: Pair
    columns: Pair
    by_rows: bool

    @property
    def size(self) -> Pair:
        """The number of rows and columns."""
        return self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]

    def of(self, image: Array) -> Array:
        """The pixels (groups, C / groups, h, w, N) of this tile."""
        return image[:, :, slice(*self.rows), slice(*self.columns)]

    def matrices(self, image: Array) -> Array:
        """The pixels of this tile as (groups, products, C / groups, pixels)."""
        part = self.of(image)
        groups, channels, high, wide, count = part.shape
        if self.by_rows:
            return part.transpose(0, 2, 1, 3, 4).reshape(groups, high, channels, wide * count)
        return part.reshape(groups, 1, channels, high * wide * count)

    def pixels(self, matrices: Array) -> Array:
        """The inverse of `matrices`, as a view."""
        groups, _, channels, _ = matrices.shape
        high, wide = self.size
        count = matrices[0].size // max(1, channels * high * wide)
        if self.by_rows:
            return matrices.reshape(groups, high, channels, wide, count).transpose(0, 2, 1, 3, 4)
        return matrices.reshape(groups, channels, high, wide, count)


class Scratch:
    """Memory for one array at a time, which each call reuses. Its rows are an odd number of cache lines apart: at a
    distance of a power of two they would displace each other from the cache."""

    def __init__(self, dtype: Any) -> None:
        self._memory = np.empty(0, dtype)

    def __call__(self, *shape: int) -> Array:
        line = 64 // self._memory.itemsize
        row = (-(-shape[-1] // line) | 1) * line
        size = prod(shape[:-1]) * row
        if self._memory.size < size:
            self._memory = np.empty(size, self._memory.dtype)
        return self._memory[:size].reshape(*shape[:-1], row)[..., : shape[-1]]


def tiles(size: Pair, down: Taps, pixel: int, count: int, height: int, each: int) -> Iterator[Tile]:
    """The windows of an image of `size` in tiles: as tall as fits, because the rows that two of them share are copied
    twice, and then as wide as fits.

    down: the windows along the columns; pixel: the bytes that are copied for a window in all `count` images and one
    row of the kernel; height: of the matrices that the columns are multiplied with, which takes `each` multiplications
    a number. To multiply row by row pays if rows are longer than these matrices are high, which are read again for
    each of them.
    """
    rows, columns = size
    if not rows or not columns or not pixel or not each:
        return
    by_rows = columns * count >= max(SHORT, height)
    # Only row by row the matrices can be views of what is copied.
    pixel *= min(down.step, down.count) if by_rows and down.spacing == 1 else down.count
    least = min(columns, -(-max(height, min(SMALL // each, 4 * WIDE), WIDE) // count))
    high = min(rows, max(1, 3 * down.shared, TILE // (pixel * least) - down.shared))
    wide = min(columns, max(least, TILE // (pixel * (high + down.shared))))
    # Parts of even size: a thin last one would cost as much as a whole one.
    high, wide = (-(-whole // -(-whole // part)) for whole, part in ((rows, high), (columns, wide)))
    for top in range(0, rows, high):
        for left in range(0, columns, wide):
            yield Tile((top, min(top + high, rows)), (left, min(left + wide, columns)), by_rows)


def inside(first: int, step: int, count: int, size: int) -> tuple[slice, slice]:
    """The slice of `count` pixels first, first + step, ... that lie in an image of `size`, and their slice in it."""
    begin = min(count, max(0, -(first // step)))
    end = min(count, max(begin, -((first - size) // step)))
    if begin == end:
        return slice(begin, begin), slice(0, 0)
    return slice(begin, end), slice(first + begin * step, first + (end - 1) * step + 1, step)


def columns(x: Array, down: Taps, right: Taps, tile: Tile, scratch: Scratch) -> Array:
    """The windows of a tile of an image x as matrices (groups, products, kH * kW * C / groups, pixels)."""
    groups, channels, _, _, count = x.shape
    high, wide = tile.size
    copied = _copied(x, down, right, tile, scratch)
    group, row, depth, pixel = copied.strides
    overlapping: Array = np.ndarray(  # what as_strided does, in a tenth of its time
        (groups, high, down.count, right.count * channels, wide * count),
        copied.dtype,
        copied.base,
        strides=(group, row * down.step, row * down.spacing, depth, pixel),
    )
    height = down.count * right.count * channels
    if tile.by_rows:  # a view, if neither the kernel's rows are spaced
        return overlapping.reshape(groups, high, height, wide * count)
    return overlapping.transpose(0, 2, 3, 1, 4).reshape(groups, 1, height, high * wide * count)


def _copied(x: Array, down: Taps, right: Taps, tile: Tile, scratch: Scratch) -> Array:
    """The pixels of x that a tile needs, (groups, rows, kW * C / groups, w * N), with zeros for those outside."""
    groups, channels, height, width, count = x.shape
    high, wide = tile.size
    rows = (high - 1) * down.step + (down.count - 1) * down.spacing + 1
    within, source = inside(down.first + tile.rows[0] * down.step, 1, rows, height)
    memory = scratch(groups, rows, right.count * channels, wide * count)
    copied = memory.reshape(groups, rows, right.count, channels, wide, count)
    turned = x.transpose(0, 2, 1, 3, 4)
    copied[:, : within.start] = 0
    copied[:, within.stop :] = 0
    for j in range(right.count):
        first = right.first + tile.columns[0] * right.step + j * right.spacing
        among, pixels = inside(first, right.step, wide, width)
        under = copied[:, within, j]
        under[..., : among.start, :] = 0
        under[..., among.stop :, :] = 0
        under[..., among, :] = turned[:, source, :, pixels]
    return memory
