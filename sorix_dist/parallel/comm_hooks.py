"""Communication hooks, which replace the all-reduce of gradients, for instance by a compressed one."""

from __future__ import annotations

import math
from collections.abc import Callable
from math import prod
from typing import Any
from weakref import WeakKeyDictionary
from zlib import crc32

import numpy as np

from sorix_dist.comm import Comm, Exchange, agreed
from sorix_dist.core.flat import Flat
from sorix_dist.core.memory import PRIVATE
from sorix_dist.core.tensor import Array
from sorix_dist.parallel.float16 import Half, scale_of, scaled, size_of
from sorix_dist.parallel.power_sgd import Matrix, PowerSGD, matrices_in
from sorix_dist.parallel.reducers import GradientBuffer, Reducer, first_not_finite, is_finite

__all__ = ["PowerSGD", "TopK", "fp16_compress"]

Hook = Callable[[Comm, Array], None]
"""A function of a communicator and one-dimensional gradients that sums these in place over the communicator's ranks.

These are all ranks or, with several on each host, those that own the same slice of their host's sum. Every rank calls
it for each dtype of parameters. Zeros pad each parameter's gradient to whole cache lines.
The ranks have agreed on the step before.
"""

FEW = 1024
"""Gradients that `TopK` does not choose from: a message of all of them takes no longer."""


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
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
            raise ValueError(f"TopK: share must be a number above 0 and below 1, got {share!r}")
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
