"""Which dtype operands of different dtypes get together: PyTorch's rules, which keep float32 where NumPy does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

DTypeOf = np.dtype[Any]

_RANKS = {"b": 0, "u": 1, "i": 1, "f": 2, "c": 3}
_OF_NUMBERS = {bool: np.dtype(np.bool_), int: np.dtype(np.int64), float: np.dtype(np.float32)}


def promoted(operands: Sequence[Any], to_float: bool = False) -> list[Any]:
    """The arrays among the operands in their common dtype; numbers and None stay as they are.

    The highest kind decides (bool, integer, float). Within a kind, arrays with dimensions come before 0-d
    arrays, and those before Python numbers, whose floats count as float32. `to_float` makes float32 of what
    would be integer or bool (as for division and sin).
    """
    result = common_dtype(operands)
    if to_float and result is not None and _RANKS.get(result.kind, 3) < 2:
        result = np.dtype(np.float32)
    return [x.astype(result, copy=False) if isinstance(x, np.ndarray) else x for x in operands]


def common_dtype(operands: Sequence[Any]) -> DTypeOf | None:
    """The dtype of the operands together; None if all are None."""
    with_dimensions: DTypeOf | None = None
    without: DTypeOf | None = None
    number: DTypeOf | None = None
    for x in operands:
        if isinstance(x, np.ndarray):
            if x.ndim:
                with_dimensions = _together(with_dimensions, x.dtype)
            else:
                without = _together(without, x.dtype)
        elif x is not None:
            number = _together(number, _OF_NUMBERS.get(type(x)) or np.asarray(x).dtype)
    return _before(with_dimensions, _before(without, number))


def _together(a: DTypeOf | None, b: DTypeOf) -> DTypeOf:
    """Of two dtypes of equal weight: the higher kind, and within a kind the wider."""
    if a is None or a == b:
        return b
    rank_a, rank_b = _RANKS.get(a.kind, 3), _RANKS.get(b.kind, 3)
    if rank_a == rank_b:
        return np.promote_types(a, b)
    return a if rank_a > rank_b else b


def _before(first: DTypeOf | None, second: DTypeOf | None) -> DTypeOf | None:
    """Of two dtypes the first counts, unless the second is of a higher kind."""
    if first is None or second is None:
        return second if first is None else first
    return first if _RANKS.get(first.kind, 3) >= _RANKS.get(second.kind, 3) else second
