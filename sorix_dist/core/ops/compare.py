"""Questions whose answer is true or false: comparisons, logic, and whether all or any elements are true."""

from __future__ import annotations

from typing import Any

import numpy as np

from sorix_dist.core import kept_rows
from sorix_dist.core.op import OF_NUMPY, op
from sorix_dist.core.ops.axes import axes_of


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


@op(numpy=np.isnan, differentiable=False)
def isnan(x: Any) -> Any:
    """Whether elements are not a number."""
    return np.isnan(x), ()


@op(numpy=np.isinf, differentiable=False)
def isinf(x: Any) -> Any:
    """Whether elements are infinite."""
    return np.isinf(x), ()


@op(numpy=np.isfinite, differentiable=False)
def isfinite(x: Any) -> Any:
    """Whether elements are neither infinite nor NaN."""
    return np.isfinite(x), ()


@op(numpy=np.logical_not, differentiable=False)
def logical_not(x: Any) -> Any:
    """Whether elements are 0."""
    return np.logical_not(x), ()


@op(numpy=np.logical_and, differentiable=False)
def logical_and(x: Any, y: Any) -> Any:
    """Whether both elements are not 0."""
    return np.logical_and(x, y), ()


@op(numpy=np.logical_or, differentiable=False)
def logical_or(x: Any, y: Any) -> Any:
    """Whether at least one of two elements is not 0."""
    return np.logical_or(x, y), ()


@op(numpy=np.logical_xor, differentiable=False)
def logical_xor(x: Any, y: Any) -> Any:
    """Whether exactly one of two elements is not 0."""
    return np.logical_xor(x, y), ()


@op(numpy=np.invert, differentiable=False)
def bitwise_not(x: Any) -> Any:
    """The bits of integers inverted; the opposite of bools."""
    return np.invert(x), ()


@op(numpy=np.bitwise_and, differentiable=False)
def bitwise_and(x: Any, y: Any) -> Any:
    """The bits that both integers have; for bools: both."""
    return np.bitwise_and(x, y), ()


@op(numpy=np.bitwise_or, differentiable=False)
def bitwise_or(x: Any, y: Any) -> Any:
    """The bits that one of two integers has; for bools: at least one."""
    return np.bitwise_or(x, y), ()


@op(numpy=np.bitwise_xor, differentiable=False)
def bitwise_xor(x: Any, y: Any) -> Any:
    """The bits in which two integers differ; for bools: exactly one."""
    return np.bitwise_xor(x, y), ()


@op(differentiable=False, keeps_rows=kept_rows.along_axis)
def all_over(x: Any, *, axis: Any, keepdims: Any) -> Any:
    """Whether all elements along `axis` (None: all of them) are not 0."""
    return np.all(x, axis=axis, keepdims=keepdims), ()


@op(differentiable=False, keeps_rows=kept_rows.along_axis)
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


OF_NUMPY[np.all] = all
OF_NUMPY[np.any] = any
