"""The operators and methods of a Tensor, each bound to the function that it stands for."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from sorix_dist.core import autograd, functions, in_place
from sorix_dist.core import dtype as types
from sorix_dist.core.arguments import device as Device
from sorix_dist.core.arguments import raise_for_device
from sorix_dist.core.capture import outside
from sorix_dist.core.keywords import with_torch_keywords
from sorix_dist.core.ops import activation, choose, indexing, join, matrix, reduce, shape
from sorix_dist.core.ops import elementwise as e
from sorix_dist.core.ops.elementwise import cast
from sorix_dist.core.rules import whole
from sorix_dist.core.tensor import Tensor, array_of


def astype(self: Tensor, dtype: Any) -> Tensor:
    """The elements in another dtype; this tensor itself if it has it. Gradients come back in this one."""
    kind = types.as_dtype(dtype)
    return self if self.array.dtype == kind else cast(self, kind)


def to(
    self: Tensor, *targets: Any, device: Any = None, dtype: Any = None, non_blocking: bool = False, copy: bool = False
) -> Tensor:
    """This tensor on a device, in a dtype, or as another tensor is; each may be given by position or by name.

    copy: return a new tensor also where nothing changes. RuntimeError for a GPU, ValueError for a device that does not
    exist. `non_blocking` means nothing here.
    """
    flags = [x for x in targets if isinstance(x, bool)]
    targets = targets[: len(targets) - len(flags)]
    copy = copy or flags[1:] == [True]
    if len(targets) > 2 or len(flags) > 2:
        raise TypeError(f"to() takes a device, a dtype, non_blocking and copy, got {targets} and {flags}")
    for target in targets:
        if isinstance(target, Tensor):
            dtype = target.array.dtype
        elif isinstance(target, Device) or (isinstance(target, str) and not types.names_dtype(target)):
            device = target
        elif target is not None:
            dtype = target
    raise_for_device(device)
    result = self if dtype is None else astype(self, dtype)
    return shape.clone(self) if copy and result is self else result


def cpu(self: Tensor) -> Tensor:
    """This tensor: it is on the CPU."""
    return self


def cuda(self: Tensor, device: Any = "cuda") -> Tensor:
    """RuntimeError: there is no GPU here."""
    return to(self, "cuda")


def _converter(kind: types.DType) -> Callable[[Tensor], Tensor]:
    def method(self: Tensor) -> Tensor:
        return astype(self, kind)

    method.__doc__ = f"The elements as {kind.name}."
    return method


# -- operators and methods


def _reflected(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Tensor, other: Any) -> Any:
        return function(other, self)

    return method


def _equality(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Tensor, other: Any) -> Any:
        if isinstance(other, Tensor | np.ndarray) and {self.array.ndim, other.ndim} == {1, 2}:
            _warn_of_columns(self.array.shape, tuple(other.shape))
        return NotImplemented if other is None or isinstance(other, str) else function(self, other)

    return method


def _warn_of_columns(*shapes: tuple[int, ...]) -> None:
    """A warning where labels (N,) are compared with (N, 1), as sx.argmax(x, dim=1) gives them: that pairs all."""
    column, vector = sorted(shapes, key=len, reverse=True)
    if column[1] == 1 and column[0] == vector[0] > 1:
        warnings.warn(
            f"{shapes[0]} is compared with {shapes[1]}, each element with every other: sx.argmax keeps its dimension, "
            "x.argmax(1) and sx.argmax(x, dim=1, keepdim=False) do not",
            stacklevel=3,
        )


def _iterate(self: Tensor) -> Any:
    if not self.array.ndim:
        raise TypeError("iteration over a 0-d tensor")
    return iter(join.unbind(self))


def _contains(self: Tensor, value: Any) -> bool:
    outside("`in` reads the numbers of a tensor inside of the step")
    return bool(np.any(whole(self, "in").array == array_of(value)))


_Table = dict[str, Callable[..., Any]]
_BOTH_SIDES: _Table = {
    "add": e.add, "sub": e.sub, "mul": e.mul, "truediv": e.div, "pow": e.pow, "matmul": matrix.matmul,
    "mod": e.remainder, "floordiv": e.floor_divide,
    "lshift": e.bitwise_left_shift, "rshift": e.bitwise_right_shift,
    "and": e.bitwise_and, "or": e.bitwise_or, "xor": e.bitwise_xor,
}  # fmt: skip
_OPERATORS: _Table = {
    "neg": e.neg, "pos": shape.alias, "abs": e.abs, "invert": e.bitwise_not,
    "eq": _equality(e.eq), "ne": _equality(e.ne),
    "lt": e.lt, "le": e.le, "gt": e.gt, "ge": e.ge,
    "getitem": indexing.index, "iter": _iterate, "contains": _contains,
}  # fmt: skip
_MODULES = activation, choose, e, indexing, join, matrix, reduce, shape
_NO_METHODS = "cat", "einsum", "one_hot", "pad", "stack"
_METHODS: _Table = {
    **{name: its for module in _MODULES for name, its in vars(module).items()
       if name in functions.__all__ and name not in _NO_METHODS and its.__module__ == module.__name__},
    "expand": shape.expand, "expand_as": shape.expand_as, "swapaxes": shape.swapaxes,
    "view": shape.reshape, "expand_dims": shape.unsqueeze, "absolute": e.abs, "clip": choose.clamp,
    "where": lambda self, condition, y: choose.where(condition, self, y),
    "view_as": lambda self, other: shape.reshape(self, *other.shape),
    "reshape_as": lambda self, other: shape.reshape(self, *other.shape),
    "multiply": e.mul, "divide": e.div, "true_divide": e.div, "subtract": e.sub, "negative": e.neg,
    "positive": shape.alias,
    "arcsin": e.asin, "arccos": e.acos, "arctan": e.atan,
    **{name: getattr(in_place, name)
       for name in ("add_", "sub_", "mul_", "div_", "fill_", "zero_", "copy_")},
    **{f"__i{name}__": in_place.augmented(getattr(in_place, f"{its}_"))
       for name, its in (("add", "add"), ("sub", "sub"), ("mul", "mul"), ("truediv", "div"))},
    "__setitem__": in_place.setitem,
    "astype": astype, "type": astype, "to": to, "cpu": cpu, "cuda": cuda, "gpu": cuda,
    **{name: _converter(getattr(types, name))
       for name in ("half", "float", "double", "short", "int", "long", "byte", "bool")},
}  # fmt: skip


for _name, _function in _BOTH_SIDES.items():
    setattr(Tensor, f"__{_name}__", _function)
    setattr(Tensor, f"__r{_name}__", _reflected(_function))
for _name, _function in _OPERATORS.items():
    setattr(Tensor, f"__{_name}__", _function)
for _name, _function in _METHODS.items():
    setattr(Tensor, _name, _function if _name.startswith("__") else with_torch_keywords(_function, _name))
setattr(Tensor, "backward", autograd.backward)  # noqa: B010 (mypy)
for _name in ("is_cuda", "is_sparse", "is_quantized"):
    setattr(Tensor, _name, False)
setattr(Tensor, "grad_fn", property(lambda self: None if self.is_leaf else self.origin, doc="What made it."))  # noqa: B010
setattr(Tensor, "T", property(shape.transpose, doc="The dimensions reversed."))  # noqa: B010
setattr(Tensor, "mT", property(lambda self: shape.swapaxes(self, -1, -2), doc="The last two exchanged."))  # noqa: B010
