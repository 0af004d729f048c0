"""The matrix products of training steps alone, as NumPy multiplies whole matrices; a step may multiply some in blocks,
which is faster."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
TILE = 1 << 20  # bytes of windows that a convolution multiplies at a time: such products stay in the cache


class Product(NamedTuple):
    """left @ right (matrices, or stacks of them), written to `out` so many `times`."""

    left: Array
    right: Array
    out: Array
    times: int = 1


def multiply(products: Iterable[Product]) -> None:
    """Computes the products one after the other."""
    for left, right, out, times in products:
        for _ in range(times):
            np.matmul(left, right, out=out)


def dense(rows: int, inputs: int, outputs: int, *, first: bool = False) -> list[Product]:
    """Of a linear layer: forward, gradient to the weights and, unless it is the first, to its input."""
    x, w, g = _numbers(rows, inputs), _numbers(inputs, outputs), _numbers(rows, outputs)
    made = [_product(x, w), _product(x.T, g)]
    return made if first else [*made, _product(g, w.T)]


def convolved(pixels: int, depth: int, outputs: int, *, first: bool = False) -> list[Product]:
    """As `dense`, of a convolution of so many windows of `depth` numbers each, tile by tile."""
    times = -(-pixels * depth * 4 // TILE)
    tile = pixels // times
    columns, w, g = _numbers(depth, tile), _numbers(outputs, depth), _numbers(outputs, tile)
    made = [_product(w, columns, times), _product(g, columns.T, times)]
    return made if first else [*made, _product(w.T, g, times)]


def recurrent(rows: int, steps: int, inputs: int, units: int, gates: int) -> list[Product]:
    """The products of a recurrent layer that comes first in its model. Each step multiplies [state, 1, input] by the
    weights, in blocks of 64 columns; the gradients of weights and biases are one product over all steps."""
    joined, w = units + 1 + inputs, gates * units
    forward = _product(_numbers(rows, joined), _numbers(w // 64, joined, 64), steps)
    each = [forward, _product(_numbers(rows, w), _numbers(units // 64, w, 64), steps)]
    return [*each, _product(_numbers(rows * steps, joined).T, _numbers(rows * steps, w))]


def attended(heads: int, length: int, width: int) -> list[Product]:
    """Of attention with so many heads (times sequences) of queries and keys (length, width): forward and
    gradients of scores and of the weighted sum."""
    query, key, value, g = (_numbers(heads, length, width) for _ in range(4))
    weights, to_scores = _numbers(heads, length, length), _numbers(heads, length, length)
    return [
        _product(query, key.swapaxes(1, 2)),
        _product(weights, value),
        _product(weights.swapaxes(1, 2), g),
        _product(g, value.swapaxes(1, 2)),
        _product(to_scores, key),
        _product(to_scores.swapaxes(1, 2), query),
    ]


def _product(left: Array, right: Array, times: int = 1) -> Product:
    return Product(left, right, np.matmul(left, right), times)


def _numbers(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape, np.float32)
