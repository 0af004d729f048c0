"""The functions on tensors that users find at the top level.

Mathematical functions take a tensor or an array (or numbers and lists, as arrays) and answer in kind.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from sorix_dist.core.create import (
    arange,
    as_tensor,
    bernoulli,
    empty,
    empty_like,
    eye,
    from_dlpack,
    from_numpy,
    full,
    full_like,
    linspace,
    logspace,
    ones,
    ones_like,
    rand,
    rand_like,
    randint,
    randn,
    randn_like,
    randperm,
    tensor,
    zeros,
    zeros_like,
)
from sorix_dist.core.keywords import with_torch_keywords
from sorix_dist.core.op import as_operand
from sorix_dist.core.ops import activation, choose, reduce, special
from sorix_dist.core.ops import elementwise as e
from sorix_dist.core.ops.choose import argsort, sort, topk
from sorix_dist.core.ops.indexing import (
    diag,
    gather,
    index_select,
    masked_select,
    one_hot,
    scatter_add,
    take_along_dim,
)
from sorix_dist.core.ops.join import cat, chunk, pad, split, stack, unbind
from sorix_dist.core.ops.matrix import einsum as _einsum
from sorix_dist.core.ops.matrix import matmul as _matmul
from sorix_dist.core.ops.matrix import outer as _outer
from sorix_dist.core.ops.shape import (
    broadcast_to,
    clone,
    flatten,
    flip,
    movedim,
    permute,
    repeat,
    reshape,
    roll,
    squeeze,
    t,
    unsqueeze,
)
from sorix_dist.core.ops.shape import swapaxes as transpose
from sorix_dist.core.tensor import Tensor


def answering_in_kind(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose answer is an array if no tensor was given."""

    @wraps(function)
    def maths(*inputs: Any, **options: Any) -> Any:
        for x in (*inputs, *options.values()):
            if isinstance(x, Tensor):
                return function(*inputs, **options)
            if isinstance(x, list | tuple) and function is _einsum and [part for part in x if isinstance(part, Tensor)]:
                return function(*inputs, **options)
        if inputs and isinstance(inputs[0], int | float | list | tuple):
            inputs = (as_operand(inputs[0]), *inputs[1:])
        answer = function(*inputs, **options)
        if isinstance(answer, tuple):
            return type(answer)(*map(np.asarray, answer))
        return answer.array if isinstance(answer, Tensor) else answer

    return maths


def _in_kind(*functions: Callable[..., Any]) -> list[Callable[..., Any]]:
    return [answering_in_kind(function) for function in functions]


def _place(function: Callable[..., Any]) -> Callable[..., Any]:
    def place(X: Any, axis: Any = 1, dim: Any = None, keepdims: bool = True, *, keepdim: bool | None = None) -> Any:
        at = axis if dim is None else dim
        if at == 1 and np.ndim(X) == 1:
            at = 0  # the only dimension of a vector
        return function(X, at, keepdims if keepdim is None else keepdim)

    place.__name__ = place.__qualname__ = function.__name__
    place.__doc__ = f"{function.__doc__}\n\n    Along the second dimension by default, which stays with size 1."
    return answering_in_kind(place)


add, sub, mul, div, pow = _in_kind(e.add, e.sub, e.mul, e.div, e.pow)
remainder, floor_divide, neg = _in_kind(e.remainder, e.floor_divide, e.neg)
sin, cos, tan, atan, tanh = _in_kind(e.sin, e.cos, e.tan, e.atan, activation.tanh)
exp, expm1, log, log1p = _in_kind(e.exp, e.expm1, e.log, e.log1p)
log2, log10, sqrt, rsqrt = _in_kind(e.log2, e.log10, e.sqrt, e.rsqrt)
reciprocal, square, sign = _in_kind(e.reciprocal, e.square, e.sign)
asin, acos, sinh, cosh, asinh = _in_kind(special.asin, special.acos, special.sinh, special.cosh, special.asinh)
acosh, atanh, exp2, erf, erfc = _in_kind(special.acosh, special.atanh, special.exp2, special.erf, special.erfc)
trunc, atan2, fmod, hypot, logaddexp = _in_kind(
    special.trunc, special.atan2, special.fmod, special.hypot, special.logaddexp
)
bitwise_not, bitwise_and, bitwise_or, bitwise_xor = _in_kind(e.bitwise_not, e.bitwise_and, e.bitwise_or, e.bitwise_xor)
bitwise_left_shift, bitwise_right_shift = _in_kind(special.bitwise_left_shift, special.bitwise_right_shift)
arcsin, arccos, arctan, arctan2, arcsinh, arccosh, arctanh = asin, acos, atan, atan2, asinh, acosh, atanh
multiply, divide, true_divide, subtract, negative, fix = mul, div, div, sub, neg, trunc
abs = absolute = answering_in_kind(e.abs)
round, floor, ceil = _in_kind(e.round, e.floor, e.ceil)
sigmoid, relu = _in_kind(activation.sigmoid, activation.relu)
softmax, log_softmax, logsumexp = _in_kind(activation.softmax, activation.log_softmax, activation.logsumexp)
matmul, outer, einsum = _in_kind(_matmul, _outer, _einsum)
sum, mean, var, std = _in_kind(reduce.sum, reduce.mean, reduce.var, reduce.std)
prod, cumsum, norm = _in_kind(reduce.prod, reduce.cumsum, reduce.norm)
max, min, amax, amin = _in_kind(choose.max, choose.min, choose.amax, choose.amin)
argmax, argmin = _place(choose.argmax), _place(choose.argmin)
maximum, minimum, clamp = _in_kind(choose.maximum, choose.minimum, choose.clamp)
clip = clamp
tril, triu = _in_kind(choose.tril, choose.triu)
where, masked_fill = choose.where, choose.masked_fill
eq, ne, lt = _in_kind(e.eq, e.ne, e.lt)
le, gt, ge = _in_kind(e.le, e.gt, e.ge)
isnan, isinf, isfinite = _in_kind(e.isnan, e.isinf, e.isfinite)
logical_not, logical_and = _in_kind(e.logical_not, e.logical_and)
logical_or, logical_xor = _in_kind(e.logical_or, e.logical_xor)
all, any = _in_kind(reduce.all, reduce.any)
equal, allclose = e.equal, e.allclose
greater, greater_equal, less, less_equal, not_equal = gt, ge, lt, le, ne


def is_tensor(obj: Any) -> bool:
    """Whether `obj` is a tensor."""
    return isinstance(obj, Tensor)


__all__ = [
    # creation
    "tensor", "as_tensor", "from_numpy", "from_dlpack", "zeros", "ones", "empty", "full", "eye", "diag", "arange",
    "linspace", "logspace", "rand", "randn", "randint", "randperm", "zeros_like", "ones_like", "empty_like",
    "full_like", "rand_like", "randn_like", "bernoulli",
    # shape
    "cat", "stack", "reshape", "transpose", "squeeze", "unsqueeze", "flatten", "t", "unbind", "split", "chunk",
    "repeat", "permute", "movedim", "broadcast_to", "flip", "roll", "pad", "clone",
    # choice and order
    "where", "gather", "take_along_dim", "index_select", "masked_select", "masked_fill", "scatter_add",
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
    "divide", "true_divide", "subtract", "negative", "clip",
    # questions
    "eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "isfinite", "logical_not", "logical_and",
    "logical_or", "logical_xor", "equal", "allclose", "greater", "greater_equal", "less", "less_equal", "not_equal",
    "is_tensor",
]  # fmt: skip
globals().update({name: with_torch_keywords(globals()[name]) for name in __all__})
