"""The operators and methods of a Tensor, each bound to the function that it stands for."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from sorix_dist.core import autograd, changes, tally
from sorix_dist.core import dtype as types
from sorix_dist.core.arguments import device as Device
from sorix_dist.core.arguments import raise_for_device
from sorix_dist.core.capture import outside, recorders
from sorix_dist.core.graph import Leaf, Node, editing, recording
from sorix_dist.core.keywords import with_torch_keywords
from sorix_dist.core.memory import refuse_frozen
from sorix_dist.core.op import OF_NUMPY
from sorix_dist.core.ops import activation, choose, indexing, join, matrix, reduce, shape
from sorix_dist.core.ops import elementwise as e
from sorix_dist.core.ops.elementwise import cast
from sorix_dist.core.ops.index_parts import assign, put, written
from sorix_dist.core.placement import Deferred, Partial, Shard, shard_of
from sorix_dist.core.rules import whole
from sorix_dist.core.tensor import Array, Tensor, array_of


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


# -- in place


_REFUSED = "In-place operations are not allowed on a tensor that requires grad"
_LEAF = "a leaf Variable that requires grad is being used in an in-place operation."


def target(tensor: Tensor, *others: Any) -> Array:
    """The array to write to; RuntimeError as `check_target`."""
    check_target(tensor, *others)
    return tensor.array


def check_target(tensor: Tensor, *others: Any) -> None:
    """RuntimeError where a recorded graph could miss a change in place.

    A trained tensor may be changed inside no_grad(), as an optimizer does by hand.
    """
    if isinstance(tensor.origin, Node):
        raise RuntimeError(f"{_REFUSED}: it was computed, and a backward may need its numbers; use the plain operation")
    if recording.get():
        if tensor.origin is not None:
            raise RuntimeError(f"{_REFUSED}; do it inside no_grad(), or use the plain operation")
        if any(isinstance(x, Tensor) and x.origin is not None for x in others):
            raise RuntimeError("In-place operations are not allowed with an operand that requires grad: detach() it")
    refuse_frozen(tensor.array)
    if recorders:
        outside("a change of a tensor in place can't be captured")
    changes.note(tensor.array)


def _number(self: Tensor, x: Any) -> Any:
    """An operand for NumPy. Numbers and 0-d tensors do not widen the result."""
    array = written(self, x)
    return array.item() if isinstance(array, np.ndarray | np.generic) and array.ndim == 0 else array


def _counted(self: Tensor, *others: Any) -> tuple[Any, ...] | None:
    """The operands of a write into counts that a program keeps by hand; None if it is none of them."""
    if self.leaf is not None or isinstance(self.place, Shard | Partial):
        return None
    if tally.is_tally(self) and any(shard_of(x) is not None for x in others):
        self.place = tally.of_everyone(self).place
        return None
    others = tuple(tally.of_sum(x, "a write in place") for x in others)
    return others if any(map(tally.is_tally, (self, *others))) else None


def _become(self: Tensor, value: Tensor) -> Tensor:
    """Writes into a part of a sum: what it is across ranks and what it shows follow."""
    np.copyto(self.array, value.array, casting="same_kind")
    return be_as(self, value)


def be_as(self: Tensor, value: Tensor) -> Tensor:
    """Marks a tensor whose array is that of `value` as what that is across ranks, and lets it show the same."""
    self.place = value.place
    for name in ("shown", "complete"):
        if hasattr(value, name):
            setattr(self, name, getattr(value, name))
        elif hasattr(self, name):
            delattr(self, name)
    return self


def fitting(self: Tensor, value: Tensor) -> Tensor:
    """`value`; TypeError if it is of a higher kind (bool, integer, float) than the tensor that it is written to."""
    first, second = ("biuf".index(x.array.dtype.kind) for x in (value, self))
    if first > max(second, 2 if second else 0):  # any integer fits any other
        raise TypeError(f"a result of {value.array.dtype} can't be written to a tensor of {self.array.dtype}")
    return value


def _rewritten(self: Tensor, value: Tensor) -> Tensor:
    tally.write(self, ..., fitting(self, value))
    return self


def _in_place(ufunc: np.ufunc) -> Callable[[Tensor, Any], Tensor]:
    def method(self: Tensor, other: Any) -> Tensor:
        check_target(self, other)
        if isinstance(self.place, Partial | Deferred):
            return _become(self, OF_NUMPY[ufunc](self.detach(), other))
        if (counted := _counted(self, other)) is not None:
            return _rewritten(self, OF_NUMPY[ufunc](self, *counted))
        ufunc(self.array, _number(self, other), out=self.array, casting="same_kind")
        return self

    method.__doc__ = f"numpy.{ufunc.__name__} of this tensor and another operand, in place; returns this tensor."
    return method


add_, sub_, mul_, div_ = map(_in_place, (np.add, np.subtract, np.multiply, np.divide))


def fill_(self: Tensor, value: Any) -> Tensor:
    """Every element becomes `value`, in place; returns this tensor."""
    target(self, value)
    if (counted := _counted(self, value)) is not None:
        tally.write(self, ..., *counted)
    else:
        put(self, written(self, value))
    return self


def zero_(self: Tensor) -> Tensor:
    """Every element becomes 0, in place; returns this tensor."""
    return fill_(self, 0)


def copy_(self: Tensor, src: Any) -> Tensor:
    """The elements of `src`, which broadcasts and is cast, in place; returns this tensor."""
    target(self, src)
    if (counted := _counted(self, src)) is not None:
        tally.write(self, ..., *counted)
    else:
        put(self, written(self, src))
    return self


def clamp_(self: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """Elements below `min` and above `max` become those, in place; returns this tensor."""
    if min is None and max is None:
        raise ValueError("clamp_: at least one of min and max must be given, got None for both")
    array = target(self, min, max)
    if (counted := _counted(self, min, max)) is not None:
        return _rewritten(self, choose.clamp(self, *counted))
    if isinstance(self.place, Partial):
        return copy_(self, fitting(self, choose.clamp(self.detach(), min, max)))
    if min is not None:
        np.maximum(array, _number(self, min), out=array, casting="same_kind")
    if max is not None:
        np.minimum(array, _number(self, max), out=array, casting="same_kind")
    return self


def setitem(self: Tensor, key: Any, value: Any) -> None:
    """self[key] = value; RuntimeError where a gradient would be lost by it."""
    if isinstance(self.origin, Node):
        raise RuntimeError(f"{_REFUSED}: use where() or masked_fill() to replace elements of a computed tensor")
    if recording.get():
        if self.origin is not None:
            raise RuntimeError(_LEAF)
        if isinstance(value, Tensor) and value.origin is not None:
            raise RuntimeError("a tensor that requires grad can't be assigned: use where(), cat() or stack()")
    refuse_frozen(self.array)
    if recorders:
        outside("an assignment to elements of a tensor can't be captured")
    changes.note(self.array)
    assign(self, key, value)


def _augmented(method: Callable[[Tensor, Any], Tensor]) -> Callable[[Tensor, Any], Any]:
    """`x += y` and the like: in place inside no_grad(), where updates by hand are written so, and in users' optimizers;
    else a new tensor. What is trained is refused as in PyTorch: in a loop over parameters the new tensor would be lost,
    and nothing trained."""

    def operator(self: Tensor, other: Any) -> Any:
        if recording.get() and isinstance(self.origin, Leaf):
            raise RuntimeError(f"{_LEAF[:-1]}: do it inside no_grad(), of a wrapped model inside `with model.edit():`")
        by_value = recording.get() and editing.get() is None
        if by_value or isinstance(self.origin, Node) or isinstance(self.place, Partial):
            return NotImplemented
        if self.leaf is None and shard_of(self) is None and shard_of(other) is not None:
            return NotImplemented  # which decides whether the result is rows
        try:
            return method(self, other)
        except (ValueError, TypeError):
            if self.origin is not None:
                raise
            return NotImplemented  # the result has another shape or kind: a new tensor, then

    return operator


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
    if recorders:
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
_METHODS: _Table = {
    **{f.__name__: f for f in (
        e.add, e.sub, e.mul, e.div, e.pow, e.remainder, e.floor_divide, e.neg, e.exp, e.expm1, e.log, e.log2, e.log10,
        e.log1p, e.sqrt, e.rsqrt, e.reciprocal, e.square, e.sin, e.cos, e.tan, e.atan, e.abs, e.sign, e.round,
        e.floor, e.ceil,
        activation.tanh, activation.sigmoid, activation.relu, activation.softmax, activation.log_softmax,
        activation.logsumexp,
        e.eq, e.ne, e.lt, e.le, e.gt, e.ge, e.isnan, e.isinf,
        e.isfinite, e.logical_not, e.logical_and, e.logical_or, e.logical_xor,
        reduce.all, reduce.any, e.equal, e.allclose, e.bitwise_not, e.bitwise_and, e.bitwise_or, e.bitwise_xor,
        e.asin, e.acos, e.sinh, e.cosh, e.asinh, e.acosh, e.atanh,
        e.exp2, e.erf, e.erfc, e.trunc, e.atan2, e.fmod, e.hypot,
        e.logaddexp,
        choose.maximum, choose.minimum, choose.clamp, choose.masked_fill, choose.tril, choose.triu,
        reduce.sum, reduce.mean, reduce.var, reduce.std, reduce.prod, reduce.cumsum, reduce.norm,
        choose.max, choose.min, choose.amax, choose.amin, choose.argmax, choose.argmin, choose.sort, choose.argsort,
        choose.topk,
        matrix.matmul, matrix.outer,
        shape.clone, shape.reshape, shape.transpose, shape.swapaxes, shape.t, shape.permute, shape.movedim,
        shape.flatten, shape.squeeze, shape.unsqueeze, shape.expand, shape.expand_as, shape.broadcast_to, shape.repeat,
        shape.flip, shape.roll,
        join.split, join.chunk, join.unbind,
        indexing.diag, indexing.gather, indexing.scatter_add, indexing.index_select, indexing.masked_select,
    )},
    "view": shape.reshape, "expand_dims": shape.unsqueeze, "absolute": e.abs, "clip": choose.clamp,
    "where": lambda self, condition, y: choose.where(condition, self, y),
    "view_as": lambda self, other: shape.reshape(self, *other.shape),
    "reshape_as": lambda self, other: shape.reshape(self, *other.shape),
    "multiply": e.mul, "divide": e.div, "true_divide": e.div, "subtract": e.sub, "negative": e.neg,
    "positive": shape.alias,
    "clamp_min": lambda self, min: choose.clamp(self, min), "clamp_max": lambda self, max: choose.clamp(self, max=max),
    "arcsin": e.asin, "arccos": e.acos, "arctan": e.atan,
    "add_": add_, "sub_": sub_, "mul_": mul_, "div_": div_, "fill_": fill_, "zero_": zero_, "copy_": copy_,
    "clamp_": clamp_, "__setitem__": setitem,
    "__iadd__": _augmented(add_), "__isub__": _augmented(sub_),
    "__imul__": _augmented(mul_), "__itruediv__": _augmented(div_),
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
