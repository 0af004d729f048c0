"""Arithmetic, functions and comparisons of single elements, with broadcasting."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from sorix_dist.core import rules
from sorix_dist.core.dtype import as_dtype
from sorix_dist.core.op import op

# -- arithmetic


@op(numpy=np.add, promote="common", rule=rules.additive)
def add(x: Any, y: Any) -> Any:
    """x + y."""
    return np.add(x, y), (lambda g, out: g, lambda g, out: g)


@op(numpy=np.subtract, promote="common", rule=rules.additive)
def sub(x: Any, y: Any) -> Any:
    """x - y."""
    return np.subtract(x, y), (lambda g, out: g, lambda g, out: -g)


@op(numpy=np.multiply, promote="common", rule=rules.product)
def mul(x: Any, y: Any) -> Any:
    """x * y."""
    return np.multiply(x, y), (lambda g, out: g * y, lambda g, out: g * x)


@op(numpy=np.divide, promote="float", rule=rules.quotient)
def div(x: Any, y: Any) -> Any:
    """x / y; of integers it is float32."""
    z = np.divide(x, y)
    return z, (lambda g, out: g / y, lambda g, out: -g * z / y)


@op(numpy=np.power, promote="common")
def pow(x: Any, y: Any) -> Any:
    """x ** y; the gradient to the exponent is 0 where x is 0."""
    z = x**y

    def to_base(g: Any, out: Any) -> Any:
        # x ** 0 is constant, also at x = 0 where x ** -1 is not finite.
        if isinstance(y, int | float):
            return g * (y * x ** (y - 1)) if y != 0 else _zero(g)
        zero = y == 0
        return g * np.where(zero, 0, y) * x ** np.where(zero, 1, y - 1)

    def to_exponent(g: Any, out: Any) -> Any:
        if isinstance(x, int | float):
            return g * z * (math.log(x) if x > 0 else 0.0 if x == 0 else math.nan)
        return g * z * np.log(np.where(x == 0, 1, x))

    return z, (to_base, to_exponent)


@op(numpy=np.remainder, promote="common")
def remainder(x: Any, y: Any) -> Any:
    """x - y * floor(x / y), which has the sign of y."""
    return np.remainder(x, y), (lambda g, out: g, lambda g, out: -g * np.floor(x / y))


@op(numpy=np.floor_divide, differentiable=False, promote="common")
def floor_divide(x: Any, y: Any) -> Any:
    """floor(x / y)."""
    return np.floor_divide(x, y), ()


@op(numpy=np.negative, rule=rules.linear)
def neg(x: Any) -> Any:
    """-x."""
    return np.negative(x), (lambda g, out: -g,)


# -- functions of one element


@op(numpy=np.exp, promote="float")
def exp(x: Any) -> Any:
    """e ** x."""
    y = np.exp(x)
    return y, (lambda g, out: g * y,)


@op(numpy=np.expm1, promote="float")
def expm1(x: Any) -> Any:
    """e ** x - 1, exact also for small x."""
    y = np.expm1(x)
    return y, (lambda g, out: g * (y + 1),)


@op(numpy=np.log, promote="float")
def log(x: Any) -> Any:
    """The natural logarithm."""
    return np.log(x), (lambda g, out: g / x,)


@op(numpy=np.log2, promote="float")
def log2(x: Any) -> Any:
    """The logarithm to base 2."""
    return np.log2(x), (lambda g, out: g / (x * math.log(2)),)


@op(numpy=np.log10, promote="float")
def log10(x: Any) -> Any:
    """The logarithm to base 10."""
    return np.log10(x), (lambda g, out: g / (x * math.log(10)),)


@op(numpy=np.log1p, promote="float")
def log1p(x: Any) -> Any:
    """log(1 + x), exact also for small x."""
    return np.log1p(x), (lambda g, out: g / (x + 1),)


@op(numpy=np.sqrt, promote="float")
def sqrt(x: Any) -> Any:
    """The square root."""
    y = np.sqrt(x)
    return y, (lambda g, out: g / (y * 2),)


@op(promote="float")
def rsqrt(x: Any) -> Any:
    """1 / sqrt(x)."""
    y = 1 / np.sqrt(x)
    return y, (lambda g, out: g * (y * y * y * -0.5),)


@op(numpy=np.reciprocal, promote="float")
def reciprocal(x: Any) -> Any:
    """1 / x."""
    y = np.reciprocal(x)
    return y, (lambda g, out: -g * y * y,)


@op(numpy=np.square)
def square(x: Any) -> Any:
    """x * x."""
    return np.square(x), (lambda g, out: g * (x * 2),)


@op(numpy=np.sin, promote="float")
def sin(x: Any) -> Any:
    """The sine of an angle in radians."""
    return np.sin(x), (lambda g, out: g * np.cos(x),)


@op(numpy=np.cos, promote="float")
def cos(x: Any) -> Any:
    """The cosine of an angle in radians."""
    return np.cos(x), (lambda g, out: -g * np.sin(x),)


@op(numpy=np.tan, promote="float")
def tan(x: Any) -> Any:
    """The tangent of an angle in radians."""
    y = np.tan(x)
    return y, (lambda g, out: g * (1 + y * y),)


@op(numpy=np.arctan, promote="float")
def atan(x: Any) -> Any:
    """The angle in radians, from -pi/2 to pi/2, whose tangent is x."""
    return np.arctan(x), (lambda g, out: g / (1 + x * x),)


@op(numpy=np.absolute)
def abs(x: Any) -> Any:
    """The absolute value; the gradient at 0 is 0."""
    return np.abs(x), (lambda g, out: g * np.sign(x),)


# -- steps: their gradient is 0


@op(numpy=np.sign)
def sign(x: Any) -> Any:
    """-1, 0 or 1."""
    return np.sign(x), (lambda g, out: _zero(g),)


@op()
def round_to(x: Any, *, decimals: int) -> Any:
    """The nearest number with so many decimals; halves go to the even one."""
    return np.round(x, decimals), (lambda g, out: _zero(g),)


@op(numpy=np.floor)
def floor(x: Any) -> Any:
    """The largest integer that is not above x."""
    return np.floor(x), (lambda g, out: _zero(g),)


@op(numpy=np.ceil)
def ceil(x: Any) -> Any:
    """The smallest integer that is not below x."""
    return np.ceil(x), (lambda g, out: _zero(g),)


def round(input: Any, decimals: int = 0) -> Any:
    """The nearest number with so many decimals; halves go to the even one."""
    return round_to(input, decimals=decimals)


def _zero(g: Any) -> Any:
    """Zeros like g, which may hold an infinity."""
    return np.where(False, g, 0)


# -- dtype


def cast(x: Any, dtype: Any) -> Any:
    """The elements in another dtype; the gradient comes back in this one."""
    return cast_to(x, dtype=as_dtype(dtype))


@op(rule=rules.cast)
def cast_to(x: Any, *, dtype: Any) -> Any:
    """The elements as NumPy's `dtype`; the walk turns the gradient back."""
    return x.astype(dtype), (lambda g, out: g,)


def _question(name: str, ufunc: np.ufunc, meaning: str) -> Callable[..., Any]:
    """The operation of this name that asks a NumPy function of one or two arrays."""

    def of_one(x: Any) -> Any:
        return ufunc(x), ()

    def of_two(x: Any, y: Any) -> Any:
        return ufunc(x, y), ()

    question = of_one if ufunc.nin == 1 else of_two
    question.__name__ = question.__qualname__ = name
    question.__doc__ = meaning
    return op(numpy=ufunc, differentiable=False)(question)


eq = _question("eq", np.equal, "Whether elements are equal.")


ne = _question("ne", np.not_equal, "Whether elements differ.")


lt = _question("lt", np.less, "Whether x < y.")


le = _question("le", np.less_equal, "Whether x <= y.")


gt = _question("gt", np.greater, "Whether x > y.")


ge = _question("ge", np.greater_equal, "Whether x >= y.")


isnan = _question("isnan", np.isnan, "Whether elements are not a number.")


isinf = _question("isinf", np.isinf, "Whether elements are infinite.")


isfinite = _question("isfinite", np.isfinite, "Whether elements are neither infinite nor NaN.")


logical_not = _question("logical_not", np.logical_not, "Whether elements are 0.")


logical_and = _question("logical_and", np.logical_and, "Whether both elements are not 0.")


logical_or = _question("logical_or", np.logical_or, "Whether at least one of two elements is not 0.")


logical_xor = _question("logical_xor", np.logical_xor, "Whether exactly one of two elements is not 0.")


bitwise_not = _question("bitwise_not", np.invert, "The bits of integers inverted; the opposite of bools.")


bitwise_and = _question("bitwise_and", np.bitwise_and, "The bits that both integers have; for bools: both.")


bitwise_or = _question("bitwise_or", np.bitwise_or, "The bits that one of two integers has; for bools: at least one.")


bitwise_xor = _question("bitwise_xor", np.bitwise_xor, "The bits in which two integers differ; for bools: exactly one.")


def equal(input: Any, other: Any) -> bool:
    """Whether two tensors have the same shape and the same elements."""
    return bool(np.array_equal(np.asarray(input), np.asarray(other)))


def allclose(input: Any, other: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> bool:
    """Whether all |input - other| <= atol + rtol * |other|."""
    return bool(np.allclose(np.asarray(input), np.asarray(other), rtol=rtol, atol=atol, equal_nan=equal_nan))
