"""What all kinds of communicators share: checks of arguments, and collectives in terms of simpler ones."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np

from sorix_dist.comm.protocol import Array, Comm, Op, Pieces, Started

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


# -- sums in the order of the ranks, and pieces one after the other

_FUNCTIONS = {"sum": np.add, "max": np.maximum, "min": np.minimum}


def combined(arrays: Sequence[Array], op: Op) -> Array:
    """What `Comm.all_reduce` makes of these arrays, one of each rank; float16 in float32."""
    wide = np.float32 if arrays[0].dtype == np.float16 else arrays[0].dtype
    total: Array = reduce(_FUNCTIONS[op], arrays[1:], arrays[0].astype(wide))
    return total


def write(total: Array, array: Array) -> None:
    """Overwrites an array by a total, which is rounded if that is wider."""
    with np.errstate(over="ignore"):
        array[...] = total


def one_by_one(comm: Comm, pieces: Pieces) -> Started:
    """`Comm.start_pieces` without anything under way: all pieces travel at the end, one after the other."""

    def finish() -> None:
        for piece in range(pieces.count):
            received = comm.all_to_all(pieces.send(piece))
            pieces.receive(piece, comm.all_gather(pieces.combine(piece, received)))

    return Started(lambda: None, finish)
