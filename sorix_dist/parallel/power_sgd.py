"""PowerSGD: a communication hook that sends low-rank approximations of the gradients of weight matrices."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from sorix_dist.comm import Comm, agreed
from sorix_dist.core.flat import BLOCK
from sorix_dist.core.tensor import Array


class Matrix(NamedTuple):
    """Elements of an array that are a matrix, from element `start` on."""

    start: int
    rows: int
    columns: int

    @property
    def stop(self) -> int:
        return self.start + self.rows * self.columns


def matrices_in(matrices: Iterable[Matrix], own: slice) -> list[Matrix]:
    """The whole rows of matrices that lie in a slice, counted from its start."""
    found = []
    for start, rows, columns in matrices:
        first, last = (min(max(at - start, 0), rows * columns) for at in (own.start, own.stop))
        first, last = -(-first // columns), last // columns
        if first < last:
            found.append(Matrix(start + first * columns - own.start, last - first, columns))
    return found


class PowerSGD:
    """A hook that sends low-rank approximations of the gradients: rank (n + m) numbers each way for an n x m weight.

    Each parameter with two or more dimensions is a matrix M, its first dimension by all others (where several ranks of
    a host have slices of the gradients, the whole rows in a slice are). One step of subspace iteration starts from the
    last step's Q (Vogels et al. 2019, PowerSGD): P = M Q, orthonormal columns of P, Q = M' P, sum = P Q'. What the
    approximation misses on a rank is added to that rank's next gradients. Biases are summed as they are, and so are
    matrices that are too small: P and Q must have at most half as many numbers as M.
    It loses a part of each gradient, and repays it over the next steps: compare the accuracy with exact training, and
    raise `rank` or `start` if it is less. The missing gradients are in no checkpoint.

    rank: of the approximations, 1 or more; start: the first steps, which are exact: early gradients change fast.
    Register one object per wrapped model.
    """

    def __init__(self, rank: int = 4, start: int = 0) -> None:
        for name, value, least in (("rank", rank, 1), ("start", start, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"PowerSGD: {name} must be an int of {least} or more, got {value!r}")
        self.rank, self.start = rank, start
        self._states: WeakKeyDictionary[Comm, dict[tuple[np.dtype[Any], int], LowRankSum]] = WeakKeyDictionary()

    def describe(self) -> str:
        """Its options, which must be the same on every rank."""
        return f"PowerSGD(rank={self.rank}, start={self.start})"

    def of_matrices(self, matrices: Sequence[Matrix]) -> LowRankSum:
        """The hook for arrays in which these matrices lie."""
        return LowRankSum(self.rank, self.start, matrices)

    def __call__(self, comm: Comm, gradients: Array) -> None:
        """Sums an array that is taken for one nearly square matrix, as PyTorch's `batched_powerSGD_hook` does."""
        rows = max(math.isqrt(gradients.size), 1)
        states = self._states.setdefault(comm, {})
        key = gradients.dtype, gradients.size
        if key not in states:
            states[key] = self.of_matrices([Matrix(0, rows, gradients.size // rows)])
        states[key](comm, gradients)


class LowRankSum:
    """PowerSGD of arrays of one layout. missing: what this rank's gradients lost in all earlier steps."""

    missing: Array

    def __init__(self, rank: int, start: int, matrices: Sequence[Matrix]) -> None:
        self.rank, self.start, self.steps = rank, start, 0
        self.matrices = [m for m in matrices if 2 * rank * (m.rows + m.columns) <= m.rows * m.columns]
        self._left: Array | None = None

    def sent(self, count: int) -> tuple[int, int]:
        """How many numbers are in P together with the gradients that are no matrix, and in Q, for an array of `count`;
        (count, 0) if no matrix is large enough."""
        left = count - sum(m.rows * m.columns - self.rank * m.rows for m in self.matrices)
        return left, sum(self.rank * m.columns for m in self.matrices)

    def _allocate(self, gradients: Array) -> None:
        """Makes one array for all P, with the gradients that are no matrix behind them, and one for all Q."""
        work = np.promote_types(gradients.dtype, np.float32)
        ends = [0, *(m.stop for m in self.matrices)]
        begins = [*(m.start for m in self.matrices), gradients.size]
        self._rest = [slice(a, b) for a, b in zip(ends, begins, strict=True) if a < b]
        heights = [m.rows * self.rank for m in self.matrices]
        widths = [m.columns * self.rank for m in self.matrices]
        self._left = np.zeros(sum(heights) + sum(part.stop - part.start for part in self._rest), work)
        self._lefts = [
            self._left[end - n : end].reshape(-1, self.rank) for n, end in zip(heights, np.cumsum(heights), strict=True)
        ]
        self._tail = self._left[sum(heights) :]
        self._right = np.empty(sum(widths), work)
        self._begin()
        self._rights = [
            self._right[end - n : end].reshape(-1, self.rank) for n, end in zip(widths, np.cumsum(widths), strict=True)
        ]
        self._mine, self.missing = np.zeros((2, gradients.size), work)

    def _begin(self) -> None:
        """Makes the subspace iteration begin anew, from the same Q on every rank."""
        self._right[:] = np.random.Generator(np.random.Philox(0)).standard_normal(self._right.size)

    def __call__(self, comm: Comm, gradients: Array) -> None:
        self.steps, comm = self.steps + 1, agreed(comm)
        if not self.matrices or self.steps <= self.start:
            comm.all_reduce(gradients)
            return
        if self._left is None:
            self._allocate(gradients)
        left, tail, mine, missing = self._left, self._tail, self._mine, self.missing
        assert left is not None
        np.add(gradients, missing, out=mine)
        for matrix, p, q in zip(self.matrices, self._lefts, self._rights, strict=True):
            q *= _inverse(q)  # the size of Q is that of the last gradients, and does not matter
            np.matmul(_of(mine, matrix), q, out=p)
        if tail.size:
            np.concatenate([gradients[part] for part in self._rest], out=tail, casting="same_kind")
        comm.all_reduce(left)
        if not np.isfinite(left).all():  # the missing gradients stay as they are
            gradients.fill(np.nan)
            return
        # By one rank: the bits that a BLAS computes depend on the processor, and the ranks must not drift apart.
        if comm.rank == 0:
            for p in self._lefts:
                p[...] = np.linalg.qr(p)[0]
        comm.broadcast(left[: left.size - tail.size])
        for matrix, p, q in zip(self.matrices, self._lefts, self._rights, strict=True):
            np.matmul(_of(mine, matrix).T, p, out=q)
        own = [q.copy() for q in self._rights]
        comm.all_reduce(self._right)
        if not np.isfinite(self._right).all():
            gradients.fill(np.nan)
            self._begin()
            return
        for matrix, p, q in zip(self.matrices, self._lefts, own, strict=True):
            np.subtract(_of(mine, matrix), p @ q.T, out=_of(missing, matrix))
        for matrix, p, q in zip(self.matrices, self._lefts, self._rights, strict=True):
            multiply(p, np.ascontiguousarray(q.T), gradients[matrix.start : matrix.stop])
        done = 0
        for part in self._rest:
            count = part.stop - part.start
            gradients[part] = tail[done : done + count]
            done += count


def _of(array: Array, matrix: Matrix) -> Array:
    return array[matrix.start : matrix.stop].reshape(matrix.rows, matrix.columns)


def _inverse(q: Array) -> Any:
    """A power of two that makes the largest number about 1; 1 for zeros."""
    _, exponent = np.frexp(np.abs(q).max(initial=0))
    return q.dtype.type(np.ldexp(1.0, -int(np.clip(exponent, -100, 100))))


def multiply(left: Array, right: Array, out: Array) -> None:
    """Writes the product to a flat array, in blocks that fit the cache, and without BLAS: the same bits on all
    processors."""
    columns = right.shape[1]
    count = max(1, BLOCK // columns)
    block, term = np.empty((2, count, columns), right.dtype)
    for first in range(0, len(left), count):
        factors = left[first : first + count]
        block, term = block[: len(factors)], term[: len(factors)]
        np.multiply(factors[:, :1], right[0], out=block)
        for k in range(1, len(right)):
            np.multiply(factors[:, k : k + 1], right[k], out=term)
            block += term
        part = out[first * columns : (first + count) * columns]
        part[:] = block.reshape(-1)
