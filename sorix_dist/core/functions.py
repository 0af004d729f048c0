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
    empty,
    empty_like,
    eye,
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
from sorix_dist.core.ops import activation, choose, compare, order, reduce
from sorix_dist.core.ops import elementwise as e
from sorix_dist.core.ops.einsum import einsum as _einsum
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
from sorix_dist.core.ops.matrix import matmul as _matmul
from sorix_dist.core.ops.matrix import outer as _outer
from sorix_dist.core.ops.order import argsort, sort, topk
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
from sorix_dist.core.tensor import Tensor, as_array


def in_kind(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose answer is an array if no tensor was given."""

    @wraps(function)
    def maths(*inputs: Any, **options: Any) -> Any:
        for x in (*inputs, *options.values()):
            if isinstance(x, Tensor):
                return function(*inputs, **options)
        if inputs and isinstance(inputs[0], int | float | list | tuple):
            inputs = (as_array(inputs[0]), *inputs[1:])
        answer = function(*inputs, **options)
        if isinstance(answer, tuple):
            return type(answer)(*map(np.asarray, answer))
        return answer.array if isinstance(answer, Tensor) else answer

    return maths


def _place(function: Callable[..., Any]) -> Callable[..., Any]:
    def place(X: Any, axis: Any = 1, dim: Any = None, keepdims: bool = True, *, keepdim: bool | None = None) -> Any:
        at = axis if dim is None else dim
        keep = keepdims if keepdim is None else keepdim
        return function(X, None if at is None else _dimension(at, X), keep)

    place.__name__ = function.__name__
    place.__doc__ = f"{function.__doc__}\n\n    Along the second dimension by default, which stays with size 1."
    return in_kind(place)


def _dimension(axis: int, X: Any) -> int:
    """`axis`, or the only dimension of a vector."""
    return 0 if axis == 1 and np.ndim(X) == 1 else axis


add, sub, mul, div, pow = in_kind(e.add), in_kind(e.sub), in_kind(e.mul), in_kind(e.div), in_kind(e.pow)
remainder, floor_divide, neg = in_kind(e.remainder), in_kind(e.floor_divide), in_kind(e.neg)
sin, cos, tan, atan, tanh = in_kind(e.sin), in_kind(e.cos), in_kind(e.tan), in_kind(e.atan), in_kind(activation.tanh)
exp, expm1, log, log1p = in_kind(e.exp), in_kind(e.expm1), in_kind(e.log), in_kind(e.log1p)
log2, log10, sqrt, rsqrt = in_kind(e.log2), in_kind(e.log10), in_kind(e.sqrt), in_kind(e.rsqrt)
reciprocal, square, sign = in_kind(e.reciprocal), in_kind(e.square), in_kind(e.sign)
abs = absolute = in_kind(e.abs)
round, floor, ceil = in_kind(e.round), in_kind(e.floor), in_kind(e.ceil)
sigmoid, relu = in_kind(activation.sigmoid), in_kind(activation.relu)
softmax, log_softmax, logsumexp = (
    in_kind(activation.softmax),
    in_kind(activation.log_softmax),
    in_kind(activation.logsumexp),
)
matmul, outer, einsum = in_kind(_matmul), in_kind(_outer), in_kind(_einsum)
sum, mean, var, std = in_kind(reduce.sum), in_kind(reduce.mean), in_kind(reduce.var), in_kind(reduce.std)
prod, cumsum, norm = in_kind(reduce.prod), in_kind(reduce.cumsum), in_kind(reduce.norm)
max, min, amax, amin = in_kind(order.max), in_kind(order.min), in_kind(order.amax), in_kind(order.amin)
argmax, argmin = _place(order.argmax), _place(order.argmin)
maximum, minimum, clamp = in_kind(choose.maximum), in_kind(choose.minimum), in_kind(choose.clamp)
tril, triu = in_kind(choose.tril), in_kind(choose.triu)
where, masked_fill = choose.where, choose.masked_fill
eq, ne, lt = in_kind(compare.eq), in_kind(compare.ne), in_kind(compare.lt)
le, gt, ge = in_kind(compare.le), in_kind(compare.gt), in_kind(compare.ge)
isnan, isinf, isfinite = in_kind(compare.isnan), in_kind(compare.isinf), in_kind(compare.isfinite)
logical_not, logical_and = in_kind(compare.logical_not), in_kind(compare.logical_and)
logical_or, logical_xor = in_kind(compare.logical_or), in_kind(compare.logical_xor)
all, any, equal, allclose = in_kind(compare.all), in_kind(compare.any), compare.equal, compare.allclose


def is_tensor(obj: Any) -> bool:
    """Whether `obj` is a tensor."""
    return isinstance(obj, Tensor)


__all__ = [
    # creation
    "tensor",
    "as_tensor",
    "from_numpy",
    "zeros",
    "ones",
    "empty",
    "full",
    "eye",
    "diag",
    "arange",
    "linspace",
    "logspace",
    "rand",
    "randn",
    "randint",
    "randperm",
    "zeros_like",
    "ones_like",
    "empty_like",
    "full_like",
    "rand_like",
    "randn_like",
    # shape
    "cat",
    "stack",
    "reshape",
    "transpose",
    "squeeze",
    "unsqueeze",
    "flatten",
    "t",
    "unbind",
    "split",
    "chunk",
    "repeat",
    "permute",
    "movedim",
    "broadcast_to",
    "flip",
    "roll",
    "pad",
    "clone",
    # choice and order
    "where",
    "gather",
    "take_along_dim",
    "index_select",
    "masked_select",
    "masked_fill",
    "scatter_add",
    "one_hot",
    "tril",
    "triu",
    "sort",
    "argsort",
    "topk",
    # mathematics
    "add",
    "sub",
    "mul",
    "div",
    "matmul",
    "pow",
    "remainder",
    "floor_divide",
    "neg",
    "sin",
    "cos",
    "tan",
    "atan",
    "tanh",
    "exp",
    "expm1",
    "log",
    "log1p",
    "log2",
    "log10",
    "sqrt",
    "rsqrt",
    "reciprocal",
    "square",
    "abs",
    "absolute",
    "sign",
    "round",
    "floor",
    "ceil",
    "clamp",
    "maximum",
    "minimum",
    "sigmoid",
    "relu",
    "softmax",
    "log_softmax",
    "logsumexp",
    "sum",
    "mean",
    "var",
    "std",
    "prod",
    "cumsum",
    "norm",
    "max",
    "min",
    "amax",
    "amin",
    "argmax",
    "argmin",
    "all",
    "any",
    "outer",
    "einsum",
    # questions
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "isnan",
    "isinf",
    "isfinite",
    "logical_not",
    "logical_and",
    "logical_or",
    "logical_xor",
    "equal",
    "allclose",
    "is_tensor",
]
