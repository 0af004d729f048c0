"""Arithmetic, functions and comparisons of single elements, with broadcasting."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, wraps
from importlib import import_module
from typing import Any, Literal, TypeVar

import numpy as np

from sorix_dist.core import rules
from sorix_dist.core.arguments import named, one_of
from sorix_dist.core.dtype import as_dtype
from sorix_dist.core.op import OF_NUMPY, op
from sorix_dist.core.tensor import array_of

Function = TypeVar("Function", bound=Callable[..., Any])

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
    """x ** y; the gradient to the exponent is 0 where x is 0, and -inf if y is negative there."""
    z = x**y
    if z.dtype.char == "b" and x.dtype == np.bool_:  # NumPy's int8 of bools
        z = z.astype(np.bool_)

    def to_base(g: Any, out: Any) -> Any:
        # x ** 0 is constant, also at x = 0 where x ** -1 is not finite.
        if isinstance(y, int | float):
            return g * (y * x ** (y - 1)) if y != 0 else _zero(g)
        zero = y == 0
        return g * np.where(zero, 0, y * x ** np.where(zero, 1, y - 1))

    def to_exponent(g: Any, out: Any) -> Any:
        if isinstance(x, int | float) and x:
            return g * z * (math.log(x) if x > 0 else math.nan)
        zero = x == 0
        return g * z * np.where(zero & (y < 0), -math.inf, np.log(np.where(zero, 1, x)))

    return z, (to_base, to_exponent)


@op(promote="float")
def power(x: Any, *, exponent: float) -> Any:
    """x ** exponent of numbers >= 0; the gradient at 0 is 0."""
    with np.errstate(divide="ignore"):
        z = np.power(x, exponent)

    def to_x(g: Any, out: Any) -> Any:
        return g * np.where(x == 0, 0, np.where(x == 0, 1, x) ** (exponent - 1) * exponent)

    return z, (to_x,)


@op(numpy=np.remainder, promote="common")
def remainder(x: Any, y: Any) -> Any:
    """x - y * floor(x / y), which has the sign of y."""
    check_divisor("remainder", x, y)
    return np.remainder(x, y), (lambda g, out: g, lambda g, out: -g * np.floor_divide(x, y))


@op(numpy=np.floor_divide, differentiable=False, promote="common")
def floor_divide(x: Any, y: Any) -> Any:
    """floor(x / y)."""
    check_divisor("floor_divide", x, y)
    return np.floor_divide(x, y), ()


def check_divisor(name: str, x: Any, y: Any) -> None:
    """ZeroDivisionError if integers would be divided by 0."""
    if all(np.asarray(a).dtype.kind != "f" for a in (x, y)) and not np.all(y):
        raise ZeroDivisionError(f"{name}: integers can't be divided by 0; make them floats for inf or NaN")


@op(numpy=np.negative, rule=rules.linear)
def neg(x: Any) -> Any:
    """-x."""
    return np.negative(x), (lambda g, out: -g,)


# -- functions of one element


def unary(
    name: str,
    compute: Callable[[Any], Any],
    meaning: str,
    gradient: Callable[[Any, Any], Any],
    promote: Literal["float"] | None = "float",
) -> Any:
    """An operation of one element.

    gradient: of (g, x) or (g, y), where g is the gradient of the result, x the input and y the result. An operation
    refers to the one of the two that the second parameter names, so that the other's memory is free.
    """

    def of_input(x: Any) -> Any:
        return compute(x), (lambda g, out: gradient(g, x),)

    def of_result(x: Any) -> Any:
        y = compute(x)
        return y, (lambda g, out: gradient(g, y),)

    function = of_input if gradient.__code__.co_varnames[1] == "x" else of_result
    ufunc = compute if isinstance(compute, np.ufunc) else None
    return op(numpy=ufunc, promote=promote)(named(function, name, meaning))


def _zero(g: Any) -> Any:
    """Zeros like g, also if g has infinities."""
    return np.where(False, g, 0)


def _without_bools(x: Any) -> Any:
    return x.astype(np.int64) if x.dtype == np.bool_ else x


def _sign(x: Any) -> Any:
    return np.sign(np.where(np.isnan(x), 0, x)) if x.dtype.kind == "f" else x if x.dtype == np.bool_ else np.sign(x)


exp = unary("exp", np.exp, "e ** x.", lambda g, y: g * y)
expm1 = unary("expm1", np.expm1, "e ** x - 1, exact also for small x.", lambda g, y: g * (y + 1))
log = unary("log", np.log, "The natural logarithm.", lambda g, x: g / x)
log2 = unary("log2", np.log2, "The logarithm to base 2.", lambda g, x: g / (x * math.log(2)))
log10 = unary("log10", np.log10, "The logarithm to base 10.", lambda g, x: g / (x * math.log(10)))
log1p = unary("log1p", np.log1p, "log(1 + x), exact also for small x.", lambda g, x: g / (x + 1))
sqrt = unary("sqrt", np.sqrt, "The square root.", lambda g, y: g / (y * 2))
root = unary(
    "root", lambda x: np.sqrt(x), "The square root, whose gradient at 0 is 0.",
    lambda g, y: g / np.where(y == 0, math.inf, y * 2),
)  # fmt: skip
rsqrt = unary("rsqrt", lambda x: 1 / np.sqrt(x), "1 / sqrt(x).", lambda g, y: g * (y * y * y * -0.5))
reciprocal = unary("reciprocal", np.reciprocal, "1 / x.", lambda g, y: -g * y * y)
square = unary("square", lambda x: np.square(_without_bools(x)), "x * x.", lambda g, x: g * (x * 2), None)
sin = unary("sin", np.sin, "The sine of an angle in radians.", lambda g, x: g * np.cos(x))
cos = unary("cos", np.cos, "The cosine of an angle in radians.", lambda g, x: -g * np.sin(x))
tan = unary("tan", np.tan, "The tangent of an angle in radians.", lambda g, y: g * (1 + y * y))
atan = unary("atan", np.arctan, "The angle from -pi/2 to pi/2 whose tangent is x.", lambda g, x: g / (1 + x * x))
abs = unary("abs", np.absolute, "The absolute value; the gradient at 0 is 0.", lambda g, x: g * np.sign(x), None)
sign = unary("sign", lambda x: _sign(x), "-1, 0 or 1, and 0 of NaN; the gradient is 0.", lambda g, y: _zero(g), None)
floor = unary("floor", np.floor, "The largest integer <= x; the gradient is 0.", lambda g, y: _zero(g), None)
ceil = unary("ceil", np.ceil, "The smallest integer >= x; the gradient is 0.", lambda g, y: _zero(g), None)


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

OF_NUMPY |= {np.square: square, np.sign: sign}


@op(called="round")
def round_to(x: Any, *, decimals: int) -> Any:
    """The nearest number with `decimals` decimals; halves go to the even one; the gradient is 0."""
    return np.round(_without_bools(x), decimals), (lambda g, out: _zero(g),)


def round(input: Any, decimals: int = 0) -> Any:
    """The nearest number with `decimals` decimals; halves go to the even one."""
    return round_to(input, decimals=decimals)


def cast(x: Any, dtype: Any) -> Any:
    """The elements in another dtype; the gradient comes back in this one, from floats."""
    kind = as_dtype(dtype)
    return (cast_to if kind.kind == "f" else cut_to)(x, dtype=kind)


def half_in_float32(function: Function) -> Function:
    """Makes a function compute in float32 for float16, whose sums and products have too few digits."""

    def widened(x: Any) -> Any:
        half = getattr(array_of(x), "dtype", None) == np.float16
        return cast(x, np.float32) if half else x

    @wraps(function)
    def computed(x: Any, *others: Any, **options: Any) -> Any:
        wide = widened(x)
        if wide is x:
            return function(x, *others, **options)
        wider = {name: widened(option) for name, option in options.items()}
        return cast(function(wide, *map(widened, others), **wider), np.float16)

    return computed  # type: ignore[return-value]


@op(rule=rules.cast, called="astype")
def cast_to(x: Any, *, dtype: Any) -> Any:
    """The elements as NumPy's `dtype`; the walk turns the gradient back."""
    return x.astype(dtype), (lambda g, out: g,)


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


@op(promote="common")
def rounded_quotient(x: Any, y: Any, *, mode: str) -> Any:
    """x / y rounded down ("floor") or towards 0 ("trunc"), in the dtype of both; the gradient is 0."""
    one_of("div: rounding_mode", mode, None, "floor", "trunc")
    check_divisor("div", x, y)
    down = np.floor_divide(x, y)
    if mode == "trunc":
        whole = down + ((np.remainder(x, y) != 0) & ((np.asarray(x) < 0) != (np.asarray(y) < 0)))
        down = whole if np.asarray(down).dtype.kind != "f" else np.trunc(x / y)
    return down, (lambda g, out: g * 0, lambda g, out: g * 0)


# -- without a gradient


@op(rule=rules.cast, called="astype", differentiable=False)
def cut_to(x: Any, *, dtype: Any) -> Any:
    """The elements as integers or bools of NumPy's `dtype`."""
    return x.astype(dtype), ()


def _without_gradient(name: str, ufunc: np.ufunc, meaning: str, **options: Any) -> Callable[..., Any]:
    """An operation of a NumPy function of one or two elements."""

    def of_one(x: Any) -> Any:
        return ufunc(x), ()

    def of_two(x: Any, y: Any) -> Any:
        return ufunc(x, y), ()

    function = of_one if ufunc.nin == 1 else of_two
    return op(numpy=ufunc, differentiable=False, **options)(named(function, name, meaning))


eq = _without_gradient("eq", np.equal, "Whether elements are equal.")
ne = _without_gradient("ne", np.not_equal, "Whether elements differ.")
lt = _without_gradient("lt", np.less, "Whether x < y.")
le = _without_gradient("le", np.less_equal, "Whether x <= y.")
gt = _without_gradient("gt", np.greater, "Whether x > y.")
ge = _without_gradient("ge", np.greater_equal, "Whether x >= y.")
isnan = _without_gradient("isnan", np.isnan, "Whether elements are not a number.")
isinf = _without_gradient("isinf", np.isinf, "Whether elements are infinite.")
isfinite = _without_gradient("isfinite", np.isfinite, "Whether elements are neither infinite nor NaN.")
logical_not = _without_gradient("logical_not", np.logical_not, "Whether elements are 0.")
logical_and = _without_gradient("logical_and", np.logical_and, "Whether both elements are not 0.")
logical_or = _without_gradient("logical_or", np.logical_or, "Whether at least one of two elements is not 0.")
logical_xor = _without_gradient("logical_xor", np.logical_xor, "Whether exactly one of two elements is not 0.")
bitwise_not = _without_gradient("bitwise_not", np.invert, "The bits of integers inverted; the opposite of bools.")
_of_integers = partial(_without_gradient, promote="common")
bitwise_and = _of_integers("bitwise_and", np.bitwise_and, "The bits that both integers have; of bools: and.")
bitwise_or = _of_integers("bitwise_or", np.bitwise_or, "The bits that one of two integers has; of bools: or.")
bitwise_xor = _of_integers("bitwise_xor", np.bitwise_xor, "The bits in which integers differ; of bools: xor.")
bitwise_left_shift = _of_integers("bitwise_left_shift", np.left_shift, "x * 2 ** y of integers.")
bitwise_right_shift = _of_integers("bitwise_right_shift", np.right_shift, "floor(x / 2 ** y) of integers.")


def equal(input: Any, other: Any) -> bool:
    """Whether two tensors have the same shape and the same elements."""
    first, second = (np.asarray(rules.whole(x, "equal")) for x in (input, other))
    return bool(np.array_equal(first, second))


def allclose(input: Any, other: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> bool:
    """Whether all |input - other| <= atol + rtol * |other|."""
    first, second = (np.asarray(rules.whole(x, "allclose")) for x in (input, other))
    return bool(np.allclose(first, second, rtol=rtol, atol=atol, equal_nan=equal_nan))
