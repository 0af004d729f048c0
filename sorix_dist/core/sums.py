"""Sums of many float32 numbers, with less rounding than those of NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sorix_dist.core.memory import Array

_BLOCK = 512
_LONG = 2 * _BLOCK
_sum: Any = np.add.reduce  # np.sum, without a microsecond of Python


def sum_in_blocks(x: Array, axis: tuple[int, ...] | int | None = None, keepdims: bool = False) -> Array:
    """np.sum of an array of floats in its own dtype, where float32 has many terms by blocks of _BLOCK terms.

    NumPy adds pairwise along the dimension that lies together in memory, and one by one along the others; there the
    error of the sum grows with the number of terms, and that of blocks with its root.
    """
    if x.dtype != np.float32 or x.size <= _LONG:
        return np.asarray(_sum(x, axis=axis, keepdims=keepdims))
    axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    reduced = tuple(a % x.ndim for a in axes)
    one_by_one = [a for a in reduced if a != x.ndim - 1 or not x.flags.c_contiguous]
    terms = math.prod(x.shape[a] for a in one_by_one)
    if terms <= _LONG or (x.flags.c_contiguous and len(reduced) == x.ndim):
        return np.asarray(_sum(x, axis=axis, keepdims=keepdims))
    longest = max(one_by_one, key=x.shape.__getitem__)
    if len(reduced) > 1:
        return sum_in_blocks(sum_in_blocks(x, longest, keepdims=True), reduced, keepdims)
    length, before = x.shape[longest], (slice(None),) * longest
    whole = length // _BLOCK * _BLOCK
    blocks = x[*before, :whole].reshape(*x.shape[:longest], -1, _BLOCK, *x.shape[longest + 1 :])
    total = sum_in_blocks(np.sum(blocks, axis=longest + 1), longest, keepdims)
    return total if whole == length else total + np.sum(x[*before, whole:], axis=longest, keepdims=keepdims)


def scaled_sum(x: Array, scale: float) -> Array:
    """The sum of all elements of an array of floats, times `scale`; float16 is added in float32, since the sum may not
    fit where the result does."""
    if x.dtype.char == "e":
        return np.asarray(_sum(x, axis=None, dtype=np.float32) * scale, x.dtype)
    return sum_in_blocks(x) * scale
