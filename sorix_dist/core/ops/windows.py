"""Where the windows of a convolution or a pooling lie in an image, and the images around them.

Images have the shape (N, C, H, W); the results of these operations lie in memory with the rows of the batch
innermost, (C, H, W, N), because then every copy, sum and maximum over windows runs along contiguous numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

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
        """Where the image lies in its padding."""
        (top, _), (left, _) = self.padding
        return slice(top, top + self.size[0]), slice(left, left + self.size[1])

    def pixels(self) -> Iterator[tuple[slice, slice]]:
        """For each place of the kernel, row by row, the padded pixels under it of all windows."""

        def under(axis: int) -> list[slice]:
            stride, reach = self.stride[axis], (self.output[axis] - 1) * self.stride[axis] + 1
            starts = (k * self.dilation[axis] for k in range(self.kernel[axis]))
            return [slice(start, start + reach, stride) for start in starts]

        return product(under(0), under(1))


def pair(name: str, argument: str, value: Any, least: int) -> Pair:
    """`value`, one integer or two, as two; ValueError names the argument of function `name`."""
    values = tuple(value) if isinstance(value, tuple | list) else (value, value)
    integers = all(isinstance(v, int | np.integer) and not isinstance(v, bool) for v in values)
    if len(values) != 2 or not integers or min(values) < least:
        raise ValueError(f"{name}: {argument} must be an integer >= {least} or two of them, got {value!r}")
    return int(values[0]), int(values[1])


def single(name: str, argument: str, value: Any, least: int) -> int:
    """`value`, an integer or a tuple of one, as an integer; ValueError names the argument of `name`."""
    if isinstance(value, tuple | list) and len(value) == 1:
        value = value[0]
    if isinstance(value, tuple | list):
        raise ValueError(f"{name}: {argument} must be one integer, got {value!r}")
    return pair(name, argument, value, least)[0]


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
