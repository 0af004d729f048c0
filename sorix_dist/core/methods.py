"""The operators and methods of a Tensor, each bound to the function that it stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sorix_dist.core import autograd
from sorix_dist.core.ops import elementwise as e
from sorix_dist.core.ops import matrix, reduce, shape
from sorix_dist.core.tensor import Tensor


def _reflected(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Tensor, other: Any) -> Any:
        return function(other, self)

    return method


_Table = dict[str, Callable[..., Any]]
_BOTH_SIDES: _Table = {
    "add": e.add, "sub": e.sub, "mul": e.mul, "truediv": e.div, "pow": e.pow, "matmul": matrix.matmul,
}  # fmt: skip
_OPERATORS: _Table = {
    "neg": e.neg, "eq": e.eq, "ne": e.ne, "lt": e.lt, "le": e.le, "gt": e.gt, "ge": e.ge, "getitem": shape.index,
}  # fmt: skip
_METHODS: _Table = {
    "add": e.add, "sub": e.sub, "mul": e.mul, "div": e.div, "pow": e.pow, "exp": e.exp, "log": e.log, "sqrt": e.sqrt,
    "matmul": matrix.matmul, "sum": reduce.sum, "mean": reduce.mean,
    "reshape": shape.reshape, "view": shape.reshape, "transpose": shape.transpose, "swapaxes": shape.swapaxes,
    "flatten": shape.flatten, "astype": e.cast, "backward": autograd.backward,
}  # fmt: skip

for _name, _function in _BOTH_SIDES.items():
    setattr(Tensor, f"__{_name}__", _function)
    setattr(Tensor, f"__r{_name}__", _reflected(_function))
for _name, _function in _OPERATORS.items():
    setattr(Tensor, f"__{_name}__", _function)
for _name, _function in _METHODS.items():
    setattr(Tensor, _name, _function)
setattr(Tensor, "T", property(shape.transpose, doc="The dimensions reversed."))  # noqa: B010 (mypy)
