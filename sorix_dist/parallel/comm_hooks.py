"""Communication hooks, which replace the all-reduce of gradients, for instance by a compressed one."""

from __future__ import annotations

import math
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from sorix_dist.comm import Comm, Exchange
from sorix_dist.core.tensor import Array
from sorix_dist.parallel.reducers import Hook

LARGEST = 60_000.0
"""The largest sum in float16: a little below the largest float16, because the terms are rounded."""


class Half:
    """Sends float16, scaled per message by a power of two that keeps the maximum from overflowing; the scale is sent
    too."""

    itemsize: int | None = 2

    def pack(self, numbers: Array, body: Array) -> float:
        scale = _scale(_largest(numbers))
        with np.errstate(over="ignore", invalid="ignore"):
            _scaled(numbers, scale, body.view(np.float16))
        return scale

    def add(self, body: Array, scale: float, numbers: Array) -> float:
        total = np.empty(numbers.size, np.promote_types(numbers.dtype, np.float32))
        self.unpack(body, scale, total)
        with np.errstate(over="ignore", invalid="ignore"):
            total += numbers
        return self.pack(total, body)

    def unpack(self, body: Array, scale: float, out: Array) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            _scaled(body.view(np.float16), 1 / scale, out)


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
    largest = np.array([_largest(gradients)])
    comm.all_reduce(largest, "max")
    scale = _scale(float(largest[0]) * comm.size)
    sent = np.zeros((comm.size, -(-gradients.size // comm.size)), np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        _scaled(gradients, scale, sent.reshape(-1)[: gradients.size])
        total = comm.all_to_all(sent).sum(axis=0, dtype=np.float32).astype(np.float16)
        _scaled(comm.all_gather(total).reshape(-1)[: gradients.size], 1 / scale, gradients)


class PowerSGD:
    """A hook that sends a low-rank approximation of the gradients: of n gradients, about 2 rank sqrt(n) numbers.

    It takes all gradients as one nearly square matrix M, as PyTorch's `batched_powerSGD_hook` does, and makes one step
    of subspace iteration from the last step's Q (Vogels et al. 2019, PowerSGD): P = M Q, orthonormal columns of P,
    Q = M' P, sum = P Q'. What the approximation misses on a rank is added to that rank's next gradients.
    It loses a lot of each gradient, and repays it over the next steps. So it needs a model that tolerates that, and as
    many steps more as the comparison with exact training shows. The missing gradients are in no checkpoint.

    rank: of the approximation, 1 or more. Register one object per wrapped model.
    """

    def __init__(self, rank: int = 4) -> None:
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise ValueError(f"PowerSGD: rank must be an int of 1 or more, got {rank!r}")
        self.rank = rank
        self._states: WeakKeyDictionary[Comm, dict[np.dtype[Any], tuple[Array, Array]]] = WeakKeyDictionary()

    def __call__(self, comm: Comm, gradients: Array) -> None:
        rows = math.isqrt(gradients.size)
        columns = -(-gradients.size // max(rows, 1))
        if gradients.size <= self.rank * (rows + columns):  # there is nothing to gain
            comm.all_reduce(gradients)
            return
        work = np.promote_types(gradients.dtype, np.float32)
        states = self._states.setdefault(comm, {})
        if gradients.dtype not in states:
            first = np.random.Generator(np.random.Philox(0)).standard_normal((columns, self.rank)).astype(work)
            states[gradients.dtype] = np.zeros((rows, columns), work), first
        missing, basis = states[gradients.dtype]
        matrix = missing.copy()
        matrix.reshape(-1)[: gradients.size] += gradients
        left = np.ascontiguousarray(matrix @ basis)
        comm.all_reduce(left)
        if not np.isfinite(left).all():  # the missing gradients stay as they are
            gradients.fill(np.nan)
            return
        # By one rank: the bits that a BLAS computes depend on the processor, and the ranks must not drift apart.
        left = np.ascontiguousarray(np.linalg.qr(left)[0])
        comm.broadcast(left)
        right = np.ascontiguousarray(matrix.T @ left)
        np.subtract(matrix, left @ right.T, out=missing)
        comm.all_reduce(right)
        states[gradients.dtype] = missing, right
        total = np.zeros((rows, columns), work)
        for k in range(self.rank):  # for the same reason without BLAS
            total += np.multiply.outer(left[:, k], right[:, k])
        gradients[:] = total.reshape(-1)[: gradients.size]


def is_exchanged(hook: Hook | None) -> bool:
    """Whether an exchange sums as the hook does, or as there is none."""
    return hook is None or hook is fp16_compress


def exchange_like(hook: Hook | None, comm: Comm) -> Exchange | None:
    """The exchange that computes the hook's sum (or the plain sum without one); None if there is none for this hook or
    these ranks. A call of all ranks."""
    if not is_exchanged(hook):
        return None
    return comm.exchange(None if hook is None else Half())


def _largest(numbers: Array) -> float:
    """The size of the largest number; infinity if one is not a number."""
    largest = float(max(numbers.max(), -numbers.min())) if numbers.size else 0.0
    return math.inf if math.isnan(largest) else largest


def _scale(size: float) -> float:
    """The largest power of two that scales a number of this size into the range of float16; 1 if it is not finite.
    Unscaled, small numbers would become subnormal: they lose bits, and NumPy converts them 25 times slower."""
    if not 0 < size < math.inf:
        return 1.0
    # Both the factor and its inverse must be normal in float32.
    return 2.0 ** min(max(math.floor(math.log2(LARGEST) - math.log2(size)), -120), 120)


def _scaled(numbers: Array, scale: float, result: Array) -> Array:
    """Multiplies in at least float32, since the factor may exceed float16, and writes to an array of any dtype."""
    factor = np.promote_types(result.dtype, np.promote_types(numbers.dtype, np.float32)).type(scale)
    np.multiply(numbers, factor, out=result, casting="same_kind")
    return result
