"""Convolutions, against loops over every window."""

from __future__ import annotations

from typing import Any

import numpy as np

from sorix_dist.core.ops import conv
from sorix_dist.core.ops.windows import Geometry, geometry
from tests.support.core.opcheck import Row

Array = np.ndarray[Any, Any]


def each_window(places: Geometry, groups: int, outputs: int, inputs: int) -> Any:
    """For each output channel and window: its index in y, where its pixels lie in a padded x, and its row of w."""
    each, of_each = outputs // groups, inputs // groups
    for o in range(outputs):
        channels = slice(o // each * of_each, (o // each + 1) * of_each)
        for a in range(places.output[0]):
            for b in range(places.output[1]):
                rows, columns = (
                    slice(at * s, at * s + d * (k - 1) + 1, d)
                    for at, s, d, k in zip((a, b), places.stride, places.dilation, places.kernel, strict=True)
                )
                yield (slice(None), o, a, b), (slice(None), channels, rows, columns), o


def roomy(x: Array, places: Geometry) -> Array:
    """x with its padding and all that windows reach."""
    padded = np.zeros((*x.shape[:2], *places.padded))
    padded[:, :, *places.inner] = x
    return padded


def convolved(x: Array, w: Array, b: Array | None, *, places: Geometry, groups: int) -> Array:
    y = np.zeros((len(x), len(w), *places.output)) + (0 if b is None else b[:, None, None])
    padded = roomy(x, places)
    for at, pixels, o in each_window(places, groups, len(w), x.shape[1]):
        y[at] += (padded[pixels] * w[o]).sum(axis=(1, 2, 3))
    return y


def transposed(y: Array, w: Array, b: Array | None, *, places: Geometry, groups: int) -> Array:
    padded = np.zeros((len(y), w.shape[1] * groups, *places.padded))
    for at, pixels, o in each_window(places, groups, len(w), padded.shape[1]):
        padded[pixels] += y[at][:, None, None, None] * w[o]
    return padded[:, :, *places.inner] + (0 if b is None else b[:, None, None])


def correlated(x: Array, y: Array, *, places: Geometry, groups: int) -> Array:
    w = np.zeros((y.shape[1], x.shape[1] // groups, *places.kernel))
    padded = roomy(x, places)
    for at, pixels, o in each_window(places, groups, len(w), x.shape[1]):
        w[o] += (padded[pixels] * y[at][:, None, None, None]).sum(axis=0)
    return w


def sequences(x: Array, w: Array, b: Array, **options: Any) -> Array:
    place = geometry("", (x.shape[2], 1), (w.shape[2], 1), (2, 1), ((1, 1), (0, 0)), (1, 1))
    return convolved(x[..., None], w[..., None], b, places=place, groups=2)[..., 0]


PLAIN = geometry("", (5, 4), (3, 2), (1, 1), ((0, 0), (0, 0)), (1, 1))
UNEVEN = geometry("", (6, 5), (2, 3), (2, 1), ((1, 0), (2, 1)), (2, 1))
POINTS = geometry("", (3, 4), (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1))
SPARSE = geometry("", (7, 6), (2, 2), (3, 4), ((1, 1), (0, 1)), (1, 1))
EVERY_OTHER_POINT = geometry("", (5, 4), (1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1))
SPACED = geometry("", (8, 7), (3, 2), (2, 3), ((2, 1), (1, 2)), (2, 2))  # no window meets every other row
BESIDE = geometry("", (3, 5), (1, 4), (1, 1), ((2, 1), (3, 4)), (1, 1))  # windows of nothing but padding
LACKS = {"0-d": "images have four dimensions"}


def rows_of(places: Geometry, groups: int, inputs: int, outputs: int) -> list[Row]:
    """Rows of the three operations for one geometry, with and without rows in the batch."""
    options = {"places": places, "groups": groups}
    w, b = (outputs, inputs // groups, *places.kernel), (outputs,)
    images = [((n, inputs, *places.size), (n, outputs, *places.output)) for n in (2, 0, 1)]
    biased = [(x, w, b) for x, _ in images] + [(images[0][0], w, None)]
    backwards = [(y, w, (inputs,)) for _, y in images] + [(images[0][1], w, None)]
    return [
        Row(conv.convolution, convolved, biased, options, lacks=LACKS),
        Row(conv.transposed_convolution, transposed, backwards, options, lacks=LACKS),
        Row(conv.kernel_correlation, correlated, images, options, lacks=LACKS),
    ]


ROWS = [
    *rows_of(PLAIN, 1, 3, 2),
    *rows_of(UNEVEN, 2, 4, 6),
    *rows_of(UNEVEN, 3, 3, 3),
    *rows_of(POINTS, 1, 3, 2),
    *rows_of(SPARSE, 1, 2, 3),
    *rows_of(EVERY_OTHER_POINT, 1, 2, 3),
    *rows_of(SPACED, 2, 4, 2),
    *rows_of(BESIDE, 1, 2, 2),
    Row(
        conv.conv1d,
        sequences,
        [((2, 4, 7), (6, 2, 3), (6,)), ((0, 4, 7), (6, 2, 3), (6,))],
        {"stride": 2, "padding": 1, "groups": 2},
        covers="convolution",
    ),
]
