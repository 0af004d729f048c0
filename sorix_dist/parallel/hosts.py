"""Several hosts: the agreement in one message, and the reducer, whose gradients travel while the backward goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple
from zlib import crc32

import numpy as np

from sorix_dist.comm import Comm
from sorix_dist.comm.checked import HEAD, MESSAGE
from sorix_dist.core.flat import BLOCK, Flat
from sorix_dist.core.graph import Accumulator
from sorix_dist.core.memory import PRIVATE
from sorix_dist.parallel.agreement import (
    ACTIONS,
    COMPARED,
    MOST_VALUES,
    ROW,
    Agreement,
    Consensus,
    Fields,
    Meanwhile,
    SharedMemoryConsensus,
    StepFingerprint,
    merged,
    packed,
    with_many_values,
)
from sorix_dist.parallel.comm_hooks import Hook, exchange_like, hook_for, is_exchanged, used_on_any_rank
from sorix_dist.parallel.reducers import Bucket, GradientBuffer, Reducer, used_by_any
from sorix_dist.parallel.shared_memory import SharedMemory, SharedTotal, gradient_windows

_FIRST = (1 << 32) - 1


class Peers(NamedTuple):
    """The ranks that sum one slice of the gradients: one of each host.

    comm: them; slices: how many slices there are, as many as the host with the fewest ranks has. A rank whose local
    rank is not below has no slice, and its comm is of no use.
    """

    comm: Comm
    slices: int


def peers_of(comm: Comm) -> Peers | None:
    """This rank's peers; None if there is one host only. A call of all ranks."""
    if comm.hosts == 1:
        return None
    if comm.hosts == comm.size:
        return Peers(comm, 1)
    slices = min(comm.gather_objects(comm.local_size))
    return Peers(comm.split(min(comm.local_rank, slices), comm.rank), slices)


class HostsReducer(Reducer):
    """The ranks of a host write their gradients to shared memory. Each rank sums a slice of them over its host, and
    then over all hosts with its peers: the last parameters' gradients first, which a backward computes first.

    A gradient counts as complete when it is written. If more comes to it after it was announced as complete, the ranks
    learn of it when they agree, and start over. From then on that parameter's gradient waits for the end.

    hook: what sums slices instead of the exchange; then nothing is sent before the ranks have agreed.
    """

    def __init__(self, flat: Flat, memory: SharedMemory, peers: Peers, hook: Hook | None) -> None:
        super().__init__(flat)
        self.comm, self.memory, self.peers = memory.comm, memory, peers.comm
        self.overlaps = is_exchanged(hook)
        local = memory.comm.local_rank
        self.exchange = exchange_like(hook, peers.comm) if local < peers.slices else None
        windows = gradient_windows(flat, memory, 1)
        self.all_flags = [flags for flags, _ in windows]
        flags, array = windows[local]
        self.buffers = [GradientBuffer(flat, self.leaves, array, flags)]
        self.buffers[0].select()
        self.shared_total = SharedTotal(flat, memory, peers.slices)
        self._own = own = self.shared_total.own
        self.hook = hook if hook is None else hook_for(hook, flat, own)
        self._slices = [each[own] for _, each in windows]
        self._host_sum = self._slices[0] if len(windows) == 1 else PRIVATE.zeros(own.stop - own.start, flat.dtype)
        self._window = memory.comm.window(8)
        self._announced = [part.data.cast("q") for part in self._window.parts]  # by the ranks of the host
        self._own_announced = self._announced[local]
        self._written = self.buffers[0].accumulators
        self._late = [Accumulator() for _ in self.leaves]  # for what comes to a gradient after it was announced
        self._waiting: set[int] = set()  # the parameters to which something came late
        self._early = False
        self._diverted = len(self.leaves)  # the first leaf that adds to `_late`
        self._number = 0  # of the sum
        self._next_sum()

    def _next_sum(self) -> None:
        self._number += 1
        self._first = len(self.leaves)  # the first parameter that this rank has announced as complete
        self._summed = self._host_sum.size  # from here on, `_host_sum` is complete
        self.withdrawn = False

    def begin_backward(self, last: bool) -> None:
        self._settle()  # where an interrupt has kept it from that
        if self._first < len(self.leaves):  # by a backward that came to no sum
            self.withdrawn = True
        super().begin_backward(last)
        self._early = last and self.overlaps and not self.withdrawn

    def send_complete(self) -> None:
        first = self._first
        while first and self._written[first - 1].written and first - 1 not in self._waiting:
            first -= 1
        if self._early and first < self._first:
            self._announce(first)
            new = range(first, self._diverted)
            self._diverted = first  # before anything else, for whatever is interrupted then is settled
            for i in new:
                self.leaves[i].local = self._late[i]
        if self._first < len(self.leaves) and not self.withdrawn:
            self._send()

    def _announce(self, first: int) -> None:
        """Lets the ranks of the host use the gradients of this rank from parameter `first` on."""
        self._first = first
        self._window.sync()
        self._own_announced[0] = self._number << 32 | first

    def _send(self) -> None:
        """Sums over the host what all its ranks have announced, and sends what can be sent of it."""
        if self.exchange is None:
            return
        first = 0
        for (announced,) in self._announced:
            first = max(first, announced & _FIRST if announced >> 32 == self._number else len(self.leaves))
        self._window.sync()
        start = self.flat.starts[first] if first < len(self.leaves) else self.flat.size
        self._sum_over_host(min(max(start - self._own.start, 0), self._summed))
        self.exchange.send(self._host_sum, self._summed)

    def _sum_over_host(self, start: int) -> None:
        stop, self._summed = self._summed, start
        if len(self._slices) == 1:
            return
        first, second, *others = self._slices
        with np.errstate(over="ignore", invalid="ignore"):
            for at in range(start, stop, BLOCK):
                block = slice(at, min(at + BLOCK, stop))
                total = np.add(first[block], second[block], out=self._host_sum[block])
                for array in others:
                    total += array[block]

    def end_backward(self) -> bool:
        self._settle()
        reached = super().end_backward()
        if reached and self.overlaps and not self.withdrawn:
            self._announce(0)
        return reached

    def used_digest(self) -> int:
        return crc32(self.buffers[0].flags)

    def reset(self) -> None:
        self._settle()
        super().reset()

    def _settle(self) -> None:
        """Adds what came to a gradient after it was announced, which is withdrawn then."""
        self._early = False
        diverted = range(self._diverted, len(self.leaves))
        for i in diverted:
            self.leaves[i].local = self._written[i]
        for i in diverted:
            if self._late[i].written:
                self.withdrawn = True
                self._waiting.add(i)
                self.leaves[i].deposit(self._late[i].allocated(self.leaves[i]))
                self._late[i].written = False
        self._diverted = len(self.leaves)

    def reduce(self, overwrite: bool, same_used: bool, start_over: bool = False) -> None:
        self.used = used_on_any_rank(self.comm, used_by_any(self.all_flags), same_used)
        self.total = self.shared_total.array(overwrite)
        own_slice = self.total[self._own]
        if start_over:
            self._summed = self._host_sum.size
        self._sum_over_host(0)
        if self.exchange is not None:
            self.exchange.sum(self._host_sum, own_slice, start_over, agreed=True)
        elif self.hook is not None and not self.overlaps:
            np.copyto(own_slice, self._host_sum)
            self.hook(self.peers, own_slice)
            self.flat.clear_gaps(self.total, self._own)
        if self.comm.size > self.comm.hosts:
            self.memory.fence("backward")
        self._next_sum()


def sender(buckets: Iterable[Bucket]) -> Callable[[], None]:
    """A function that sends the complete gradients of all buckets, as far as that needs no waiting."""
    overlapping = [bucket.reducer for bucket in buckets if bucket.reducer.overlaps]

    def send() -> None:
        for reducer in overlapping:
            reducer.send_complete()

    return send


_SHORT_ROW = MESSAGE - HEAD  # bytes of a row that one message both compares and carries
_LONGER = 255  # bytes of a short row in place of one that is longer; no row has this many numbers


class MessageConsensus(Consensus):
    """Ranks of several hosts gather their rows in one message; those of a host share memory as well."""

    def __init__(self, comm: Comm) -> None:
        self.comm = comm
        self._neighbours = SharedMemoryConsensus(comm)

    def agree(
        self, fingerprint: Fields, numbers: list[int], values: list[float], used: int = 0, meanwhile: Meanwhile = None
    ) -> Agreement:
        # The fence's result is not used: if one host stopped here, the others would wait for it in the gather.
        action, _, digest, *_ = fingerprint
        self._neighbours.fence(ACTIONS[action], digest)
        return self._gather(fingerprint, numbers, values, used, meanwhile)

    def commit(self, fine: bool) -> bool:
        return fine  # every rank has the whole sum

    def fence(self, action: str, digest: int, everywhere: bool = False) -> list[StepFingerprint] | None:
        differing = self._neighbours.fence(action, digest)
        if differing is None and not everywhere:
            return None
        return self._gather(StepFingerprint(ACTIONS.index(action), 0, digest), [], [], 0)[0]

    def _gather(
        self, fingerprint: Fields, numbers: list[int], values: list[float], used: int, meanwhile: Meanwhile = None
    ) -> Agreement:
        sent, slots = packed(fingerprint, numbers, used), [-i for i in range(min(len(values), MOST_VALUES))]
        for size in (_SHORT_ROW, ROW):
            row = np.zeros(size, np.uint8)
            if COMPARED + len(sent) + 8 * max(len(slots) - 1, 0) <= size:
                row[COMPARED : COMPARED + len(sent)] = np.frombuffer(sent, np.uint8)
                row.view(np.float64)[slots] = values[:MOST_VALUES]
            else:
                row[:] = _LONGER
            rows = self.comm.all_gather(row, meanwhile)
            if (rows[:, COMPARED] != _LONGER).all():
                break
        sums = [sum(column) for column in rows.view(np.float64)[:, slots].T.tolist()]
        found = merged([each.data[COMPARED:] for each in rows], sums)
        return found if len(values) == len(slots) else with_many_values(found, values, self.comm)
