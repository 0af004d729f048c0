"""Communication hooks, which replace the all-reduce of gradients, for instance by a compressed one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary
from zlib import crc32

import numpy as np

from sorix_dist.comm import Comm, Exchange, agreed
from sorix_dist.core.arguments import as_int, in_range
from sorix_dist.core.flat import BLOCK, Flat
from sorix_dist.core.keywords import missing_from
from sorix_dist.core.memory import PRIVATE
from sorix_dist.core.tensor import Array
from sorix_dist.parallel.float16 import Half, scale_of, scaled, size_of
from sorix_dist.parallel.reducers import GradientBuffer, Reducer, first_not_finite, is_finite

__all__ = ["PowerSGD", "TopK", "fp16_compress"]

Hook = Callable[[Comm, Array], None]
"""A function of a communicator and one-dimensional gradients that sums these in place over the communicator's ranks.

These are all ranks or, with several on each host, those that own the same slice of their host's sum. Every rank calls
it for each dtype of parameters. Zeros pad each parameter's gradient to whole cache lines.
The ranks have agreed on the step before.
"""

FEW = 1024  # gradients that `TopK` does not choose from: a message of all of them takes no longer


def fp16_compress(comm: Comm, gradients: Array) -> None:
    """Sums gradients in half the bytes: they are sent as float16 and added in float32. See `register_comm_hook`.

    Before, they are scaled by a power of two, so that the largest just fits. There is one scale for all gradients of
    all ranks; between hosts, one for at most 30,720 gradients.
    Each gradient is rounded to 11 significant bits (a relative error of up to 5e-4), and so is the sum; between hosts,
    also the sum of the first two hosts, of the first three, and so on. Let g be the size of the largest gradient times
    the number of ranks: gradients below 1e-9 g lose more bits, those below 1e-12 g become 0.
    """
    if fp16_compress not in comm.cache:
        comm.cache[fp16_compress] = comm.exchange(Half())
    exchange: Exchange | None = comm.cache[fp16_compress]
    if exchange is not None:
        exchange.sum(gradients, gradients)
        return
    comm = agreed(comm)
    largest = np.array([size_of(gradients)])
    comm.all_reduce(largest, "max")
    scale = scale_of(float(largest[0]) * comm.size)
    sent = np.zeros((comm.size, -(-gradients.size // comm.size)), np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled(gradients, scale, sent.reshape(-1)[: gradients.size])
        total = comm.all_to_all(sent).sum(axis=0, dtype=np.float32).astype(np.float16)
        scaled(comm.all_gather(total).reshape(-1)[: gradients.size], 1 / scale, gradients)


class TopK:
    """A hook that sends the largest gradients of each rank only, a share of `share` of them.

    Each rank adds the gradients that it has not sent yet to its new ones. It sends the largest of the sums by an
    all-gather, an index and a value each, and keeps the others for the next step (error feedback: Stich et al. 2018,
    Sparsified SGD with memory). The ranks choose different gradients, and the sum has all of them.
    A small gradient is sent when many of them have added up to a large one, and the parameters have moved on
    meanwhile. So training needs a model that tolerates that, often a warm-up with exact sums, and momentum
    counts delayed gradients too. The gradients that are not sent yet are in no checkpoint.

    Every rank receives twice the share of every other rank's numbers. From about 1 / share ranks on, an exact sum
    sends no more; it is made then, and for gradients that are too few to choose from.

    share: above 0, below 1. Register one object per wrapped model.
    """

    def __init__(self, share: float = 0.01) -> None:
        in_range("TopK: share", share, 0, 1, above=True)
        self.share = float(share)
        self._unsent: WeakKeyDictionary[Comm, dict[np.dtype[Any], Array]] = WeakKeyDictionary()

    def describe(self) -> str:
        """Its options, which must be the same on every rank."""
        return f"TopK(share={self.share})"

    def __call__(self, comm: Comm, gradients: Array) -> None:
        count = math.ceil(self.share * gradients.size)
        index = np.dtype(np.int32 if gradients.size < 1 << 31 else np.int64)
        work = np.promote_types(gradients.dtype, np.float32)
        nbytes = count * (index.itemsize + work.itemsize)
        if gradients.size <= FEW or (comm.size - 1) * nbytes >= 2 * gradients.nbytes:  # there is nothing to gain
            comm.all_reduce(gradients)
            return
        unsent, comm = self._unsent.setdefault(comm, {}), agreed(comm)
        mine = gradients.astype(work)
        if gradients.dtype in unsent:
            mine += unsent[gradients.dtype]
        size = np.abs(mine)
        chosen = np.flatnonzero(size >= np.partition(size, -count)[-count])[:count]
        if not is_finite(mine):
            chosen, mine = np.arange(count), np.full_like(mine, np.nan)
        message = np.concatenate([chosen.astype(index).view(np.uint8), mine[chosen].view(np.uint8)])
        total = np.zeros_like(mine)
        for received in comm.all_gather(message):  # in the order of ranks, so that all of them compute the same bits
            indices, values = received[: count * index.itemsize].view(index), received[count * index.itemsize :]
            total[indices] += values.view(work)
        gradients[:] = total
        if not is_finite(total):
            gradients.fill(np.nan)  # what is not sent yet stays as it is
            return
        mine[chosen] = 0
        unsent[gradients.dtype] = mine


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
        self.rank, self.start = as_int("PowerSGD: rank", rank, 1), as_int("PowerSGD: start", start, 0)
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


def described(hook: Hook) -> str:
    """A hook of this module with its options, to be compared between ranks."""
    if hook is fp16_compress:
        return "fp16_compress"
    describe: Callable[[], str] | None = getattr(hook, "describe", None)
    return "a hook of its own" if describe is None else describe()


def is_exchanged(hook: Hook | None) -> bool:
    """Whether an exchange sums as the hook does, or as there is none."""
    return hook is None or hook is fp16_compress


def exchange_like(hook: Hook | None, comm: Comm) -> Exchange | None:
    """The exchange that computes the hook's sum (or the plain sum without one); None if there is none for this hook or
    these ranks. A call of all ranks."""
    if not is_exchanged(hook):
        return None
    return comm.exchange(None if hook is None else Half())


def hook_for(hook: Hook, flat: Flat, own: slice) -> Hook:
    """The hook for the elements `own` of a flat array. One that approximates weight matrices has a method
    `of_matrices`, which takes where they are and returns the hook to call."""
    of_matrices: Callable[[list[Matrix]], Hook] | None = getattr(hook, "of_matrices", None)
    return hook if of_matrices is None else of_matrices(matrices_in(weight_matrices(flat), own))


def weight_matrices(flat: Flat) -> list[Matrix]:
    """The parameters with several dimensions, the first one by all others."""
    shapes = [parameter.array.shape for parameter in flat.parameters]
    return [
        Matrix(start, shape[0], prod(shape[1:]))
        for start, shape in zip(flat.starts, shapes, strict=True)
        if len(shape) > 1 and prod(shape)
    ]


def used_on_any_rank(comm: Comm, flags: bytes | memoryview, same_used: bool) -> bytes:
    """The flags of the parameters with a gradient on any rank. A call of all ranks, with the same `same_used`."""
    used = np.frombuffer(flags, np.uint8).copy()
    if not same_used:
        agreed(comm).all_reduce(used, "max")
    return used.tobytes()


class HookReducer(Reducer):
    """Calls a hook instead of an all-reduce of the whole array."""

    def __init__(self, flat: Flat, comm: Comm, hook: Hook) -> None:
        super().__init__(flat)
        self.comm, self.hook = comm, hook_for(hook, flat, slice(0, flat.size))
        self.total = PRIVATE.zeros(flat.size, flat.dtype)
        self.flags = np.zeros(len(flat.parameters), np.uint8)
        self.buffers = [GradientBuffer(flat, self.leaves, self.total, self.flags.data)]
        self.buffers[0].select()
        self._wrong: tuple[int, str] | None = None

    def used_digest(self) -> int:
        return crc32(self.flags.data)

    def reduce(self, overwrite: bool, same_used: bool, start_over: bool = False) -> None:
        # Looked for now, because the sum overwrites this rank's gradients.
        self._wrong = None if is_finite(self.total) else first_not_finite(self.buffers[0].views)
        # The array gets the gradients of all ranks, so the flags must cover them: the next step clears by flags.
        self.used = used_on_any_rank(self.comm, self.flags.data, same_used)
        self.flags[:] = np.frombuffer(self.used, np.uint8)
        self.hook(self.comm, self.total)
        self.flat.clear_gaps(self.total, slice(0, self.flat.size))

    def first_not_finite(self) -> tuple[int, str] | None:
        return self._wrong


__getattr__ = missing_from(__name__, globals())
