"""Matrix products."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from sorix_dist.core import rules
from sorix_dist.core.memory import read_only
from sorix_dist.core.op import as_operand, op
from sorix_dist.core.ops.elementwise import add, mul
from sorix_dist.core.ops.shape import extents, flatten, reshape, squeeze, unsqueeze, with_rows
from sorix_dist.core.placement import shard_of
from sorix_dist.core.tensor import Array, Tensor

dot = np.ndarray.dot
"""The product of two matrices: of small ones quicker than np.matmul, and than np.dot, which asks other libraries first.
It has a name here so that who times products finds them."""


@op(promote="common", rule=rules.contracts)
def matrix_product(x: Any, y: Any) -> Any:
    """The product of two stacks of matrices, whose leading dimensions broadcast."""
    plain = x.ndim == y.ndim == 2

    def to_x(g: Any, out: Any) -> Any:
        return np.matmul(g, np.swapaxes(y, -1, -2), out=out if plain else None)

    def to_y(g: Any, out: Any) -> Any:
        return np.matmul(np.swapaxes(x, -1, -2), g, out=out if plain else None)

    return np.matmul(x, y), (to_x, to_y)


def matmul(x: Any, y: Any) -> Any:
    """The matrix product x @ y as NumPy defines it: vectors, matrices, and stacks of matrices that broadcast."""
    x, y = (a if isinstance(a, Tensor | np.ndarray) else Tensor(as_operand(a)) for a in (x, y))
    for name, operand in (("x", x), ("y", y)):
        if not operand.ndim:
            raise ValueError(f"matmul: {name} must have at least one dimension, got a 0-d operand")
    inner = -2 if y.ndim > 1 else 0
    if x.shape[-1] != y.shape[inner] and extents(x)[-1] != extents(y)[inner]:
        raise ValueError(
            f"matmul: the last dimension of x must be as long as the {'second last' if y.ndim > 1 else 'only'} "
            f"dimension of y, got shapes {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if x.ndim == 1:
        rows = matmul(unsqueeze(x, 0), y)
        return squeeze(rows, -2) if y.ndim > 1 else reshape(rows, ())
    if y.ndim == 1:
        return squeeze(matmul(x, unsqueeze(y, 1)), -1)
    if y.ndim == 2 and x.ndim > 2:
        # One large product is faster than many small ones, and the gradient to y is one product too.
        product = matrix_product(flatten(x, 0, -2), y)
        rows = shard_of(product)
        if rows is None:
            return reshape(product, (*extents(x)[:-1], product.shape[-1]))
        rows = shard_of(x) if rows.axis == 0 else rows.moved(x.ndim - 1)
        return with_rows(product, (*x.shape[:-1], product.shape[-1]), rows)
    return matrix_product(x, y)


def outer(input: Any, vec2: Any) -> Any:
    """The products of each element of one vector with each of another: (n,), (m,) -> (n, m)."""
    for name, vector in (("input", input), ("vec2", vec2)):
        if np.ndim(vector) != 1:
            raise ValueError(f"outer: {name} must be a vector, got shape {tuple(np.shape(vector))}")
    return mul(unsqueeze(input, 1), vec2)


def _linear(x: Any, w: Any, b: Any) -> Any:
    return matmul(x, w) if b is None else add(matmul(x, w), b)


@op(composite=_linear, promote="common", rule=rules.affine)
def linear(x: Any, w: Any, b: Any) -> Any:
    """x @ w + b for x of shape (..., in), w of shape (in, out), and b of shape (1, out), (out,) or None."""
    inputs, outputs = w.shape
    if x.ndim == 0 or x.shape[-1] != inputs:
        raise ValueError(f"linear: x must have {inputs} features in its last dimension, got shape {x.shape}")
    shape_x, shape_b = x.shape, None if b is None else b.shape
    rows = x if x.ndim == 2 else x.reshape(-1, inputs)
    y = dot(rows, w)
    if b is not None:
        y += b

    def to_x(g: Any, out: Any) -> Any:
        return times_transposed(g.reshape(-1, outputs), w).reshape(shape_x)

    def to_w(g: Any, out: Any) -> Any:
        g = g.reshape(-1, outputs)
        if out is not None and out.dtype == g.dtype:
            return dot(rows.T, g, out)
        return np.matmul(rows.T, g, out=out)

    def to_b(g: Any, out: Any) -> Any:
        sums = sum_of_rows(g.reshape(-1, outputs), out)
        return sums if sums is out else sums.reshape(shape_b)

    return y if x.ndim == 2 else y.reshape(*shape_x[:-1], outputs), (to_x, to_w, to_b)


_LONG, _STRIP = 512, 32  # numbers


def times_transposed(g: Array, w: Array) -> Array:
    """g @ w.T for g of shape (rows, out) and w of shape (in, out).

    BLAS has to turn its left factor around first, where the products run along the rows of both. If that is by far the
    smaller one, then OpenBLAS is several per cent faster, also with a copy of the result, in strips that stay in the
    cache.
    """
    product: Array
    rows, inputs = len(g), len(w)
    if 4 * rows > inputs or w.shape[1] < _LONG:
        product = dot(g, w.T)
        return product
    turned = dot(w, g.T)
    product = np.empty((rows, inputs), turned.dtype)
    for start in range(0, inputs, _STRIP):
        product[:, start : start + _STRIP] = turned[start : start + _STRIP].T
    return product


def sum_of_rows(rows: Array, out: Array | None = None) -> Array:
    """The sum of the rows of a matrix, in `out` if there is one, of as many elements.

    BLAS makes it, by a product with ones, several times as fast as NumPy sums over rows, and more exactly. Its bits
    depend on the number of rows, as those of every product do.
    """
    sums: Array
    if rows.dtype.itemsize < 4:  # BLAS has no float16
        sums = np.add.reduce(rows, axis=0)
        return sums
    ones = _ones(len(rows), rows.dtype)
    if out is not None and out.dtype == rows.dtype:
        ones.dot(rows, out.reshape(-1))
        return out
    sums = ones.dot(rows)
    return sums


def sums_of_rows(rows: Array) -> Array:
    """The sum of each row of a matrix, made in the same way."""
    sums: Array = rows.sum(axis=1) if rows.dtype.itemsize < 4 else rows.dot(_ones(rows.shape[1], rows.dtype))
    return sums


@lru_cache(maxsize=16)
def _ones(count: int, dtype: np.dtype[Any]) -> Array:
    return read_only(np.ones(count, dtype))
