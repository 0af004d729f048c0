"""The functions on tensors that users find at the top level.

Mathematical functions take a tensor or an array (or numbers and lists, as arrays), and return what they were given: a
tensor for a tensor, else an array.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from sorix_dist.core import create
from sorix_dist.core.arguments import named
from sorix_dist.core.create import *  # noqa: F403
from sorix_dist.core.keywords import publish
from sorix_dist.core.op import as_operand
from sorix_dist.core.ops import activation, choose, indexing, join, matrix, reduce, shape
from sorix_dist.core.ops import elementwise as e
from sorix_dist.core.tensor import Tensor, array_of
from sorix_dist.core.typed import LikeInput


def _like_input(function: Callable[..., Any]) -> LikeInput:
    """The function, with an array as answer if no tensor was given."""

    @wraps(function)
    def maths(*inputs: Any, **options: Any) -> Any:
        for x in (*inputs, *options.values()):
            if isinstance(x, Tensor):
                return function(*inputs, **options)
            if function is matrix.einsum and isinstance(x, list | tuple) and [y for y in x if isinstance(y, Tensor)]:
                return function(*inputs, **options)
        if inputs and isinstance(inputs[0], int | float | list | tuple):
            inputs = (as_operand(inputs[0]), *inputs[1:])
        answer = function(*inputs, **options)
        if isinstance(answer, tuple):
            return type(answer)(*map(np.asarray, answer))
        return array_of(answer)

    return maths


def _all_like_input(*functions: Callable[..., Any]) -> list[LikeInput]:
    return [_like_input(function) for function in functions]


def where(condition: Any, x: Any = None, y: Any = None) -> Any:
    """Elements of x where the condition, of bools, is true, of y elsewhere; all three broadcast.

    Without x and y the indices of the elements that are not 0, a vector for each dimension.
    """
    if x is None and y is None:
        from sorix_dist.core.statistics import nonzero  # which needs this module

        return nonzero(condition, as_tuple=True)
    return choose.where(condition, x, y)


def _arg(function: Callable[..., Any]) -> LikeInput:
    """argmax or argmin with sorix's defaults."""

    def arg(X: Any, axis: Any = 1, dim: Any = None, keepdims: bool = True, *, keepdim: bool | None = None) -> Any:
        if isinstance(dim, bool):
            raise TypeError(f"{function.__name__}: give keepdim by keyword: its position means dim here")
        at = axis if dim is None else dim
        if at == 1 and np.ndim(X) == 1:
            at = 0  # the only dimension of a vector
        return function(X, at, keepdims if keepdim is None else keepdim)

    meaning = f"{function.__doc__}\n\n    Along the second dimension by default, which stays with size 1."
    return _like_input(named(arg, function.__name__, meaning))


def _alike(*functions: Any) -> tuple[LikeInput, ...]:
    """The functions, which give a tensor for tensors by themselves."""
    return functions


# shape
cat, stack, pad, clone = _alike(join.cat, join.stack, join.pad, shape.clone)
split, chunk, unbind = join.split, join.chunk, join.unbind
reshape, flatten, squeeze, unsqueeze = _alike(shape.reshape, shape.flatten, shape.squeeze, shape.unsqueeze)
transpose, permute, movedim, t = _alike(shape.swapaxes, shape.permute, shape.movedim, shape.t)
repeat, broadcast_to, flip, roll = _alike(shape.repeat, shape.broadcast_to, shape.flip, shape.roll)

# choice and order
masked_fill, gather, take_along_dim = _alike(choose.masked_fill, indexing.gather, indexing.take_along_dim)
index_select, masked_select = _alike(indexing.index_select, indexing.masked_select)
scatter_add, one_hot, diag = _alike(indexing.scatter_add, indexing.one_hot, indexing.diag)
sort, argsort, topk = choose.sort, choose.argsort, choose.topk
tril, triu = _all_like_input(choose.tril, choose.triu)

# mathematics
add, sub, mul, div, pow = _all_like_input(e.add, e.sub, e.mul, e.div, e.pow)
remainder, floor_divide, neg = _all_like_input(e.remainder, e.floor_divide, e.neg)
sin, cos, tan, atan, tanh = _all_like_input(e.sin, e.cos, e.tan, e.atan, activation.tanh)
exp, expm1, log, log1p = _all_like_input(e.exp, e.expm1, e.log, e.log1p)
log2, log10, sqrt, rsqrt = _all_like_input(e.log2, e.log10, e.sqrt, e.rsqrt)
reciprocal, square, sign = _all_like_input(e.reciprocal, e.square, e.sign)
asin, acos, sinh, cosh, asinh = _all_like_input(e.asin, e.acos, e.sinh, e.cosh, e.asinh)
acosh, atanh, exp2 = _all_like_input(e.acosh, e.atanh, e.exp2)
erf, erfc, trunc, fmod = _all_like_input(e.erf, e.erfc, e.trunc, e.fmod)
atan2, hypot, logaddexp = _all_like_input(e.atan2, e.hypot, e.logaddexp)
arcsin, arccos, arctan, arctan2, arcsinh, arccosh, arctanh = asin, acos, atan, atan2, asinh, acosh, atanh
multiply, divide, true_divide, subtract, negative, fix = mul, div, div, sub, neg, trunc
abs = absolute = _like_input(e.abs)
positive = _like_input(shape.alias)
round, floor, ceil = _all_like_input(e.round, e.floor, e.ceil)
maximum, minimum, clamp = _all_like_input(choose.maximum, choose.minimum, choose.clamp)
clip = clamp
sigmoid, relu = _all_like_input(activation.sigmoid, activation.relu)
softmax, log_softmax, logsumexp = _all_like_input(activation.softmax, activation.log_softmax, activation.logsumexp)
matmul, outer, einsum = _all_like_input(matrix.matmul, matrix.outer, matrix.einsum)
sum, mean, var, std = _all_like_input(reduce.sum, reduce.mean, reduce.var, reduce.std)
prod, cumsum, norm = _all_like_input(reduce.prod, reduce.cumsum, reduce.norm)
max, min, amax, amin = _all_like_input(choose.max, choose.min, choose.amax, choose.amin)
argmax, argmin = _arg(choose.argmax), _arg(choose.argmin)

# questions
eq, ne, lt, le, gt, ge = _all_like_input(e.eq, e.ne, e.lt, e.le, e.gt, e.ge)
isnan, isinf, isfinite = _all_like_input(e.isnan, e.isinf, e.isfinite)
logical_not, logical_and = _all_like_input(e.logical_not, e.logical_and)
logical_or, logical_xor = _all_like_input(e.logical_or, e.logical_xor)
bitwise_not, bitwise_and = _all_like_input(e.bitwise_not, e.bitwise_and)
bitwise_or, bitwise_xor = _all_like_input(e.bitwise_or, e.bitwise_xor)
bitwise_left_shift, bitwise_right_shift = _all_like_input(e.bitwise_left_shift, e.bitwise_right_shift)
all, any = _all_like_input(reduce.all, reduce.any)
equal, allclose = e.equal, e.allclose
greater, greater_equal, less, less_equal, not_equal = gt, ge, lt, le, ne


def numel(input: Tensor) -> Any:
    """The number of elements, as `input.numel()`."""
    return input.numel


def is_floating_point(input: Tensor) -> bool:
    """Whether the elements are of a type that can have gradients."""
    return input.is_floating_point()


def is_tensor(obj: Any) -> bool:
    """Whether `obj` is a tensor."""
    return isinstance(obj, Tensor)


__all__ = [
    *create.__all__,
    # shape
    "cat", "stack", "reshape", "transpose", "squeeze", "unsqueeze", "flatten", "t", "unbind", "split", "chunk",
    "repeat", "permute", "movedim", "broadcast_to", "flip", "roll", "pad", "clone",
    # choice and order
    "where", "gather", "take_along_dim", "index_select", "masked_select", "masked_fill", "scatter_add", "diag",
    "one_hot", "tril", "triu", "sort", "argsort", "topk",
    # mathematics
    "add", "sub", "mul", "div", "matmul", "pow", "remainder", "floor_divide", "neg", "sin", "cos", "tan",
    "atan", "tanh", "exp", "expm1", "log", "log1p", "log2", "log10", "sqrt", "rsqrt", "reciprocal", "square",
    "abs", "absolute", "sign", "round", "floor", "ceil", "clamp", "maximum", "minimum", "sigmoid", "relu",
    "softmax", "log_softmax", "logsumexp", "sum", "mean", "var", "std", "prod", "cumsum", "norm", "max", "min",
    "amax", "amin", "argmax", "argmin", "all", "any", "outer", "einsum",
    "asin", "acos", "sinh", "cosh", "asinh", "acosh", "atanh", "exp2", "erf", "erfc", "trunc", "fix", "atan2", "fmod",
    "hypot", "logaddexp", "bitwise_not", "bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_left_shift",
    "bitwise_right_shift", "arcsin", "arccos", "arctan", "arctan2", "arcsinh", "arccosh", "arctanh", "multiply",
    "divide", "true_divide", "subtract", "negative", "positive", "clip",
    # questions
    "eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "isfinite", "logical_not", "logical_and",
    "logical_or", "logical_xor", "equal", "allclose", "greater", "greater_equal", "less", "less_equal", "not_equal",
    "is_tensor", "is_floating_point", "numel",
]  # fmt: skip
publish(globals(), __all__)
