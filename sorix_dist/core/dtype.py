"""The element types: their names `float32`, `int64`, … and the dtype that operands of several get together."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = [
    "DType", "bool", "bool_", "byte", "double", "float", "float16", "float32", "float64", "half", "int", "int16",
    "int32", "int64", "int8", "long", "short", "uint8", "can_cast", "finfo", "iinfo",
    "promote_types",
]  # fmt: skip


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
        if named.kind != "V":  # of nothing, or a record
            return named
    except TypeError:
        pass
    raise TypeError(f"dtype must name an element type such as 'float32', got {value!r}")


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


def finfo(dtype: Any) -> np.finfo[Any]:
    """NumPy's limits of a floating point dtype: `finfo(x.dtype).min`, `eps` and others."""
    return np.finfo(as_dtype(dtype))


def iinfo(dtype: Any) -> np.iinfo[Any]:
    """NumPy's limits of an integer dtype: `min` and `max`."""
    return np.iinfo(as_dtype(dtype))


def promote_types(type1: Any, type2: Any) -> DType:
    """The dtype of what is computed of tensors of two dtypes."""
    return name_of(_wider(as_dtype(type1), as_dtype(type2)))


def can_cast(from_: Any, to: Any) -> builtins.bool:
    """Whether what is computed in one dtype may be written into a tensor of another: the kind must not be lower."""
    return _rank(as_dtype(from_)) <= _rank(as_dtype(to))


DTypeOf = np.dtype[Any]
_RANKS = {"b": 0, "u": 1, "i": 1, "f": 2, "c": 3}
_OF_NUMBERS = {bool: np.dtype(np.bool_), int: np.dtype(np.int64), float: np.dtype(np.float32)}


def promoted(operands: Sequence[Any], to_float: builtins.bool = False) -> list[Any]:
    """The arrays among the operands in their common dtype; numbers and None stay as they are.

    The highest kind decides (bool, integer, float). Within a kind, arrays with dimensions come before 0-d
    arrays, and those before Python numbers, whose floats count as float32. `to_float` makes float32 of what
    would be integer or bool (as for division and sin).
    """
    result = common_dtype(operands)
    if to_float and result is not None and _rank(result) < 2:
        result = np.dtype(np.float32)
    return [x.astype(result, copy=False) if isinstance(x, np.ndarray) else x for x in operands]


def common_dtype(operands: Sequence[Any]) -> DTypeOf | None:
    """The dtype of the operands together; None if all are None."""
    levels: list[DTypeOf | None] = [None, None, None]  # of arrays with dimensions, of 0-d arrays, of numbers
    for x in operands:
        if isinstance(x, np.ndarray):
            level = 0 if x.ndim else 1
            levels[level] = _wider(levels[level], x.dtype)
        elif x is not None:
            levels[2] = _wider(levels[2], _OF_NUMBERS.get(type(x)) or np.asarray(x).dtype)
    found = None
    for dtype in levels:
        if found is None or (dtype is not None and _rank(dtype) > _rank(found)):
            found = dtype
    return found


def _wider(a: DTypeOf | None, b: DTypeOf) -> DTypeOf:
    """The dtype of the higher kind, and within a kind the wider."""
    if a is None or a == b:
        return b
    return np.promote_types(a, b) if _rank(a) == _rank(b) else a if _rank(a) > _rank(b) else b


def _rank(dtype: DTypeOf) -> builtins.int:
    return _RANKS.get(dtype.kind, 3)


float16, float32, float64 = DType(np.float16), DType(np.float32), DType(np.float64)
int8, int16, int32, int64, uint8 = map(DType, (np.int8, np.int16, np.int32, np.int64, np.uint8))
bool_ = DType(np.bool_)
_NAMED = {named.dtype: named for named in (float16, float32, float64, int8, int16, int32, int64, uint8, bool_)}


def name_of(dtype: np.dtype[Any]) -> DType:
    """The DType of a NumPy type."""
    return _NAMED.get(dtype) or DType(dtype)


# Two of these names hide Python's own, in this module only.
half, float, double = float16, float32, float64
short, int, long, byte, bool = int16, int32, int64, uint8, bool_
