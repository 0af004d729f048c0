"""The names of the element types: `float32`, `int64`, … and their PyTorch-like aliases."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np


class DType:
    """The type of a tensor's elements; equal to its NumPy type, to its name, and to nothing else."""

    __slots__ = ("dtype", "name")

    def __init__(self, dtype: Any) -> None:
        # NumPy reads the attribute `dtype`, so that `np.zeros(3, dtype=sx.float32)` works.
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.name: str = self.dtype.name

    def __repr__(self) -> str:
        return f"sorix_dist.{self.name}"

    def __hash__(self) -> builtins.int:
        return hash(self.dtype)

    def __eq__(self, other: object) -> builtins.bool:
        try:
            return other is not None and builtins.bool(self.dtype == as_dtype(other))
        except TypeError:
            return False

    @property
    def is_floating_point(self) -> builtins.bool:
        """Whether tensors of this type can require a gradient."""
        return builtins.bool(self.dtype.kind == "f")


def as_dtype(value: Any) -> np.dtype[Any]:
    """The NumPy type that `value` names: a DType, a NumPy type, a Python type or a string such as
    "float32" or "sorix_dist.float32"; TypeError for anything else."""
    if isinstance(value, DType):
        return value.dtype
    if isinstance(value, str):
        value = value.removeprefix("sorix_dist.")
    try:
        named: np.dtype[Any] = np.dtype(value)
    except TypeError as error:
        raise TypeError(f"dtype must name an element type such as 'float32', got {value!r}") from error
    return named


def or_float32(value: Any) -> np.dtype[Any]:
    """The NumPy type that `value` names, float32 for None."""
    return np.dtype(np.float32) if value is None else as_dtype(value)


def names_dtype(value: Any) -> builtins.bool:
    """Whether `as_dtype` takes it."""
    try:
        as_dtype(value)
    except TypeError:
        return False
    return True


float16, float32, float64 = DType(np.float16), DType(np.float32), DType(np.float64)
int16, int32, int64, uint8 = DType(np.int16), DType(np.int32), DType(np.int64), DType(np.uint8)
bool_ = DType(np.bool_)

_NAMED = {named.dtype: named for named in (float16, float32, float64, int16, int32, int64, uint8, bool_)}


def name_of(dtype: np.dtype[Any]) -> DType:
    """The DType of a NumPy type."""
    return _NAMED.get(dtype) or DType(dtype)


# Two of these names hide Python's own, in this module only.
half, float, double = float16, float32, float64
short, int, long, byte, bool = int16, int32, int64, uint8, bool_
