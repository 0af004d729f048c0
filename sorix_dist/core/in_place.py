"""Changes of a tensor in place, and assignments to its elements.

Where a gradient follows the change, the tensor becomes the result of the plain operation, which is recorded. Else its
array is written to.
"""

from __future__ import annotations

from collections.abc import Callable
from sys import getrefcount
from typing import Any

import numpy as np

from sorix_dist.core import changes, tally
from sorix_dist.core.arguments import is_integer
from sorix_dist.core.capture import outside, recorders
from sorix_dist.core.graph import Leaf, Node, editing, recording
from sorix_dist.core.memory import refuse_frozen
from sorix_dist.core.op import OF_NUMPY, as_operand
from sorix_dist.core.ops import indexing
from sorix_dist.core.ops.elementwise import cast
from sorix_dist.core.ops.index_parts import assign, become_whole, take_place, written
from sorix_dist.core.ops.shape import reshape
from sorix_dist.core.placement import REPLICATE, Deferred, Partial, Shard, shard_of
from sorix_dist.core.rules import bare, on_every_rank, whole
from sorix_dist.core.tensor import Array, Tensor

_REFUSED = "In-place operations are not allowed on a tensor that requires grad"
_LEAF = (
    f"{_REFUSED}: a leaf Variable that requires grad is being used in an in-place operation. Do it inside no_grad(), "
    "in a wrapped model inside `with model.edit():`, or use the plain operation"
)


def target(tensor: Tensor) -> Array:
    """The array to write to, of a sum over rows that over all ranks; RuntimeError as `check_target`."""
    check_target(tensor)
    become_whole(tensor)
    changes.note(tensor.array)
    return tensor.array


def check_target(tensor: Tensor) -> None:
    """RuntimeError where a recorded graph could miss a change in place that no gradient follows.

    A trained tensor may be changed inside no_grad(), as an optimizer does by hand.
    """
    if isinstance(tensor.origin, Node):
        raise RuntimeError(f"{_REFUSED}, since it was computed; use the plain operation, for elements where()")
    if recording.get() and tensor.origin is not None:
        raise RuntimeError(_LEAF)
    refuse_frozen(tensor.array)
    if recorders:
        outside("a change of a tensor in place can't be captured")


def follows(self: Tensor, *others: Any) -> bool:
    """Whether a change in place is recorded, as gradients follow it: the tensor then becomes what the plain operation
    gives. What earlier operations have read of it stays as it was, so there is nothing for a backward to miss.

    RuntimeError where others would miss the change.
    """
    if not recording.get() or isinstance(self.origin, Leaf):
        return False
    if self.origin is None and all(getattr(x, "origin", None) is None for x in others):
        return False
    if self.array.dtype.kind != "f":
        raise RuntimeError(f"what requires grad can't be written to a tensor of {self.array.dtype}: detach() it")
    if self.leaf is not None:
        raise RuntimeError(f"{_REFUSED}, or that a module or retain_grad() knows: use the plain operation")
    if self.array.base is not None and getrefcount(self.array.base) > 2:
        raise RuntimeError(
            f"{_REFUSED} and shares its numbers with another one, such as y[t] with y, which would miss the change: "
            "assign to the other one, as y[t] = x, or clone() this one first"
        )
    return True


def _become(self: Tensor, value: Tensor) -> Tensor:
    """Makes a tensor the result of an operation on it, in its shape and dtype; returns it."""
    place = value.place
    if isinstance(place, Shard) and not isinstance(self.place, Shard):
        own = self.place is not REPLICATE and on_every_rank(place, value.array.shape == self.array.shape)
        value = value if own else whole(value, "a change in place")
    if value.array.shape != self.array.shape:
        raise RuntimeError(f"a result of shape {value.array.shape} can't be written to one of {self.array.shape}")
    value = value if value.array.dtype == self.array.dtype else cast(value, self.array.dtype)
    self.array, self.origin = value.array, value.origin
    take_place(self, value)
    return self


def apply_to(self: Tensor, plain: Callable[..., Tensor], *arguments: Any, **options: Any) -> Tensor:
    """Makes a tensor the result of a plain operation on it; returns it."""
    if follows(self, *arguments, *options.values()):
        return _become(self, plain(self, *arguments, **options))
    return copy_(self, _fitting(self, plain(self, *arguments, **options)))


def _put(self: Tensor, index: Any, value: Any) -> None:
    """self[index] = value, recorded. The placement of the tensor is set already."""
    at, before = _position(index, self.array.shape), getattr(self.origin, "last", None)
    later = None not in (at, before) and at[0] == before[0] and at[1] > before[1]  # type: ignore[index]
    apart = self.origin is None or later
    own = not recorders and self.array.base is None and getrefcount(self.array) == 2
    if isinstance(value, Tensor) and (extra := value.array.ndim - np.ndim(self.array[index])) > 0:
        value = reshape(value, value.array.shape[extra:])
    result = indexing.put(bare(self), bare(value), index=index, apart=apart, own=own)
    self.array, self.origin = result.array, result.origin
    if apart and isinstance(result.origin, Node):
        result.origin.last = at


def _position(index: Any, sizes: tuple[int, ...]) -> tuple[int, int] | None:
    """The axis and the number of an index with a single integer and full slices; None for any other."""
    parts = index if isinstance(index, tuple) else (index,)
    found = [(i, part) for i, part in enumerate(parts) if not (isinstance(part, slice) and part == slice(None))]
    if len(found) != 1 or not is_integer(found[0][1]):
        return None
    axis, number = found[0]
    return axis, int(number) % sizes[axis]


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


def _fitting(self: Tensor, value: Tensor) -> Tensor:
    """`value`; TypeError if it is of a higher kind (bool, integer, float) than the tensor that it is written to."""
    first, second = ("biuf".index(x.array.dtype.kind) for x in (value, self))
    if first > max(second, 2 if second else 0):  # any integer fits any other
        raise TypeError(f"a result of {value.array.dtype} can't be written to a tensor of {self.array.dtype}")
    return value


def _in_place(ufunc: np.ufunc) -> Callable[[Tensor, Any], Tensor]:
    def method(self: Tensor, other: Any) -> Tensor:
        if follows(self, other):
            return _become(self, OF_NUMPY[ufunc](self, other))
        check_target(self)
        changes.note(self.array)
        if isinstance(self.place, Partial | Deferred):
            value = OF_NUMPY[ufunc](self.detach(), other)
            np.copyto(self.array, value.array, casting="same_kind")
            take_place(self, value)
            return self
        if (counted := _counted(self, other)) is not None:
            tally.write(self, ..., _fitting(self, OF_NUMPY[ufunc](self, *counted)))
            return self
        ufunc(self.array, _number(self, other), out=self.array, casting="same_kind")
        return self

    method.__doc__ = f"numpy.{ufunc.__name__} of this tensor and another operand, in place; returns this tensor."
    return method


add_, sub_, mul_, div_ = map(_in_place, (np.add, np.subtract, np.multiply, np.divide))


def fill_(self: Tensor, value: Any) -> Tensor:
    """Every element becomes `value`, in place; returns this tensor."""
    return copy_(self, value)


def zero_(self: Tensor) -> Tensor:
    """Every element becomes 0, in place; returns this tensor."""
    return fill_(self, 0)


def copy_(self: Tensor, src: Any) -> Tensor:
    """The elements of `src`, which broadcasts and is cast, in place; returns this tensor."""
    if follows(self, src):
        setitem(self, ..., src)
        return self
    array = target(self)
    if (counted := _counted(self, src)) is not None:
        tally.write(self, ..., *counted)
    else:
        np.copyto(array, written(self, src), casting="unsafe")
    return self


def setitem(self: Tensor, key: Any, value: Any) -> None:
    """self[key] = value; with a gradient on either side the tensor becomes the result of a recorded operation.

    RuntimeError where a gradient would be lost by it.
    """
    if isinstance(value, list | tuple):
        as_operand(value)  # refuses tensors in it that require a gradient
    if follows(self, value):
        if isinstance(self.place, Partial):
            _become(self, whole(self, "an assignment"))
        return assign(self, key, value, _put)
    check_target(self)
    if not isinstance(self.place, Partial) or self.place.group.parts == 1:  # else it becomes another array
        changes.note(self.array)
    assign(self, key, value, None)


def augmented(method: Callable[[Tensor, Any], Tensor]) -> Callable[[Tensor, Any], Any]:
    """`x += y` and the like: in place inside no_grad(), where updates by hand are written so, and in users' optimizers;
    else a new tensor. What is trained is refused as in PyTorch: in a loop over parameters the new tensor would be lost,
    and nothing trained."""

    def operator(self: Tensor, other: Any) -> Any:
        if recording.get() and isinstance(self.origin, Leaf):
            raise RuntimeError(_LEAF)
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
