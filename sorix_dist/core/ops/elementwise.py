"""Arithmetic and functions of single elements, with broadcasting."""

from __future__ import annotations

from typing import Any

import numpy as np

from sorix_dist.core.dtype import as_dtype
from sorix_dist.core.op import op


@op(numpy=np.add)
def add(x: Any, y: Any) -> Any:
    """x + y."""
    return np.add(x, y), (lambda g, out: g, lambda g, out: g)


@op(numpy=np.subtract)
def sub(x: Any, y: Any) -> Any:
    """x - y."""
    return np.subtract(x, y), (lambda g, out: g, lambda g, out: -g)


@op(numpy=np.multiply)
def mul(x: Any, y: Any) -> Any:
    """x * y."""
    return np.multiply(x, y), (lambda g, out: g * y, lambda g, out: g * x)


@op(numpy=np.divide)
def div(x: Any, y: Any) -> Any:
    """x / y."""
    z = np.divide(x, y)
    return z, (lambda g, out: g / y, lambda g, out: -g * z / y)


@op(numpy=np.power)
def pow(x: Any, y: Any) -> Any:
    """x ** y; the gradient to the exponent is 0 where x is 0."""
    z = x**y

    def to_base(g: Any, out: Any) -> Any:
        # x ** 0 is constant, also at x = 0 where x ** -1 is not finite.
        if isinstance(y, int | float):
            return g * (y * x ** (y - 1) if y != 0 else 0)
        zero = y == 0
        return g * np.where(zero, 0, y) * x ** np.where(zero, 1, y - 1)

    def to_exponent(g: Any, out: Any) -> Any:
        return g * z * np.log(np.where(x == 0, 1, x))

    return z, (to_base, to_exponent)


@op(numpy=np.negative)
def neg(x: Any) -> Any:
    """-x."""
    return np.negative(x), (lambda g, out: -g,)


@op(numpy=np.exp)
def exp(x: Any) -> Any:
    """e ** x."""
    y = np.exp(x)
    return y, (lambda g, out: g * y,)


@op(numpy=np.log)
def log(x: Any) -> Any:
    """The natural logarithm."""
    return np.log(x), (lambda g, out: g / x,)


@op(numpy=np.sqrt)
def sqrt(x: Any) -> Any:
    """The square root."""
    y = np.sqrt(x)
    return y, (lambda g, out: g / (2 * y),)


@op(numpy=np.where)
def where(condition: Any, x: Any, y: Any) -> Any:
    """Elements of x where the condition holds, of y elsewhere."""
    return np.where(condition, x, y), (
        None,
        lambda g, out: np.where(condition, g, 0),
        lambda g, out: np.where(condition, 0, g),
    )


@op(numpy=np.equal, differentiable=False)
def eq(x: Any, y: Any) -> Any:
    """Whether elements are equal."""
    return np.equal(x, y), ()


@op(numpy=np.not_equal, differentiable=False)
def ne(x: Any, y: Any) -> Any:
    """Whether elements differ."""
    return np.not_equal(x, y), ()


@op(numpy=np.less, differentiable=False)
def lt(x: Any, y: Any) -> Any:
    """Whether x < y."""
    return np.less(x, y), ()


@op(numpy=np.less_equal, differentiable=False)
def le(x: Any, y: Any) -> Any:
    """Whether x <= y."""
    return np.less_equal(x, y), ()


@op(numpy=np.greater, differentiable=False)
def gt(x: Any, y: Any) -> Any:
    """Whether x > y."""
    return np.greater(x, y), ()


@op(numpy=np.greater_equal, differentiable=False)
def ge(x: Any, y: Any) -> Any:
    """Whether x >= y."""
    return np.greater_equal(x, y), ()


def cast(x: Any, dtype: Any) -> Any:
    """The elements in another dtype; the gradient comes back in this one."""
    return cast_to(x, dtype=as_dtype(dtype))


@op()
def cast_to(x: Any, *, dtype: Any) -> Any:
    """The elements as NumPy's `dtype`; the walk turns the gradient back."""
    return x.astype(dtype), (lambda g, out: g,)
