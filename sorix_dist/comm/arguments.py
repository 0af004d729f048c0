"""The checks of a communicator's arguments, the same whatever carries the messages."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

OPS = ("sum", "max", "min")
DTYPES = frozenset(np.dtype(code) for code in "?bhilqBHILQefd")


def check_array(call: str, array: object, *, written: bool) -> None:
    """Raise TypeError or ValueError unless `array` can be sent (and, if `written`, received into)."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{call}: array must be a numpy.ndarray, got {type(array).__name__}")
    if array.dtype not in DTYPES:
        raise TypeError(
            f"{call}: array must be of bool, (u)int8 to (u)int64, float16, float32 or float64 in this "
            f"machine's byte order, got dtype {array.dtype.str!r}"
        )
    if not array.flags.c_contiguous:
        raise ValueError(
            f"{call}: array must be C-contiguous, got shape {array.shape} with strides {array.strides}; "
            "numpy.ascontiguousarray makes a contiguous copy"
        )
    if written and not array.flags.writeable:
        raise ValueError(f"{call}: array is overwritten with the result, got a read-only array")


def check_one_each(call: str, array: object, size: int) -> None:
    """Raise TypeError or ValueError unless `array` can be sent and has one entry for each of `size` ranks."""
    check_array(call, array, written=False)
    shape = array.shape  # type: ignore[attr-defined]
    if shape[:1] != (size,):
        raise ValueError(f"{call}: array must have one entry for each of {size} ranks, got shape {shape}")


def check_op(call: str, op: object) -> None:
    """Raise ValueError unless `op` is a known reduction."""
    if op not in OPS:
        raise ValueError(f"{call}: op must be one of {', '.join(map(repr, OPS))}, got {op!r}")


def check_root(call: str, root: Any, size: int) -> None:
    """Raise TypeError or ValueError unless `root` is a rank of a communicator of `size` ranks."""
    if not 0 <= whole_number(call, "root", root) < size:
        raise ValueError(f"{call}: root must be a rank from 0 to {size - 1}, got {root}")


def check_split(color: Any, key: Any) -> None:
    """Raise TypeError or ValueError unless `color` and `key` can be those of `split`."""
    whole_number("split", "key", key)
    if whole_number("split", "color", color) < 0:
        raise ValueError(f"split: color must be 0 or more, got {color}")


def check_nbytes(nbytes: Any) -> None:
    """Raise TypeError or ValueError unless `nbytes` can be the size of a window's part."""
    if whole_number("window", "nbytes", nbytes) < 0:
        raise ValueError(f"window: nbytes must be 0 or more, got {nbytes}")


def whole_number(call: str, name: str, value: Any) -> int:
    """`value` as an int; raise TypeError if it is none (a bool counts as none)."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{call}: {name} must be an int, got {type(value).__name__} {value!r}") from None
