"""Images as matrices whose products are convolutions, tile by tile.

Images have the shape (groups, C / groups, H, W, N) here. A row of windows is a matrix with the pixels under each
window in a column. If the pixels are copied once for each column of the kernel, but row after row, then the
matrices of all rows of windows are views of that copy which overlap: the rows of the kernel cost no copies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from sorix_dist.core.ops.windows import Pair
from sorix_dist.core.tensor import Array

TILE = 1 << 20  # bytes that are copied and computed at a time, so that they stay in the cache
MOST = 16 * TILE  # where rows are so long that a few of them take more
WIDE = 128  # numbers in a row of a tile, at least, so that copies and products are long
SMALL = 1_000_000  # multiplications of a product that OpenBLAS computes without copying its operands first


@dataclass(frozen=True, slots=True)
class Taps:
    """Windows along one direction: window k covers the pixels first + k * step + t * spacing for t < count."""

    first: int
    step: int
    count: int
    spacing: int

    @property
    def shared(self) -> int:
        """With how many windows behind it a window shares what lies between its first and its last pixel."""
        return (self.count - 1) * self.spacing // self.step


@dataclass(frozen=True, slots=True)
class Tile:
    """Ranges of rows and columns, multiplied row by row or all rows at once."""

    rows: Pair
    columns: Pair
    by_rows: bool

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
        high, wide = self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]
        count = matrices[0].size // max(1, channels * high * wide)
        if self.by_rows:
            return matrices.reshape(groups, high, channels, wide, count).transpose(0, 2, 1, 3, 4)
        return matrices.reshape(groups, channels, high, wide, count)


class Scratch:
    """Memory for arrays of which each is needed until the next one is asked for."""

    def __init__(self, dtype: Any) -> None:
        self._memory = np.empty(0, dtype)

    def __call__(self, *shape: int) -> Array:
        size = prod(shape)
        if self._memory.size < size:
            self._memory = np.empty(size, self._memory.dtype)
        return self._memory[:size].reshape(shape)


def tiles(size: Pair, shared: int, pixel: int, count: int, height: int) -> Iterator[Tile]:
    """The windows of an image of `size` windows in tiles, whole rows of them if that does not take too much memory.

    shared: how many rows a tile copies that the next one copies again; pixel: the bytes that are copied and
    computed for a window in all `count` images; height: of the matrices that the columns are multiplied with. To
    multiply row by row pays if rows are longer than these matrices are high, which are read again for each of them.
    """
    rows, columns = size
    if not rows or not columns or not pixel:
        return
    high = min(rows, max(1, 3 * shared, TILE // (pixel * columns) - shared))
    least = -(-max(WIDE, height) // count)
    wide = min(columns, max(least, MOST // (pixel * (high + shared))))
    # Parts of even size: a thin last one would cost as much as a whole one.
    high, wide = (-(-whole // -(-whole // part)) for whole, part in ((rows, high), (columns, wide)))
    for top in range(0, rows, high):
        for left in range(0, columns, wide):
            yield Tile((top, min(top + high, rows)), (left, min(left + wide, columns)), least <= columns)


def inside(first: int, step: int, count: int, size: int) -> tuple[slice, slice]:
    """Which of `count` pixels first, first + step, ... lie in an image of `size`, and where in it."""
    begin = min(count, max(0, -(first // step)))
    end = min(count, max(begin, -((first - size) // step)))
    if begin == end:
        return slice(begin, begin), slice(0, 0)
    return slice(begin, end), slice(first + begin * step, first + (end - 1) * step + 1, step)


def columns(x: Array, down: Taps, right: Taps, tile: Tile, scratch: Scratch) -> Array:
    """The windows of a tile of an image x as matrices (groups, products, kH * kW * C / groups, pixels)."""
    groups, channels, _, _, count = x.shape
    high, wide = tile.rows[1] - tile.rows[0], tile.columns[1] - tile.columns[0]
    copied = _copied(x, down, right, tile, scratch)
    group, row, depth, pixel = copied.strides
    overlapping: Array = np.ndarray(  # what as_strided does, in a tenth of its time
        (groups, high, down.count, right.count * channels, wide * count),
        copied.dtype,
        copied,
        strides=(group, row * down.step, row * down.spacing, depth, pixel),
    )
    height = down.count * right.count * channels
    if tile.by_rows:  # a view, if neither the kernel's rows are spaced
        return overlapping.reshape(groups, high, height, wide * count)
    return overlapping.transpose(0, 2, 3, 1, 4).reshape(groups, 1, height, high * wide * count)


def pieces(matrices: Array, other: int, least: int) -> int:
    """Into how many equal parts the columns of `matrices` are to be cut so that products with a matrix of `other`
    rows are SMALL; 1 if parts of at least `least` columns are not."""
    height, length = matrices.shape[-2:]
    fits = SMALL // max(1, other * height)
    return next((n for n in range(1, length // least + 1) if length % n == 0 and length // n <= fits), 1)


def cut(matrices: Array, count: int) -> Array:
    """Matrices (groups, products, rows, columns) as a view (groups, products, count, rows, columns / count)."""
    return matrices.reshape(*matrices.shape[:3], count, -1).swapaxes(2, 3)


def _copied(x: Array, down: Taps, right: Taps, tile: Tile, scratch: Scratch) -> Array:
    """The pixels of x that a tile needs, (groups, rows, kW * C / groups, w * N), with zeros for those outside."""
    groups, channels, height, width, count = x.shape
    high, wide = tile.rows[1] - tile.rows[0], tile.columns[1] - tile.columns[0]
    rows = (high - 1) * down.step + (down.count - 1) * down.spacing + 1
    within, source = inside(down.first + tile.rows[0] * down.step, 1, rows, height)
    copied = scratch(groups, rows, right.count, channels, wide, count)
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
    return copied.reshape(groups, rows, right.count * channels, wide * count)
