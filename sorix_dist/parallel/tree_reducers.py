"""Reducers of reproducible mode: one buffer per virtual shard, summed by the fixed tree."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import numpy as np

from sorix_dist.comm import Comm, agreed
from sorix_dist.core.flat import BLOCK, Flat
from sorix_dist.core.tensor import Array
from sorix_dist.parallel.float16 import HalfBlocks, whole_blocks
from sorix_dist.parallel.reducers import GradientBuffer, Reducer, is_finite, used_by_any, used_on_any_rank
from sorix_dist.parallel.shared_memory import SharedMemory, SharedTotal, gradient_windows
from sorix_dist.parallel.virtual_shards import Node, Plan, VirtualShards, blocks, subtrees


class ShardReducer(Reducer):
    """Backwards write the gradients of each virtual shard of this rank to a separate buffer.

    Gradients that belong to no shard, such as those of a penalty on the weights, have another buffer. They are the same
    on every rank and are added once.
    """

    def __init__(self, flat: Flat, shards: VirtualShards, windows: list[tuple[memoryview, Array]]) -> None:
        super().__init__(flat)
        self.shards = shards
        self._by_shard = [GradientBuffer(flat, self.leaves, array, flags) for flags, array in windows]
        nothing = memoryview(bytearray(len(self.leaves)))
        self._common = GradientBuffer(flat, self.leaves, np.zeros(flat.size, flat.dtype), nothing)
        self.buffers = [*self._by_shard, self._common]
        self._common.select()

    def select(self, shard: int | None) -> None:
        (self._common if shard is None else self.of_shard(shard)).select()

    def of_shard(self, shard: int) -> GradientBuffer:
        """The buffer of a virtual shard of this rank."""
        return self._by_shard[shard - self.shards.owned.start]

    def _add_common(self, total: Array, start: int, stop: int) -> None:
        if any(self._common.flags):
            total += self._common.array[start:stop]


class SharedTreeReducer(ShardReducer):
    """Ranks of one host: the buffers of all shards are in shared windows, and each rank sums its slice of them."""

    def __init__(self, flat: Flat, shards: VirtualShards, memory: SharedMemory) -> None:
        windows = gradient_windows(flat, memory, len(shards.owned))
        super().__init__(flat, shards, windows[shards.owned.start : shards.owned.stop])
        self.all_flags = [flags for flags, _ in windows]
        self.arrays = {(i, i + 1): array for i, (_, array) in enumerate(windows)}
        self.shared_total = SharedTotal(flat, memory)
        self._plans: dict[bool, Sequence[Plan]] = {}

    def reduce(self, overwrite: bool, same_used: bool, start_over: bool = False) -> None:
        self.used = used_by_any([*self.all_flags, self._common.flags])
        self.total, own = self.shared_total.array(overwrite), self.shared_total.own
        if overwrite not in self._plans:
            root = 0, self.shards.count
            self._plans[overwrite] = blocks(self.total, own.start, own.stop, BLOCK, self.arrays, root)
        for plan in self._plans[overwrite]:
            plan.run()
        self._add_common(self.total[own], own.start, own.stop)

    def is_finite(self) -> bool:
        return all([is_finite(self.total[block]) for block in self.shared_total.blocks])  # noqa: C419 (faster)


class MessageTreeReducer(ShardReducer):
    """Ranks of several hosts: each sums its subtrees, an all-to-all exchanges slices of them, each sums the slices that
    it has received, and an all-gather collects the sums.

    half: whether shards' numbers are rounded to float16, see `HalfBlocks`, so that they can travel so. A sum of several
    shards of a rank travels as it is. Sums over all shards are rounded too.
    """

    def __init__(self, flat: Flat, shards: VirtualShards, half: bool = False) -> None:
        own, size = shards.owned, shards.comm.size
        windows = [(memoryview(bytearray(len(flat.parameters))), np.zeros(flat.size, flat.dtype)) for _ in own]
        super().__init__(flat, shards, windows)
        owned = [range(shards.count * r // size, shards.count * (r + 1) // size) for r in range(size)]
        self._nodes: list[list[Node]] = [subtrees(each.start, each.stop, shards.count) for each in owned]
        length = -(-flat.size // size)
        self._length = length = whole_blocks(length) if half else length
        self._half = HalfBlocks(length) if half else None
        # Each rank's subtrees cut into one slice for every rank; those with fewer subtrees send zeros as well.
        self._sent = np.zeros((size, max(map(len, self._nodes)), length), flat.dtype)
        self._plans: list[Plan] = []
        for k, node in enumerate(self._nodes[shards.comm.rank]):
            for r in range(size):
                slices = {(i, i + 1): array[r * length : (r + 1) * length] for i, (_, array) in zip(own, windows)}
                count = max(0, min(length, flat.size - r * length))
                self._plans += blocks(self._sent[r, k], 0, count, BLOCK, slices, node)
        self._slice = np.empty(length, flat.dtype)

    def used_digest(self) -> int:
        return crc32(used_by_any([buffer.flags for buffer in self.buffers]))

    def reduce(self, overwrite: bool, same_used: bool, start_over: bool = False) -> None:
        comm, length = agreed(self.shards.comm), self._length
        self.used = used_on_any_rank(comm, used_by_any([buffer.flags for buffer in self.buffers]), same_used)
        for plan in self._plans:
            plan.run()
        received = self._exchanged(comm)
        parts = {node: received[r, k] for r, nodes in enumerate(self._nodes) for k, node in enumerate(nodes)}
        for plan in blocks(self._slice, 0, length, BLOCK, parts, (0, self.shards.count)):
            plan.run()
        self.total = self._gathered(comm).reshape(-1)[: self.flat.size]
        self._add_common(self.total, 0, self.flat.size)

    def _exchanged(self, comm: Comm) -> Array:
        """The slices of all ranks' subtrees that this rank sums."""
        if self._half is None or self.shards.count > comm.size:
            return comm.all_to_all(self._sent)
        messages = np.empty((comm.size, self._half.nbytes), np.uint8)
        for own, message in zip(self._sent, messages, strict=True):
            self._half.encode(own[0], message)
        return self._decoded(comm.all_to_all(messages))[:, np.newaxis]

    def _gathered(self, comm: Comm) -> Array:
        """The sums of all slices."""
        if self._half is None:
            return comm.all_gather(self._slice)
        self._half.round(self._slice)
        self._half.encode(self._slice, message := np.empty(self._half.nbytes, np.uint8))
        return self._decoded(comm.all_gather(message))

    def _decoded(self, messages: Array) -> Array:
        assert self._half is not None
        numbers = np.empty((len(messages), self._length), self.flat.dtype)
        for message, row in zip(messages, numbers, strict=True):
            self._half.decode(message, row)
        return numbers
