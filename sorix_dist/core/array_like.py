"""What a tensor says of its array: shape, type, and the numbers in Python's terms."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from sorix_dist.core.device import CPU
from sorix_dist.core.device import device as Device
from sorix_dist.core.dtype import DType, name_of
from sorix_dist.core.home import Array


class Size(tuple[int, ...]):
    """The shape of a tensor."""

    def __repr__(self) -> str:
        return f"sorix_dist.Size([{', '.join(map(str, self))}])"

    def __call__(self, dim: int | None = None) -> Size | int:
        """The shape, or its entry `dim`, for `tensor.size()` and `tensor.size(0)`."""
        return self if dim is None else self[dim]

    def numel(self) -> int:
        """The number of elements of a tensor of this shape."""
        return int(np.prod(self))


class ArrayLike:
    """What holds an array, and looks like it from outside."""

    __slots__ = ()

    array: Array

    @property
    def visible(self) -> Array:
        """The numbers as users see them."""
        return self.array

    @property
    def shape(self) -> Size:
        """The number of elements along each dimension."""
        return Size(self.array.shape)

    @property
    def dtype(self) -> DType:
        """The type of the elements."""
        return name_of(self.array.dtype)

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return self.array.ndim

    @property
    def numel(self) -> int:
        """The number of elements."""
        return self.array.size

    size_prop = numel

    @property
    def device(self) -> Device:
        """Where the numbers are: always the CPU."""
        return CPU

    @property
    def size(self) -> Size:
        """The shape, which may be called: `size()` is the shape, `size(dim)` one entry of it."""
        return self.shape

    def is_floating_point(self) -> bool:
        """Whether the elements are of a type that can have gradients."""
        return bool(self.array.dtype.kind == "f")

    def contiguous(self) -> Self:
        """This tensor; operations take any memory layout."""
        return self

    def dim(self) -> int:
        """The number of dimensions."""
        return self.array.ndim

    def item(self) -> Any:
        """The only element as a Python number."""
        return self.visible.item()

    def numpy(self) -> Array:
        """The array itself."""
        return self.visible

    to_numpy = numpy

    def tolist(self) -> Any:
        """The elements as nested Python lists."""
        return self.visible.tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self.visible, dtype=dtype, copy=copy)

    def __len__(self) -> int:
        if not self.array.ndim:
            raise TypeError("len() of a 0-d tensor")
        return len(self.array)

    def __bool__(self) -> bool:
        return bool(self.visible)

    def __float__(self) -> float:
        return float(self.visible)

    def __int__(self) -> int:
        return int(self.visible)

    def __index__(self) -> int:
        if self.array.dtype.kind not in "iub" or self.array.size != 1:
            raise TypeError(f"only one integer can be an index, got shape {self.array.shape} of {self.array.dtype}")
        return int(self.visible.item())
