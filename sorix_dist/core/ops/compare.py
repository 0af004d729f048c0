"""Questions whose answer is true or false: comparisons, logic, and whether all or any elements are true."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sorix_dist.core import rules
from sorix_dist.core.op import op
from sorix_dist.core.ops.axes import axes_of


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


@op(differentiable=False, rule=rules.along(None))
def all_over(x: Any, *, axis: Any, keepdims: Any) -> Any:
    """Whether all elements along `axis` (None: all of them) are not 0."""
    return np.all(x, axis=axis, keepdims=keepdims), ()


@op(differentiable=False, rule=rules.along(None))
def any_over(x: Any, *, axis: Any, keepdims: Any) -> Any:
    """Whether an element along `axis` (None: of all) is not 0."""
    return np.any(x, axis=axis, keepdims=keepdims), ()


def all(input: Any, dim: Any = None, keepdim: bool = False, *, axis: Any = None, keepdims: Any = False) -> Any:
    """Whether all elements, along `dim` (or `axis`) if given, are not 0."""
    return all_over(input, axis=axes_of("all", input, dim, axis), keepdims=keepdim or keepdims)


def any(input: Any, dim: Any = None, keepdim: bool = False, *, axis: Any = None, keepdims: Any = False) -> Any:
    """Whether at least one element, along `dim` (or `axis`) if given, is not 0."""
    return any_over(input, axis=axes_of("any", input, dim, axis), keepdims=keepdim or keepdims)


def equal(input: Any, other: Any) -> bool:
    """Whether two tensors have the same shape and the same elements."""
    return bool(np.array_equal(np.asarray(input), np.asarray(other)))


def allclose(input: Any, other: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> bool:
    """Whether all |input - other| <= atol + rtol * |other|."""
    return bool(np.allclose(np.asarray(input), np.asarray(other), rtol=rtol, atol=atol, equal_nan=equal_nan))
