"""The operators and methods of a Tensor, each bound to the function that it stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sorix_dist.core import autograd, convert, inplace
from sorix_dist.core.ops import activation, choose, compare, indexing, join, matrix, order, reduce, shape
from sorix_dist.core.ops import elementwise as e
from sorix_dist.core.tensor import Tensor

_Table = dict[str, Callable[..., Any]]


def _reflected(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Tensor, other: Any) -> Any:
        return function(other, self)

    return method


def _equality(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Tensor, other: Any) -> Any:
        # What no tensor can hold is not equal to one.
        return NotImplemented if other is None or isinstance(other, str) else function(self, other)

    return method


def _iterate(self: Tensor) -> Any:
    if not self.array.ndim:
        raise TypeError("iteration over a 0-d tensor")
    return iter(join.unbind(self))


def _contains(self: Tensor, value: Any) -> bool:
    return bool(np.any(self.array == (value.array if isinstance(value, Tensor) else value)))


_BOTH_SIDES: _Table = {
    "add": e.add, "sub": e.sub, "mul": e.mul, "truediv": e.div, "pow": e.pow, "matmul": matrix.matmul,
    "mod": e.remainder, "floordiv": e.floor_divide,
    "and": compare.bitwise_and, "or": compare.bitwise_or, "xor": compare.bitwise_xor,
}  # fmt: skip
_OPERATORS: _Table = {
    "neg": e.neg, "pos": shape.alias, "abs": e.abs, "invert": compare.bitwise_not,
    "eq": _equality(compare.eq), "ne": _equality(compare.ne),
    "lt": compare.lt, "le": compare.le, "gt": compare.gt, "ge": compare.ge,
    "getitem": shape.index, "iter": _iterate, "contains": _contains,
}  # fmt: skip
_METHODS: _Table = {
    "backward": autograd.backward,
    **{f.__name__: f for f in (
        e.add, e.sub, e.mul, e.div, e.pow, e.remainder, e.floor_divide, e.neg, e.exp, e.expm1, e.log, e.log2, e.log10,
        e.log1p, e.sqrt, e.rsqrt, e.reciprocal, e.square, e.sin, e.cos, e.tan, e.atan, e.abs, e.sign, e.round,
        e.floor, e.ceil,
        activation.tanh, activation.sigmoid, activation.relu, activation.softmax, activation.log_softmax,
        activation.logsumexp,
        compare.eq, compare.ne, compare.lt, compare.le, compare.gt, compare.ge, compare.isnan, compare.isinf,
        compare.isfinite, compare.logical_not, compare.logical_and, compare.logical_or, compare.logical_xor,
        compare.all, compare.any, compare.equal, compare.allclose,
        choose.maximum, choose.minimum, choose.clamp, choose.masked_fill, choose.tril, choose.triu,
        reduce.sum, reduce.mean, reduce.var, reduce.std, reduce.prod, reduce.cumsum, reduce.norm,
        order.max, order.min, order.amax, order.amin, order.argmax, order.argmin, order.sort, order.argsort, order.topk,
        matrix.matmul, matrix.outer,
        shape.clone, shape.reshape, shape.transpose, shape.swapaxes, shape.t, shape.permute, shape.movedim,
        shape.flatten, shape.squeeze, shape.unsqueeze, shape.expand, shape.expand_as, shape.broadcast_to, shape.repeat,
        shape.flip, shape.roll,
        join.split, join.chunk, join.unbind,
        indexing.gather, indexing.scatter_add, indexing.index_select, indexing.masked_select,
    )},
    "view": shape.reshape, "expand_dims": shape.unsqueeze, "absolute": e.abs, "clip": choose.clamp,
    "where": lambda self, condition, y: choose.where(condition, self, y),
    "view_as": lambda self, other: shape.reshape(self, *other.shape),
    "reshape_as": lambda self, other: shape.reshape(self, *other.shape),
    "mm": matrix.matmul, "bmm": matrix.matmul, "dot": matrix.matmul,
    **inplace.METHODS,
    **convert.METHODS,
}  # fmt: skip

for _name, _function in _BOTH_SIDES.items():
    setattr(Tensor, f"__{_name}__", _function)
    setattr(Tensor, f"__r{_name}__", _reflected(_function))
for _name, _function in _OPERATORS.items():
    setattr(Tensor, f"__{_name}__", _function)
for _name, _function in _METHODS.items():
    setattr(Tensor, _name, _function)
setattr(Tensor, "T", property(shape.transpose, doc="The dimensions reversed."))  # noqa: B010 (mypy)
setattr(Tensor, "mT", property(lambda self: shape.swapaxes(self, -1, -2), doc="The last two exchanged."))  # noqa: B010
