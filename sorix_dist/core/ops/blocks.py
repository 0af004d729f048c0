"""Products of matrices in blocks that are SMALL, so that OpenBLAS multiplies them without copying its operands first.

Where one side of a product is short, such as the few channels of a convolution, these copies take as long as the
product. Only OpenBLAS's kernels for AVX-512 can do without; with others, whole products are faster.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import numpy as np

from sorix_dist._blas import kernels, libraries
from sorix_dist.core.tensor import Array

SMALL = 1_000_000  # multiplications of a product, at most
FLAT = 1_200  # numbers in the result, at most, if the right operand is a transposed one
TURNED = 1 << 12  # numbers in a transposed matrix that is copied first, at most
LONG = 1_024  # pixels of a block of a transposed product, if there are as many
CACHED = 600_000  # numbers in a matrix whose blocks are multiplied by several blocks of the other one, at most
NARROW = 64  # columns or, of a transposed product, pixels of a block, at least


@cache
def _openblas() -> Any | None:
    """NumPy's OpenBLAS, if its kernels are those that multiply without copying."""
    library = next((each for each in libraries() if each.internal_api == "openblas"), None)
    return library if library and kernels(library) in ("SkylakeX", "Cooperlake", "SapphireRapids") else None


def without_copies() -> bool:
    """Whether small products are multiplied without copying."""
    return _openblas() is not None


def one_thread() -> bool:
    """Whether this OpenBLAS uses one thread: several share a whole product, but not a small one."""
    library = _openblas()
    return library is not None and library.num_threads == 1


@lru_cache(maxsize=1024)
def _divisor(count: int, most: int) -> int:
    """The largest divisor of `count` that is not larger than `most`, but for 1."""
    return next(n for n in range(max(1, min(count, most)), 0, -1) if count % n == 0)


def _length(count: int, each: int) -> int:
    """Into blocks of how many of `count` columns to cut a product with `each` multiplications a column."""
    length = _divisor(count, SMALL // each) if each and count and without_copies() else count
    return length if length >= NARROW else count


def multiply(matrix: Array, matrices: Array, out: Array) -> None:
    """Writes matrix (groups, 1, rows, depth) times matrices (groups, products, depth, columns) to `out`."""
    rows, depth = matrix.shape[2:]
    columns, high = matrices.shape[3], rows
    length = _length(columns, rows * depth)
    if rows * depth * length > SMALL and depth * columns <= CACHED and one_thread():
        high = _divisor(rows, SMALL // (NARROW * depth))
        length = _length(columns, high * depth) if high >= 8 else columns
    if length == columns:
        np.matmul(matrix, matrices, out=out)
        return
    left = matrix.reshape(len(matrix), 1, 1, rows // high, high, depth)
    right = matrices.reshape(*matrices.shape[:3], columns // length, length).swapaxes(2, 3)[:, :, :, None]
    results = out.reshape(*out.shape[:2], rows // high, high, columns // length, length).transpose(0, 1, 4, 2, 3, 5)
    np.matmul(left, right, out=results)


def product(left: Array, right: Array, out: Array | None = None) -> Array:
    """left (..., rows, depth) @ right (..., depth, columns), in `out` if given.

    It gains where each matrix has some 100 rows: those slightly too large are cut into blocks of rows, and a small
    transposed one is copied, which takes less than the copies of the product do.
    """
    (rows, depth), columns = left.shape[-2:], right.shape[-1]
    size, turned = rows * depth * columns, right.strides[-1] > right.strides[-2]
    if not 0 < size <= 4 * SMALL or left.itemsize != 4 or (turned and depth * columns > TURNED) or not one_thread():
        return np.matmul(left, right, out=out)
    right = np.ascontiguousarray(right) if turned else right
    high = _divisor(rows, SMALL // (depth * columns)) if size > SMALL else rows
    if high == rows or high < 16:
        return np.matmul(left, right, out=out)
    cut = (rows // high, high)
    place = None if out is None else out.reshape(*out.shape[:-2], *cut, columns)
    made = np.matmul(left.reshape(*left.shape[:-2], *cut, depth), right[..., None, :, :], out=place)
    return made.reshape(*made.shape[:-3], rows, columns) if out is None else out


def multiply_transposed(matrices: Array, others: Array) -> Array:
    """The sums of all products of matrices (groups, products, rows, pixels) and the transposes of others (groups,
    products, columns, pixels), (groups, rows, columns)."""
    groups, products, rows, pixels = matrices.shape
    columns = others.shape[2]
    wide = _divisor(columns, 32)
    high = _divisor(rows, min(FLAT // wide, SMALL // (wide * max(1, min(pixels, LONG)))))
    few = products * rows * columns * pixels <= SMALL or 2 * high * wide < min(FLAT, rows * columns)
    if few or not one_thread():
        # In this order, not transposed: a product is faster if its columns are few.
        return np.asarray(np.matmul(matrices, others.swapaxes(2, 3)).sum(axis=1))
    length = _length(pixels, high * wide)
    cut = pixels // length
    left = matrices.reshape(groups, products, rows // high, 1, high, cut, length).transpose(0, 1, 5, 2, 3, 4, 6)
    right = others.reshape(groups, products, 1, columns // wide, wide, cut, length).transpose(0, 1, 5, 2, 3, 6, 4)
    if products == cut == 1:
        result = np.empty((groups, rows, columns), left.dtype)
        place = result.reshape(groups, rows // high, high, columns // wide, wide).swapaxes(2, 3)
        np.matmul(left[:, 0, 0], right[:, 0, 0], out=place)
        return result
    sums: Array = np.matmul(left, right).sum(axis=(1, 2))
    return sums.swapaxes(2, 3).reshape(groups, rows, columns)
