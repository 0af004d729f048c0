"""Checks of the arguments of collectives, the same for all kinds of communicators."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

OPS = ("sum", "max", "min")
DTYPES = frozenset(np.dtype(code) for code in "?bhilqBHILQefd")


def check_array(call: str, array: object, *, written: bool) -> None:
    """Raise TypeError or ValueError unless `array` can be sent and, if `written`, received into."""
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
    if not isinstance(op, str) or op not in OPS:
        raise ValueError(f"{call}: op must be one of {', '.join(map(repr, OPS))}, got {op!r}")


def check_root(call: str, root: object, size: int) -> None:
    """Raise TypeError or ValueError unless `root` is one of `size` ranks."""
    if not 0 <= as_int(call, "root", root) < size:
        raise ValueError(f"{call}: root must be a rank from 0 to {size - 1}, got {root}")


def check_split(color: object, key: object) -> None:
    """Raise TypeError or ValueError unless `color` and `key` are valid arguments of `split`."""
    as_int("split", "key", key)
    if as_int("split", "color", color) < 0:
        raise ValueError(f"split: color must be 0 or more, got {color}")


def check_nbytes(nbytes: object) -> None:
    """Raise TypeError or ValueError unless `nbytes` is a valid size of a window."""
    if as_int("window", "nbytes", nbytes) < 0:
        raise ValueError(f"window: nbytes must be 0 or more, got {nbytes}")


def as_int(call: str, name: str, value: Any) -> int:
    """`value` as an int; raise TypeError if it is not an integer (a bool is not)."""
    if not isinstance(value, (bool, np.bool_)):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{call}: {name} must be an int, got {type(value).__name__} {value!r}")
