"""Changing the numbers of a tensor where they are: only where no gradient would go wrong by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sorix_dist.core.graph import Node
from sorix_dist.core.memory import refuse_frozen
from sorix_dist.core.op import recording
from sorix_dist.core.ops.shape import key_of
from sorix_dist.core.placement import Partial
from sorix_dist.core.rules import whole
from sorix_dist.core.tensor import Array, Tensor

_REFUSED = "In-place operations are not allowed on a tensor that requires grad"


def _target(tensor: Tensor, *others: Any) -> Array:
    """The array to write to; RuntimeError where a recorded graph could miss the change.

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
    return tensor.array


def _array(x: Any) -> Any:
    """The numbers of an operand: of a sum over rows those of the global batch, since the target is no such sum."""
    if not isinstance(x, Tensor):
        return x
    place = x.place
    if not isinstance(place, Partial):
        return x.array
    after_backward = hasattr(x, "shown") and place.factor == place.factor  # which shows the global value at no cost
    return x.visible if after_backward else whole(x.detach(), "an in-place operation").array


def _number(x: Any) -> Any:
    """An operand for NumPy, in which numbers and 0-d tensors do not widen."""
    array = _array(x)
    return array.item() if isinstance(array, np.ndarray | np.generic) and array.ndim == 0 else array


def _arithmetic(ufunc: np.ufunc, sign: str) -> Callable[[Tensor, Any], Tensor]:
    def method(self: Tensor, other: Any) -> Tensor:
        array = _target(self, other)
        ufunc(array, _number(other), out=array, casting="same_kind")
        return self

    method.__doc__ = f"self {sign}= other, in place; returns this tensor."
    return method


add_ = _arithmetic(np.add, "+")
sub_ = _arithmetic(np.subtract, "-")
mul_ = _arithmetic(np.multiply, "*")
div_ = _arithmetic(np.divide, "/")


def fill_(self: Tensor, value: Any) -> Tensor:
    """Every element becomes `value`, in place; returns this tensor."""
    np.copyto(_target(self, value), _number(value), casting="unsafe")
    return self


def zero_(self: Tensor) -> Tensor:
    """Every element becomes 0, in place; returns this tensor."""
    return fill_(self, 0)


def copy_(self: Tensor, src: Any) -> Tensor:
    """The elements of `src`, which broadcasts and is cast, in place; returns this tensor."""
    np.copyto(_target(self, src), np.asarray(_array(src)), casting="unsafe")
    return self


def clamp_(self: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """Elements below `min` and above `max` become those, in place; returns this tensor."""
    if min is None and max is None:
        raise ValueError("clamp_: at least one of min and max must be given, got None for both")
    array = _target(self, min, max)
    if min is not None:
        np.maximum(array, _number(min), out=array, casting="same_kind")
    if max is not None:
        np.minimum(array, _number(max), out=array, casting="same_kind")
    return self


def setitem(self: Tensor, key: Any, value: Any) -> None:
    """self[key] = value; RuntimeError where a gradient would be lost by it."""
    if self.origin is not None and (recording.get() or isinstance(self.origin, Node)):
        if isinstance(self.origin, Node):
            raise RuntimeError(f"{_REFUSED}: use where() or masked_fill() to replace elements of a computed tensor")
        raise RuntimeError("a leaf Variable that requires grad is being used in an in-place operation.")
    if recording.get() and isinstance(value, Tensor) and value.origin is not None:
        raise RuntimeError("a tensor that requires grad can't be assigned into another: use where(), cat() or stack()")
    refuse_frozen(self.array)
    self.array[key_of(key)] = _array(value)


def _augmented(method: Callable[[Tensor, Any], Tensor]) -> Callable[[Tensor, Any], Any]:
    """`x += y` and the like: in place inside no_grad(), where updates by hand are written so; else a new tensor."""

    def operator(self: Tensor, other: Any) -> Any:
        if recording.get() or isinstance(self.origin, Node) or isinstance(self.place, Partial):
            return NotImplemented
        try:
            return method(self, other)
        except (ValueError, TypeError):
            if self.origin is not None:
                raise
            return NotImplemented  # the result has another shape or kind: a new tensor, then

    return operator


METHODS: dict[str, Callable[..., Any]] = {
    "add_": add_, "sub_": sub_, "mul_": mul_, "div_": div_, "fill_": fill_, "zero_": zero_, "copy_": copy_,
    "clamp_": clamp_, "__setitem__": setitem,
    "__iadd__": _augmented(add_), "__isub__": _augmented(sub_),
    "__imul__": _augmented(mul_), "__itruediv__": _augmented(div_),
}  # fmt: skip
