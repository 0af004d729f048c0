"""Pooling, against loops over every window."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from sorix_dist.core.ops import pool
from sorix_dist.core.ops.windows import Geometry, geometry
from tests.support.core.opcheck import Row

Array = np.ndarray[Any, Any]


def each_window(places: Geometry) -> Any:
    """For each window, its index in y and that of its pixels in a padded x."""
    for a, b in product(range(places.output[0]), range(places.output[1])):
        rows, columns = (
            slice(at * s, at * s + d * (k - 1) + 1, d)
            for at, s, d, k in zip((a, b), places.stride, places.dilation, places.kernel, strict=True)
        )
        yield (..., a, b), (..., rows, columns)


def highest(x: Array, *, places: Geometry) -> Array:
    padded = np.full((*x.shape[:2], *places.padded), -np.inf)
    padded[:, :, *places.inner] = x
    y = np.zeros((*x.shape[:2], *places.output))
    for at, pixels in each_window(places):
        y[at] = padded[pixels].max(axis=(2, 3))
    return y


def highest_at(x: Array, *, places: Geometry) -> Array:
    numbers = np.full(places.padded, -1)
    numbers[*places.inner] = np.arange(np.prod(x.shape[2:])).reshape(x.shape[2:])
    best, y = highest(x, places=places), np.zeros((*x.shape[:2], *places.output), np.int64)
    for (*_, a, b), (_, *pixels) in each_window(places):
        for n, c in np.ndindex(x.shape[:2]):
            y[n, c, a, b] = next(i for i in numbers[*pixels].flat if i >= 0 and x[n, c].flat[i] == best[n, c, a, b])
    return y


def averages(x: Array, *, places: Geometry, divisor: Any) -> Array:
    padded = np.zeros((*x.shape[:2], *places.padded))
    padded[:, :, *places.inner] = x
    y = np.zeros((*x.shape[:2], *places.output))
    for at, pixels in each_window(places):
        y[at] = padded[pixels].sum(axis=(2, 3))
    return y / divisor


def spread(y: Array, *, places: Geometry, divisor: Any) -> Array:
    padded = np.zeros((*y.shape[:2], *places.padded))
    for at, pixels in each_window(places):
        padded[pixels] += (y / divisor)[at][..., None, None]
    return padded[:, :, *places.inner]


def adaptive(x: Array, *, output_size: tuple[int, int]) -> Array:
    y = np.zeros((*x.shape[:2], *output_size))
    for i, j in product(*map(range, output_size)):
        (a, b), (c, d) = (
            (k * n // m, -(-(k + 1) * n // m)) for k, n, m in zip((i, j), x.shape[2:], output_size, strict=True)
        )
        y[..., i, j] = x[:, :, a:b, c:d].mean(axis=(2, 3))
    return y


APART = geometry("", (4, 6), (2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1))
OVERLAPPING = geometry("", (5, 5), (3, 2), (2, 1), ((1, 1), (1, 1)), (1, 2), ceil_mode=True)
LACKS = {"0-d": "images have four dimensions"}
ROWS = []
for places in (APART, OVERLAPPING):
    images = [((n, 3, *places.size),) for n in (2, 0, 1)]
    pooled = [((n, 3, *places.output),) for n in (2, 0, 1)]
    uneven = np.arange(1, 1 + np.prod(places.output)).reshape(places.output)
    ROWS.append(Row(pool.max_pool, highest, images, {"places": places}, lacks=LACKS))
    ROWS.append(Row(pool.max_pool_indices, highest_at, images, {"places": places}, differentiable=False,
                    result=np.int64, lacks=LACKS))  # fmt: skip
    for divisor in (4, uneven):
        options = {"places": places, "divisor": divisor}
        ROWS.append(Row(pool.average_pool, averages, images, options, lacks=LACKS))
        ROWS.append(Row(pool.transposed_average_pool, spread, pooled, options, lacks=LACKS))
for size in ((1, 1), (2, 3), (3, 4)):
    ROWS.append(
        Row(
            pool.adaptive_avg_pool2d,
            adaptive,
            [((2, 3, 4, 6),), ((0, 3, 4, 6),)],
            {"output_size": size},
            covers=("mean_over", "matrix_product"),
        )
    )
