"""Products of matrices in blocks that are SMALL, so that OpenBLAS multiplies them without copying its operands first.

Where one side of a product is short, such as the few channels of a convolution, these copies take as long as the
product. Only OpenBLAS's kernels for AVX-512 can do without; with others, whole products are faster.
"""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
from threadpoolctl import threadpool_info

from sorix_dist.core.tensor import Array

SMALL = 1_000_000  # multiplications of a product, at most
FLAT = 1_200  # numbers in the result, at most, if the right operand is a transposed one
NARROW = 64  # columns or, of a transposed product, pixels of a block, at least


@cache
def without_copies() -> bool:
    """Whether NumPy's BLAS has kernels that multiply without copying."""
    kernels = {library.get("architecture") for library in threadpool_info()}
    return not kernels.isdisjoint({"SkylakeX", "Cooperlake", "SapphireRapids"})


@lru_cache(maxsize=1024)
def _divisor(count: int, most: int) -> int:
    """The largest divisor of `count` that is not larger than `most`, but for 1."""
    return next(n for n in range(max(1, min(count, most)), 0, -1) if count % n == 0)


def _length(count: int, each: int) -> int:
    """Into blocks of how many of `count` columns to cut a product with `each` multiplications a column."""
    length = _divisor(count, SMALL // each) if each and count and without_copies() else count
    return length if length >= NARROW else count


def _cut(matrices: Array, length: int) -> Array:
    """Matrices (groups, products, rows, columns) as a view (groups, products, blocks, rows, length)."""
    return matrices.reshape(*matrices.shape[:3], -1, length).swapaxes(2, 3)


def multiply(matrix: Array, matrices: Array, out: Array) -> None:
    """Writes matrix (groups, 1, rows, depth) times matrices (groups, products, depth, columns) to `out`."""
    length = _length(matrices.shape[3], matrix.shape[2] * matrix.shape[3])
    if length == matrices.shape[3]:
        np.matmul(matrix, matrices, out=out)
    else:
        np.matmul(matrix[:, :, None], _cut(matrices, length), out=_cut(out, length))


def multiply_transposed(matrices: Array, others: Array) -> Array:
    """The sums of all products of matrices (groups, products, rows, pixels) and the transposes of others (groups,
    products, columns, pixels), (groups, rows, columns)."""
    groups, products, rows, pixels = matrices.shape
    columns = others.shape[2]
    wide = _divisor(columns, 32)
    high = _divisor(rows, FLAT // wide)
    if not without_copies() or 2 * high * wide < min(FLAT, rows * columns):
        # In this order, not transposed: a product is faster if its columns are few.
        return np.asarray(np.matmul(matrices, others.swapaxes(2, 3)).sum(axis=1))
    length = _length(pixels, high * wide)
    left = matrices.reshape(groups, products, rows // high, 1, high, -1, length).transpose(0, 1, 5, 2, 3, 4, 6)
    right = others.reshape(groups, products, 1, columns // wide, wide, -1, length).transpose(0, 1, 5, 2, 3, 6, 4)
    sums: Array = np.matmul(left, right).sum(axis=(1, 2))
    return sums.swapaxes(2, 3).reshape(groups, rows, columns)
