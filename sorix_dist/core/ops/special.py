"""Functions of single elements beyond arithmetic: angles, hyperbolic functions, the error function."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from sorix_dist.core.op import op
from sorix_dist.core.ops.elementwise import check_divisor, unary


def _from_math(name: str) -> Callable[[Any], Any]:
    """A function of SciPy, or where that is missing the slower one of Python's `math`, in the dtype of its argument."""

    def function(x: Any) -> Any:
        try:
            of_array = getattr(import_module("scipy.special"), name)
        except ImportError:
            of_array = np.frompyfunc(getattr(math, name), 1, 1)
        return np.asarray(of_array(x)).astype(x.dtype)

    return function


_BELL = 2 / math.sqrt(math.pi)

asin = unary("asin", np.arcsin, "The angle whose sine is x.", lambda g, x: g / np.sqrt(1 - x * x))
acos = unary("acos", np.arccos, "The angle whose cosine is x.", lambda g, x: -g / np.sqrt(1 - x * x))
sinh = unary("sinh", np.sinh, "The hyperbolic sine.", lambda g, x: g * np.cosh(x))
cosh = unary("cosh", np.cosh, "The hyperbolic cosine.", lambda g, x: g * np.sinh(x))
asinh = unary("asinh", np.arcsinh, "The inverse of sinh.", lambda g, x: g / np.sqrt(x * x + 1))
acosh = unary("acosh", np.arccosh, "The inverse of cosh.", lambda g, x: g / np.sqrt(x * x - 1))
atanh = unary("atanh", np.arctanh, "The inverse of tanh.", lambda g, x: g / (1 - x * x))
exp2 = unary("exp2", np.exp2, "2 ** x.", lambda g, y: g * y * math.log(2))
erf = unary(
    "erf", _from_math("erf"), "2 / sqrt(pi) times the integral of exp(-t²) from 0 to x.",
    lambda g, x: g * (np.exp(-x * x) * _BELL),
)  # fmt: skip
erfc = unary("erfc", _from_math("erfc"), "1 - erf(x), exact for large x.", lambda g, x: g * (np.exp(-x * x) * -_BELL))
trunc = unary("trunc", np.trunc, "The integer part, rounded towards 0; the gradient is 0.", lambda g, y: g * 0, None)


@op(numpy=np.arctan2, promote="float")
def atan2(x: Any, y: Any) -> Any:
    """The angle in radians, from -pi to pi, of the point with the ordinate x and the abscissa y."""

    return np.arctan2(x, y), (
        lambda g, out: g * y / _or_one(x * x + y * y),
        lambda g, out: -g * x / _or_one(x * x + y * y),
    )


def _or_one(squares: Any) -> Any:
    return np.where(squares == 0, 1, squares)


@op(numpy=np.fmod, promote="common")
def fmod(x: Any, y: Any) -> Any:
    """x - y * trunc(x / y), which has the sign of x."""
    return np.fmod(x, y), (lambda g, out: g, lambda g, out: -g * np.trunc(x / y))


@op(numpy=np.hypot, promote="float")
def hypot(x: Any, y: Any) -> Any:
    """The length of the hypotenuse over two legs."""
    z = np.hypot(x, y)
    return z, (lambda g, out: g * x / z, lambda g, out: g * y / z)


@op(numpy=np.logaddexp, promote="float")
def logaddexp(x: Any, y: Any) -> Any:
    """log(exp(x) + exp(y)), without overflow."""
    return np.logaddexp(x, y), (
        lambda g, out: g * (0.5 + 0.5 * np.tanh((x - y) * 0.5)),
        lambda g, out: g * (0.5 + 0.5 * np.tanh((y - x) * 0.5)),
    )


@op(numpy=np.left_shift, differentiable=False, promote="common")
def bitwise_left_shift(x: Any, y: Any) -> Any:
    """x * 2 ** y of integers."""
    return np.left_shift(x, y), ()


@op(numpy=np.right_shift, differentiable=False, promote="common")
def bitwise_right_shift(x: Any, y: Any) -> Any:
    """floor(x / 2 ** y) of integers."""
    return np.right_shift(x, y), ()


@op(promote="common")
def rounded_quotient(x: Any, y: Any, *, mode: str) -> Any:
    """x / y rounded down ("floor") or towards 0 ("trunc"), in the dtype of both; the gradient is 0."""
    if mode not in ("floor", "trunc"):
        raise ValueError(f"div: rounding_mode must be None, 'floor' or 'trunc', got {mode!r}")
    check_divisor("div", x, y)
    down = np.floor_divide(x, y)
    if mode == "trunc":
        whole = down + ((np.remainder(x, y) != 0) & ((np.asarray(x) < 0) != (np.asarray(y) < 0)))
        down = whole if np.asarray(down).dtype.kind != "f" else np.trunc(x / y)
    return down, (lambda g, out: g * 0, lambda g, out: g * 0)
