"""Sums of arrays that stay exact where there are many terms."""

from __future__ import annotations

from typing import Any

import numpy as np

from sorix_dist.core.memory import Array

BLOCK = 512
_LONG = 2 * BLOCK


def add_up(x: Array, axis: tuple[int, ...] | int | None = None, keepdims: bool = False) -> Array:
    """np.sum of an array of floats in its own dtype, where float32 has many terms by blocks of BLOCK terms.

    NumPy adds pairwise along the dimension that lies together in memory, and one by one along the others; there the
    error of the sum grows with the number of terms, and that of blocks with its root.
    """
    if x.dtype != np.float32 or x.size <= _LONG:
        return np.asarray(np.sum(x, axis=axis, keepdims=keepdims))
    axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    reduced = {a % x.ndim for a in axes}
    # The longest of the dimensions along which NumPy adds one by one.
    outer = reduced - {x.ndim - 1} if x.flags.c_contiguous else reduced
    longest = max(outer, key=x.shape.__getitem__, default=0)
    length = x.shape[longest]
    if not outer or length <= _LONG or (x.flags.c_contiguous and len(reduced) == x.ndim):
        return np.asarray(np.sum(x, axis=axis, keepdims=keepdims))
    blocks = length // BLOCK
    before: tuple[Any, ...] = (slice(None),) * longest
    many = x[*before, : blocks * BLOCK]
    many = many.reshape(*x.shape[:longest], blocks, BLOCK, *x.shape[longest + 1 :])
    over = tuple(sorted(a + (a >= longest) for a in reduced))
    sums = add_up(np.sum(many, axis=over, keepdims=True), longest, keepdims=True)
    total = np.squeeze(sums, longest)
    if blocks * BLOCK < length:
        total = total + np.sum(x[*before, blocks * BLOCK :], axis=tuple(reduced), keepdims=True)
    return total if keepdims else np.squeeze(total, tuple(reduced))
