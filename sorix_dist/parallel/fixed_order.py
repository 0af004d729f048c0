"""Reproducible sums of gradients: one array per virtual shard, added up by the fixed tree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sorix_dist.core.flat import BLOCK, Flat
from sorix_dist.core.home import ALIGNMENT
from sorix_dist.core.tensor import Array
from sorix_dist.parallel.by_window import Totals
from sorix_dist.parallel.host_memory import HostMemory
from sorix_dist.parallel.reduce import Apart, Slot, used_by_any, used_on_any_rank
from sorix_dist.parallel.tree import Node, Plan, blocks, subtrees
from sorix_dist.parallel.virtual import VirtualShards


class _ByShard(Apart):
    """Backwards write the gradients of each virtual shard of this rank to an array of its own.

    What no shard computes, such as a penalty on the weights, goes to one more array; it is the same on every rank
    and is added once.
    """

    shards: VirtualShards
    common: Slot

    def _collect(self, shards: VirtualShards, arrays: list[Array], flags: list[memoryview]) -> None:
        self.shards = shards
        self.by_shard = [Slot(self.flat, self.leaves, *place) for place in zip(arrays, flags, strict=True)]
        nothing = memoryview(bytearray(len(self.leaves)))
        self.common = Slot(self.flat, self.leaves, np.zeros(self.flat.size, self.flat.dtype), nothing)
        self.slots = [*self.by_shard, self.common]
        self.common.select()

    def select(self, shard: int | None) -> None:
        (self.common if shard is None else self.by_shard[shard - self.shards.owned.start]).select()

    def _with_common(self, total: Array, start: int, stop: int) -> None:
        if any(self.common.flags):
            total += self.common.array[start:stop]


class ByTree(_ByShard):
    """Ranks of one host: the arrays of all shards lie in shared windows, and each rank adds up its slice of them."""

    def __init__(self, flat: Flat, shards: VirtualShards, memory: HostMemory) -> None:
        super().__init__(flat)
        count = len(flat.parameters)
        head = -(-count // ALIGNMENT) * ALIGNMENT
        size = flat.size * flat.dtype.itemsize
        length = head + -(-size // ALIGNMENT) * ALIGNMENT
        places = [place for part in memory.parts(len(shards.owned) * length) for place in part.reshape(-1, length)]
        arrays = [place[head : head + size].view(flat.dtype) for place in places]
        self.all_flags = [place.data[:count] for place in places]
        own = slice(shards.owned.start, shards.owned.stop)
        self._collect(shards, arrays[own], self.all_flags[own])
        self.arrays = {(i, i + 1): array for i, array in enumerate(arrays)}
        self.totals = Totals(flat, memory)
        self.plans: dict[bool, Sequence[Plan]] = {}

    def sum(self, plain: bool) -> None:
        self.used = used_by_any([*self.all_flags, self.common.flags])
        self.total, own = self.totals.place(plain), self.totals.own
        if plain not in self.plans:
            root = 0, self.shards.count
            self.plans[plain] = blocks(self.total, own.start, own.stop, BLOCK, self.arrays, root)
        for plan in self.plans[plain]:
            plan.run()
        self._with_common(self.total[own], own.start, own.stop)

    def finite(self) -> bool:
        return self.totals.finite()


class ByTreeMessages(_ByShard):
    """Ranks of several hosts: each adds up the subtrees that it owns, sends every rank its slice of them, adds up
    the slices that it receives, and all gather the sums."""

    def __init__(self, flat: Flat, shards: VirtualShards) -> None:
        super().__init__(flat)
        own, size = shards.owned, shards.comm.size
        arrays = [np.zeros(flat.size, flat.dtype) for _ in own]
        self._collect(shards, arrays, [memoryview(bytearray(len(self.leaves))) for _ in own])
        owned = [range(shards.count * r // size, shards.count * (r + 1) // size) for r in range(size)]
        self.nodes: list[list[Node]] = [subtrees(each.start, each.stop, shards.count) for each in owned]
        self.length = -(-flat.size // size)
        # Each rank's subtrees cut into one slice for every rank; those with fewer subtrees send zeros as well.
        self.most = max(map(len, self.nodes))
        self.sent = np.zeros((size, self.most, self.length), flat.dtype)
        leaves = {(i, i + 1): array for i, array in zip(own, arrays, strict=True)}
        self.sums: list[Array] = []
        self.plans: list[Plan] = []
        for node in self.nodes[shards.comm.rank]:
            self.sums.append(np.empty(flat.size, flat.dtype))
            self.plans += blocks(self.sums[-1], 0, flat.size, BLOCK, leaves, node)
        self.slice = np.empty(self.length, flat.dtype)

    def sum(self, plain: bool) -> None:
        comm = self.shards.comm
        self.used = used_on_any_rank(comm, used_by_any([slot.flags for slot in self.slots]))
        for plan in self.plans:
            plan.run()
        for k, whole in enumerate(self.sums):
            for r in range(comm.size):
                piece = whole[r * self.length : (r + 1) * self.length]
                self.sent[r, k, : len(piece)] = piece
        received = comm.all_to_all(self.sent)
        parts = {node: received[r, k] for r, nodes in enumerate(self.nodes) for k, node in enumerate(nodes)}
        for plan in blocks(self.slice, 0, self.length, BLOCK, parts, (0, self.shards.count)):
            plan.run()
        self.total = comm.all_gather(self.slice).reshape(-1)[: self.flat.size]
        self._with_common(self.total, 0, self.flat.size)
