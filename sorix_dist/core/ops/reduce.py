"""Many elements into one: sums, means, variances, products, norms; and running sums."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import numpy as np

from sorix_dist.core import kept_rows
from sorix_dist.core.batch import divisor, reduced, shared_out
from sorix_dist.core.op import op
from sorix_dist.core.ops.axes import along, axes_of, axis_of, shape_of, with_ones
from sorix_dist.core.ops.elementwise import abs as absolute
from sorix_dist.core.ops.elementwise import add, mul, pow, sign, sqrt, square, sub
from sorix_dist.core.ops.order import amax, amin
from sorix_dist.core.ops.shape import reshape, take


@op(keeps_rows=kept_rows.along_axis)
def sum_over(x: Any, *, axis: Any, keepdims: Any) -> Any:
    """The sum along `axis` (None: over everything), in x's own dtype; of bools and integers in int64."""
    shape, kept = x.shape, _kept(x.shape, axis)
    value = np.sum(x, axis=axis, keepdims=keepdims, dtype=None if x.dtype.kind == "f" else np.int64)
    return value, (lambda g, out: np.broadcast_to(np.reshape(g, kept), shape),)


@op(keeps_rows=kept_rows.along_axis)
def mean_over(x: Any, *, axis: Any, keepdims: Any) -> Any:
    """The mean along `axis` (None: over everything), in x's own dtype, of integers in float32; NaN of no elements."""
    shape, kept = x.shape, _kept(x.shape, axis)
    count = math.prod(n for n, k in zip(shape, kept, strict=True) if k == 1)
    total = np.sum(x, axis=axis, keepdims=keepdims, dtype=None if x.dtype.kind == "f" else np.float32)
    value = total / count if count else total * np.nan
    return value, (lambda g, out: np.broadcast_to(np.reshape(g / count if count else g, kept), shape),)


@op()
def weighted_total(x: Any, *, scale: float, weight: float) -> Any:
    """The sum of all elements times `scale`; its gradient to each of them is `weight`."""
    shape, ones = x.shape, (1,) * x.ndim
    return np.sum(x) * scale, (lambda g, out: np.broadcast_to(np.reshape(g * weight, ones), shape),)


def batch_mean(x: Any, count: int) -> Any:
    """The sum of x divided by `count`, of which every row has the same part, as a part of the mean over the batch."""
    return reduced(weighted_total(x, scale=1 / max(1, count), weight=1 / max(1, divisor(x, count))))


def _product(x: Any, *, axis: int) -> Any:
    factors = [take(x, index=along(axis, i)) for i in range(x.shape[axis])]
    return reduce(mul, factors) if factors else add(sum_over(x, axis=axis, keepdims=False), 1)


@op(composite=_product, keeps_rows=kept_rows.along_axis)
def product_over(x: Any, *, axis: int) -> Any:
    """The product along `axis`; its gradient is right where elements are 0, as it divides by none."""

    def to_x(g: Any, out: Any) -> Any:
        ones = np.ones_like(np.take(x, [0] if x.shape[axis] else [], axis))
        before = np.cumprod(np.concatenate([ones, np.delete(x, -1, axis) if x.shape[axis] else x], axis), axis)
        back = np.flip(x, axis)
        after = np.cumprod(np.concatenate([ones, np.delete(back, -1, axis) if x.shape[axis] else back], axis), axis)
        return np.expand_dims(g, axis) * before * np.flip(after, axis)

    return np.prod(x, axis=axis), (to_x,)


@op(keeps_rows=kept_rows.along_axis)
def cumulative_sum(x: Any, *, axis: int) -> Any:
    """The sums of all elements up to each along `axis`."""
    return np.cumsum(x, axis=axis), (lambda g, out: np.flip(np.cumsum(np.flip(g, axis), axis=axis), axis),)


@op(keeps_rows=kept_rows.along_axis)
def euclidean_norm(x: Any, *, axis: Any, keepdims: Any) -> Any:
    """The square root of the sum of squares along `axis` (None: of everything); its gradient at 0 is 0."""
    shape, kept = x.shape, _kept(x.shape, axis)
    y = np.sqrt(np.sum(x * x, axis=axis, keepdims=keepdims))

    def to_x(g: Any, out: Any) -> Any:
        safe = np.where(y == 0, 1, y)
        return np.broadcast_to(np.reshape(g / safe, kept), shape) * x

    return y, (to_x,)


def sum(X: Any, axis: Any = None, keepdims: Any = False, *, dim: Any = None, keepdim: bool = False) -> Any:
    """The sum of the elements, along `axis` (or `dim`) if given."""
    return sum_over(X, axis=axes_of("sum", X, dim, axis), keepdims=keepdims or keepdim)


def mean(X: Any, axis: Any = None, keepdims: Any = False, *, dim: Any = None, keepdim: bool = False) -> Any:
    """The mean of the elements, along `axis` (or `dim`) if given; of no elements NaN, of an empty shard 0."""
    if axis is dim is None and not (keepdims or keepdim) and shared_out(X):
        return batch_mean(X, X.array.size)
    return mean_over(X, axis=axes_of("mean", X, dim, axis), keepdims=keepdims or keepdim)


def var(
    X: Any,
    axis: Any = None,
    keepdims: Any = False,
    *,
    dim: Any = None,
    keepdim: bool = False,
    unbiased: bool = True,
    correction: int | None = None,
) -> Any:
    """The sum of squared distances from the mean, divided by the number of elements minus `correction`.

    correction: 1 by default (Bessel's), 0 with `unbiased=False`. NaN if nothing is left to divide by.
    """
    axes = axes_of("var", X, dim, axis)
    centred = square(sub(X, mean_over(X, axis=axes, keepdims=True)))
    shape = shape_of(X)
    count = math.prod(n for n, k in zip(shape, with_ones(shape, axes), strict=True) if k == 1)
    left = count - (int(unbiased) if correction is None else correction)
    return mul(sum_over(centred, axis=axes, keepdims=keepdims or keepdim), 1 / left if left > 0 else math.nan)


def std(X: Any, axis: Any = None, keepdims: Any = False, *, dim: Any = None, **options: Any) -> Any:
    """The square root of `var`, with the same arguments."""
    return sqrt(var(X, axes_of("std", X, dim, axis), keepdims, **options))


def prod(input: Any, dim: int | None = None, keepdim: bool = False, *, axis: Any = None, keepdims: Any = False) -> Any:
    """The product of the elements, along `dim` (or `axis`) if given."""
    dim = axis if dim is None else dim
    if dim is None:
        whole = product_over(reshape(input, -1), axis=0)
        return reshape(whole, (1,) * len(shape_of(input))) if keepdim or keepdims else whole
    at = axis_of("prod", input, dim)
    if not shape_of(input):
        return product_over(reshape(input, 1), axis=0)
    value = product_over(input, axis=at)
    return reshape(value, with_ones(shape_of(input), (at,))) if keepdim or keepdims else value


def cumsum(input: Any, dim: Any = None, *, axis: Any = None) -> Any:
    """The sums of all elements up to each along `dim` (or `axis`)."""
    dim = axis if dim is None else dim
    if dim is None:
        raise TypeError("cumsum: dim must be given")
    at = axis_of("cumsum", input, dim)
    return cumulative_sum(input, axis=at) if shape_of(input) else input


def norm(input: Any, p: Any = 2, dim: Any = None, keepdim: bool = False, *, axis: Any = None) -> Any:
    """The p-norm of the elements, along `dim` if given: (sum |x|^p)^(1/p); p may be "fro" (2), inf or -inf."""
    axes = axes_of("norm", input, dim, axis)
    if p in ("fro", 2, None):
        return euclidean_norm(input, axis=axes, keepdims=keepdim)
    if not isinstance(p, int | float):
        raise ValueError(f"norm: p must be a number, inf or 'fro', got {p!r}")
    sizes = absolute(input)
    if math.isinf(p):
        return (amax if p > 0 else amin)(sizes, axes, keepdim)
    if p == 0:
        return sum_over(mul(sign(sizes), sign(sizes)), axis=axes, keepdims=keepdim)
    total = sum_over(sizes if p == 1 else pow(sizes, p), axis=axes, keepdims=keepdim)
    return total if p == 1 else pow(total, 1 / p)


def _kept(shape: tuple[int, ...], axis: Any) -> tuple[int, ...]:
    """The shape that a reduction with keepdims=True has; `axis` may count from the end."""
    if axis is None:
        return with_ones(shape, None)
    return with_ones(shape, tuple(a % len(shape) for a in (axis if isinstance(axis, tuple | list) else (axis,))))
