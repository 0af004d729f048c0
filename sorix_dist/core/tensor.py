"""Tensor: an array that remembers which operation made it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from sorix_dist.core import batch_numbers, own_numbers
from sorix_dist.core.arguments import CPU, raise_for_device
from sorix_dist.core.arguments import device as Device
from sorix_dist.core.capture import changed, listening, outside, recorders
from sorix_dist.core.dtype import DType, as_dtype, name_of
from sorix_dist.core.graph import Hook as Hook
from sorix_dist.core.graph import Leaf, Node, editing, summing_group, zero
from sorix_dist.core.memory import Array as Array
from sorix_dist.core.memory import refuse_frozen
from sorix_dist.core.placement import Partial, Placement, Rows, Shard, Tally, cotangent_of, tagged

if TYPE_CHECKING:
    from sorix_dist.core.typed import Bound
else:
    Bound = object


class Size(tuple[int, ...]):
    """The shape of a tensor."""

    def __repr__(self) -> str:
        return f"sorix_dist.Size([{', '.join(map(str, self))}])"

    def __call__(self, dim: int | None = None) -> Size | int:
        """The shape, or its entry `dim`, for `tensor.size()` and `tensor.size(0)`."""
        return self if dim is None else self[dim]

    def numel(self) -> int:
        """The number of elements of a tensor of this shape."""
        return math.prod(self)


class Tensor(Bound):
    """An array with a gradient: `data` are the numbers, `grad` is the sum of the last backwards.

    `data` may be an ndarray (kept as it is, not copied), a number, nested lists (floats become float32, integers int64,
    or float32 too where a gradient is required), a Tensor, or anything that NumPy understands, such as a pandas frame.
    """

    # origin: the operation or leaf that its gradient goes to, or None. leaf: its gradient if no operation made it.
    # shown: what users see of a Partial, if not what follows from the array.
    __slots__ = ("__weakref__", "array", "complete", "leaf", "origin", "place", "shown")

    array: Array
    origin: Node | Leaf | None
    leaf: Leaf | None
    place: Placement
    shown: Array | float
    complete: bool  # set if `shown` is that of the global batch

    def __init__(self, data: Any, device: Any = "cpu", requires_grad: bool = False, dtype: Any = None) -> None:
        self.array = as_array(data, dtype)
        self.origin = self.leaf = self.place = None
        if device != "cpu":
            raise_for_device(device)
        if requires_grad:
            if dtype is None and self.array.dtype.kind in "iub" and isinstance(data, list | tuple | int):
                self.array = self.array.astype(np.float32)
            self.requires_grad = True

    @classmethod
    def of(cls, array: Array, origin: Node | Leaf | None = None) -> Tensor:
        """A tensor around an array, without any conversion."""
        tensor = cls.__new__(cls)
        tensor.array = array
        tensor.origin = origin
        tensor.leaf = tensor.place = None
        return tensor

    # -- what it is across ranks

    @property
    def visible(self) -> Array:
        """The numbers as users see them: of a mean over rows, that over this rank's, or after a backward that over the
        global batch."""
        if recorders:
            outside("item(), numpy() or a test reads the numbers of a tensor inside of the step")
        return self.shows()

    def shows(self) -> Array:
        """The same, for use by operations."""
        place = self.place
        if place.__class__ is not Partial:
            return self.array
        if hasattr(self, "shown"):
            if isinstance(self.shown, float):  # of a loss with one element, which few programs look at in each step
                self.shown = np.full(self.array.shape, self.shown, self.array.dtype)
            return self.shown
        factor = place.factor
        return self.array if factor == 1 else np.asarray(self.array * factor, self.array.dtype)

    @property
    def rows(self) -> Rows | None:
        """The rows of the global batch that this tensor has; None if it is not rows of a batch."""
        return self.place.rows if isinstance(self.place, Shard) else None

    @property
    def data(self) -> Array:
        """The array itself. Assigning copies into the memory of a parameter; that of a wrapped model is read-only
        outside of its `edit()`. In an optimizer with a `step` of its own, a tensor without history, as in PyTorch."""
        return self._given_as("data") if editing.get() is None else self.detach()  # type: ignore[return-value]

    @data.setter
    def data(self, value: Any) -> None:
        outside("an assignment to `data` can't be captured")
        if isinstance(value, Tensor) and value.place is not None:
            from sorix_dist.core.ops.collective import as_data  # made of operations

            value = as_data(self, value)
        array, leaf = ndarray_of(value), self.leaf
        if isinstance(self, Gradient) or (leaf is not None and leaf.flat is not None):
            if array.shape != self.array.shape:
                raise ValueError(f"data must keep the shape {self.array.shape} of the parameter, got {array.shape}")
            refuse_frozen(self.array)
            np.copyto(self.array, array, casting="same_kind")
            return
        if leaf is not None and (leaf.shape, leaf.dtype) != (array.shape, array.dtype):
            if array.dtype.kind != "f":
                raise TypeError(f"data of a parameter must be of floating point dtype, got {array.dtype}")
            self.leaf = Leaf(array.shape, array.dtype)
            self.leaf.hooks = leaf.hooks
            self.origin = self.leaf if self.requires_grad else None
        self.array = array
        changed()

    @property
    def requires_grad(self) -> bool:
        """Whether operations on this tensor are recorded for a backward."""
        return self.origin is not None

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        changed()
        if isinstance(self.origin, Node):
            if not value:
                raise RuntimeError("only leaf tensors can stop requiring a gradient; use detach() on a computed one")
            return
        if value and self.array.dtype.kind != "f":
            raise RuntimeError(f"only floating point tensors can require gradients, got {name_of(self.array.dtype)}")
        if value and self.leaf is None:
            self.leaf = Leaf(self.array.shape, self.array.dtype)
            self.leaf.sharded = isinstance(self.place, Shard)
        self.origin = self.leaf if value else None

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Sets `requires_grad` and returns this tensor."""
        self.requires_grad = requires_grad
        return self

    @property
    def is_leaf(self) -> bool:
        """Whether no recorded operation made this tensor."""
        return not isinstance(self.origin, Node)

    @property
    def grad(self) -> Tensor | None:
        """The gradient that backwards have added up since `zero_grad()`; None before the first."""
        if recorders:
            outside("reading `grad` inside of the step can't be captured")
        if self.leaf is None or not self.leaf.total.written:
            return None
        view = self.leaf.view
        if view is None or (view.array is not self.leaf.total.shown and view.origin is None):
            view = self.leaf.view = Gradient.of(self.leaf.total.show(self.leaf))
            view.place = cotangent_of(self.place, summing_group(self.origin))
        return view  # type: ignore[no-any-return]

    @grad.setter
    def grad(self, value: Any) -> None:
        outside("an assignment to `grad` can't be captured: use zero_grad()")
        if value is None:
            zero(() if self.leaf is None else (self.leaf,))
            return
        from sorix_dist.core.gradients import assigned

        array = np.asarray(assigned(value, self.place, summing_group(self.origin)))
        if array.shape != self.array.shape:
            raise ValueError(f"grad must have the shape {self.array.shape} of its tensor, got {array.shape}")
        self.leaf = self.leaf or Leaf(self.array.shape, self.array.dtype)
        total = self.leaf.total
        if total.shown is not None:
            refuse_frozen(total.shown)
        np.copyto(total.show(self.leaf), array, casting="same_kind")
        total.written = True
        self.leaf.view = value if isinstance(value, Tensor) and value.origin is not None else None

    def retain_grad(self) -> None:
        """Makes a backward leave the gradient of this computed tensor in its `grad`."""
        if isinstance(self.origin, Node) and self.leaf is None:
            leaf = self.leaf = Leaf(self.array.shape, self.array.dtype)
            self.origin.hooks = [*(self.origin.hooks or ()), leaf.deposit]

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> Hook:
        """Calls `hook` with the gradient of this tensor whenever a backward has completed it; of a parameter, with what
        one backward adds. What it returns, if not None, replaces the gradient. `remove()` of the result ends it."""
        if self.origin is None:
            raise RuntimeError("register_hook on a tensor that does not require grad")
        changed()
        from sorix_dist.core.gradients import hook_on_arrays

        on_gradient = hook_on_arrays(hook, self.place, summing_group(self.origin))
        hooks = self.origin.hooks = self.origin.hooks or []
        hooks.append(on_gradient)
        return Hook(hooks, on_gradient)

    def detach(self) -> Tensor:
        """A tensor with the same memory and no history."""
        detached = Tensor.of(self.array)
        detached.place = self.place
        if hasattr(self, "shown"):
            detached.shown = self.shown
            if hasattr(self, "complete"):
                detached.complete = True
            if recorders and (recorder := listening()) is not None:
                recorder.line(f"{recorder.of(recorder.checked(self))}.detach()", detached)
        return detached

    def __reduce__(self) -> tuple[Any, ...]:
        """What copy, deepcopy and pickle make: the values, the gradient and whether it is trained; no history."""
        trained = None if self.leaf is None or isinstance(self.origin, Node) else self.requires_grad
        grad = None if self.grad is None else self.grad.array
        place = None if isinstance(self.place, Partial | Tally) else self.place
        return _rebuilt, (type(self), self.visible, trained, grad, place), getattr(self, "__dict__", None)

    # -- what its array is

    @property
    def shape(self) -> Size:
        """The number of elements along each dimension."""
        place, sizes = self.place, self.array.shape
        return Size(batch_numbers.shape_of_rows(sizes, place) if place.__class__ is Shard else sizes)

    @property
    def dtype(self) -> DType:
        """The type of the elements."""
        return name_of(self.array.dtype)

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return self.array.ndim

    @property
    def numel(self) -> Any:
        """The number of elements: `x.numel` as in sorix, and `x.numel()` as in PyTorch."""
        return batch_numbers.count_of(self.array.shape, self.place)

    size_prop = numel
    size = shape  # which may be called: `size()` is the shape, `size(dim)` one entry of it

    @property
    def device(self) -> Device:
        """Where the numbers are: always the CPU."""
        return CPU

    def is_floating_point(self) -> bool:
        """Whether the elements are of a type that can have gradients."""
        return bool(self.array.dtype.kind == "f")

    def contiguous(self, memory_format: Any = None) -> Self:
        """This tensor; operations take any memory layout."""
        return self

    def dim(self) -> int:
        """The number of dimensions."""
        return self.array.ndim

    def item(self) -> Any:
        """The only element as a Python number; ValueError if there are others."""
        return self._number("item()")

    def _number(self, call: str) -> Any:
        if self.array.size != 1:
            raise ValueError(
                f"can only convert an array of size 1 to a Python scalar, got shape {self.array.shape}; use tolist()"
            )
        own_numbers.refuse_one_of_many(self)
        own_numbers.warn_of_part(self, call)
        value = self.visible.item()
        return value if hasattr(self, "complete") else batch_numbers.number_of_part(value, self.place)

    def _given_as(self, what: str) -> Array:
        own_numbers.warn_of_part(self, what)
        return self.visible

    def to_numpy(self, copy: bool = False, dtype: Any = None, force: bool = False) -> Array:
        """The array itself, or a copy, of `dtype` if given; `force` is ignored."""
        return self._given_as("numpy()").astype(self.array.dtype if dtype is None else as_dtype(dtype), copy=copy)

    numpy = to_numpy

    def tolist(self) -> Any:
        """The elements as nested Python lists."""
        return self._given_as("tolist()").tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self._given_as("NumPy's array"), dtype=dtype, copy=copy)

    def __len__(self) -> int:
        if not self.array.ndim:
            raise TypeError("len() of a 0-d tensor")
        own_numbers.warn_of_own_length(self.place)
        return len(self.array)

    def __bool__(self) -> bool:
        own_numbers.refuse_one_of_many(self)
        return bool(self.visible)

    def __float__(self) -> float:
        return float(self._number("float()"))

    def __int__(self) -> int:
        return int(self._number("int()"))

    def __complex__(self) -> complex:
        return complex(self.item())

    def __dlpack__(self, **options: Any) -> Any:
        """The numbers for another library, in shared memory; see the array API standard."""
        return self.visible.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Where the numbers are: on the CPU."""
        return self.visible.__dlpack_device__()

    def __index__(self) -> int:
        if self.array.dtype.kind not in "iub" or self.array.size != 1:
            raise TypeError(f"only one integer can be an index, got shape {self.array.shape} of {self.array.dtype}")
        return int(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item() if not self.array.ndim or (spec and self.array.size == 1) else str(self), spec)

    def __repr__(self) -> str:
        text = np.array2string(self._given_as("text"), separator=", ", prefix="tensor(")
        plain = self.array.size and self.array.dtype in (np.float32, np.int64, np.bool_)
        dtype = "" if plain else f", dtype={self.dtype}"
        return f"tensor({text}{dtype}{', requires_grad=True' if self.requires_grad else ''})"

    __hash__ = object.__hash__


class Gradient(Tensor):
    """The gradient of a leaf: a tensor that prints as its array does."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(self.array)

    def __str__(self) -> str:
        return str(self.array)


def _rebuilt(kind: type[Tensor], array: Array, trained: bool | None, grad: Array | None, place: Placement) -> Tensor:
    tensor = tagged(kind.of(array), place)
    if trained is not None:
        tensor.requires_grad_(True).requires_grad_(trained)
    tensor.grad = grad
    return tensor


def as_array(data: Any, dtype: Any = None, name: str = "data") -> Array:
    """The array of `data`: an ndarray or Tensor keeps its dtype and memory, Python floats become float32."""
    wanted = None if dtype is None else as_dtype(dtype)
    if isinstance(data, Tensor | batch_numbers.BatchNumber):
        data = data.visible if isinstance(data, Tensor) else data.of_all()
    array = np.asarray(data, dtype=wanted)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be real numbers or bools, got {type(data).__name__}, to NumPy {array.dtype}")
    from_python = isinstance(data, float | int | list | tuple) and not isinstance(data, np.generic)
    return array.astype(np.float32) if wanted is None and from_python and array.dtype == np.float64 else array


def array_of(x: Any) -> Any:
    """The array of a tensor; anything else as it is."""
    return x.array if isinstance(x, Tensor) else x


def ndarray_of(x: Any) -> Array:
    """The array of a tensor, or what NumPy makes an array of."""
    return x.array if isinstance(x, Tensor) else np.asarray(x)


def shape_of(input: Any) -> tuple[int, ...]:
    """The shape of a tensor, an array, or what NumPy makes an array of."""
    return input.array.shape if isinstance(input, Tensor) else np.shape(input)
