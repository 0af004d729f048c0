"""How ranks agree and reduce: selected by whether they share a host, and by hooks and virtual shards. One rank does so
without messages and without shared memory."""

from __future__ import annotations

import numpy as np

from sorix_dist.comm import Comm
from sorix_dist.core.flat import Flat, gradients
from sorix_dist.core.graph import zero
from sorix_dist.core.memory import PRIVATE
from sorix_dist.parallel.agreement import Consensus, SharedMemoryConsensus
from sorix_dist.parallel.comm_hooks import Hook, HookReducer, fp16_compress, is_exchanged
from sorix_dist.parallel.hosts import HostsReducer, MessageConsensus, Peers
from sorix_dist.parallel.reducers import GradientBuffer, Reducer, first_not_finite, is_finite
from sorix_dist.parallel.shared_memory import SharedMemory, SharedMemoryReducer
from sorix_dist.parallel.tree_reducers import DelayedTreeReducer, MessageTreeReducer, SharedTreeReducer
from sorix_dist.parallel.virtual_shards import VirtualShards


class LocalReducer(Reducer):
    """One rank: a backward writes directly into `grad`, unless it must be staged: by `stage`, or because there is a
    gradient already, which a failed backward must not change."""

    def __init__(self, flat: Flat) -> None:
        super().__init__(flat)
        self.buffers = []  # or the staging buffer
        self._staging: GradientBuffer | None = None
        self._whole = False  # whether there is a gradient of every parameter

    def stage(self) -> None:
        if self.buffers:
            return
        if self._staging is None:
            self.total = PRIVATE.zeros(self.flat.size, self.flat.dtype)
            flags = memoryview(bytearray(len(self.leaves)))
            self._staging = GradientBuffer(self.flat, self.leaves, self.total, flags)
        self._staging.begin()
        self._staging.select()
        self.buffers = [self._staging]

    def begin_backward(self, last: bool) -> None:
        for leaf in self.leaves:
            if leaf.total.written:
                self.stage()
                return

    def end_backward(self) -> bool:
        if self.buffers:
            reached = super().end_backward()
            if not reached:
                self._show_total()
            return reached
        reached, self._whole = False, True
        for leaf in self.leaves:
            if leaf.total.written:
                reached = True
            else:
                self._whole = False
        return reached

    def reset(self) -> None:
        if self.buffers:
            super().reset()
            self._show_total()
            return
        zero(self.leaves)

    def reduce(self, overwrite: bool, same_used: bool, start_over: bool = False) -> None:
        if self.buffers:
            self.used = bytes(self.buffers[0].flags)

    def is_finite(self) -> bool:
        if self.buffers:
            return super().is_finite()
        if self._whole:
            return is_finite(self.flat.grad)
        return all(is_finite(array) for array in gradients(self.flat.parameters))

    def first_not_finite(self) -> tuple[int, str] | None:
        if self.buffers:
            return super().first_not_finite()
        return first_not_finite([p.grad.array if p.grad is not None else np.zeros(0) for p in self.flat.parameters])

    def commit(self, scale: float) -> bool:
        if self.buffers:
            self._show_total()
            super().commit(scale)
        return False

    def _show_total(self) -> None:
        self.buffers = []
        for leaf in self.leaves:
            leaf.local = leaf.total


def consensus_of(comm: Comm) -> Consensus:
    """The fastest consensus for the ranks of a communicator. A call of all of them."""
    if comm.size == 1:
        return Consensus()
    return SharedMemoryConsensus(comm) if comm.hosts == 1 else MessageConsensus(comm)


def reducer_of(
    flat: Flat,
    hook: Hook | None,
    memory: SharedMemory,
    shards: VirtualShards | None,
    peers: Peers | None,
    delayed: bool = False,
) -> Reducer:
    """The reducer of a flat storage, by `hook` if there is one; `delayed` a `DelayedTreeReducer`. A call of all
    ranks."""
    comm = memory.comm
    if shards is not None and delayed:
        return DelayedTreeReducer(flat, shards, hook is fp16_compress)
    if shards is not None and comm.hosts == 1:
        return SharedTreeReducer(flat, shards, memory)
    if shards is not None:
        return MessageTreeReducer(flat, shards, hook is fp16_compress)  # the only hook that there is here
    if peers is not None and (is_exchanged(hook) or peers.slices * comm.hosts == comm.size):
        return HostsReducer(flat, memory, peers, hook)
    if hook is not None:
        return HookReducer(flat, comm, hook)
    return LocalReducer(flat) if comm.size == 1 else SharedMemoryReducer(flat, memory)
