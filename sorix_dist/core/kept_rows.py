"""Which operations on rows of a batch give rows of it again, so that the result keeps the mark of its rows.

Each rule is asked with the shape of the first input, which has the mark, the shape of the result, and the options of
the operation. Its answer must not depend on how many rows there are: who holds other numbers of them decides alike.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

Shape = tuple[int, ...]
Rule = Callable[[Shape, Shape, dict[str, Any]], bool]


def never(before: Shape, after: Shape, options: dict[str, Any]) -> bool:
    """For operations that mix rows."""
    return False


def along_axis(before: Shape, after: Shape, options: dict[str, Any]) -> bool:
    """For what works along `axis` (None: all dimensions): if the rows are not in it."""
    axis = options["axis"]
    axes = axis if isinstance(axis, tuple) else (axis,)
    return after[:1] == before[:1] and all(a is not None and a % max(1, len(before)) for a in axes)


def reordered(before: Shape, after: Shape, options: dict[str, Any]) -> bool:
    """For dimensions in the order `axes`: if the first stays the first."""
    return bool(options["axes"]) and options["axes"][0] == 0


def reshaped(before: Shape, after: Shape, options: dict[str, Any]) -> bool:
    """For other shapes: if every row has as many elements as it had."""
    return after[:1] == before[:1] and prod(after[1:]) == prod(before[1:])


def expanded(before: Shape, after: Shape, options: dict[str, Any]) -> bool:
    """For repetition along dimensions: if it adds none in front, and no rows."""
    return len(after) == len(before) and after[0] == before[0]


def indexed(before: Shape, after: Shape, options: dict[str, Any]) -> bool:
    """For NumPy's indexing: if the index begins with `:` or `...`, and no array in it moves other dimensions."""
    key = options["index"]
    parts = key if isinstance(key, tuple) else (key,)
    if after[:1] != before[:1]:
        return False
    if parts:
        named = sum(p.ndim if isinstance(p, np.ndarray) and p.dtype == np.bool_ else p is not None for p in parts)
        all_rows = isinstance(parts[0], slice) and parts[0] == slice(None)
        if not all_rows and not (parts[0] is Ellipsis and named - 1 < len(before)):
            return False
    arrays = sum(isinstance(p, np.ndarray) for p in parts)
    numbers = sum(isinstance(p, int | np.integer) for p in parts)
    return arrays == 0 or (arrays == 1 and numbers == 0)


def padded(before: Shape, after: Shape, options: dict[str, Any]) -> bool:
    """For borders of `widths`: if the rows have none."""
    return len(before) > 0 and tuple(options["widths"][0]) == (0, 0)


def multiplied(before: Shape, after: Shape, options: dict[str, Any]) -> bool:
    """For products of rows with a matrix: if only the last dimension is another."""
    return len(before) > 1 and after[:-1] == before[:-1]
