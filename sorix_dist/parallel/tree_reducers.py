"""Reducers of reproducible mode: one buffer per virtual shard, summed by the fixed tree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any
from zlib import crc32

import numpy as np

from sorix_dist.comm import Started, agreed
from sorix_dist.comm.ring import PIECE
from sorix_dist.core.flat import BLOCK, Flat
from sorix_dist.core.graph import Leaf, Node, Visitor
from sorix_dist.core.tensor import Array
from sorix_dist.parallel.comm_hooks import used_on_any_rank
from sorix_dist.parallel.float16 import HalfBlocks, whole_blocks
from sorix_dist.parallel.reducers import GradientBuffer, Reducer, is_finite, used_by_any
from sorix_dist.parallel.shared_memory import SharedMemory, SharedTotal, gradient_windows
from sorix_dist.parallel.virtual_shards import Additions, VirtualShards, blocks, subtrees
from sorix_dist.parallel.virtual_shards import Node as TreeNode


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
        self._additions: dict[bool, Sequence[Additions]] = {}

    def reduce(self, overwrite: bool, same_used: bool, start_over: bool = False) -> None:
        self.used = used_by_any([*self.all_flags, self._common.flags])
        self.total, own = self.shared_total.array(overwrite), self.shared_total.own
        if overwrite not in self._additions:
            root = 0, self.shards.count
            self._additions[overwrite] = blocks(self.total, own.start, own.stop, BLOCK, self.arrays, root)
        for additions in self._additions[overwrite]:
            additions.run()
        self._add_common(self.total[own], own.start, own.stop)

    def is_finite(self) -> bool:
        return all([is_finite(self.total[block]) for block in self.shared_total.blocks])  # noqa: C419 (faster)


class MessageTreeReducer(ShardReducer):
    """Ranks of several hosts: each sums its subtrees, sends every rank its slice of these sums, and sums the slices
    that it receives; then it sends that sum to all. Slices travel in pieces: see `Comm.start_pieces`, for which this is
    the `Pieces`.

    half: whether shards' numbers are rounded to float16, see `HalfBlocks`, so that they can travel so. A sum of several
    shards of a rank travels as it is. Sums over all shards are rounded too.
    """

    def __init__(self, flat: Flat, shards: VirtualShards, half: bool = False) -> None:
        own, size = shards.owned, shards.comm.size
        windows = [(memoryview(bytearray(len(flat.parameters))), np.zeros(flat.size, flat.dtype)) for _ in own]
        super().__init__(flat, shards, windows)
        owned = [range(shards.count * r // size, shards.count * (r + 1) // size) for r in range(size)]
        self._nodes: list[list[TreeNode]] = [subtrees(each.start, each.stop, shards.count) for each in owned]
        most, length = max(map(len, self._nodes)), -(-flat.size // size)
        self._half = HalfBlocks() if half else None
        self._sends_half = half and shards.count == size
        step = PIECE // (2 if self._sends_half else most * flat.dtype.itemsize)
        if half:
            length, step = whole_blocks(length), whole_blocks(max(1, step - whole_blocks(1) + 1))
        self._totals = np.zeros((size, length), flat.dtype)
        self.total = self._totals.reshape(-1)[: flat.size]
        self._pieces = [slice(at, min(at + step, length)) for at in range(0, length, step)]
        self.count = len(self._pieces)
        # By piece, for every rank this rank's subtrees; those with fewer subtrees send zeros as well.
        self._sent = [np.zeros((size, most, each.stop - each.start), flat.dtype) for each in self._pieces]
        self._additions: list[list[Additions]] = [[] for _ in self._pieces]
        spare: dict[int, Array] = {}
        for (i, piece), r in product(enumerate(self._pieces), range(size)):
            start, stop = (min(r * length + at, flat.size) for at in (piece.start, piece.stop))
            parts = {(shard, shard + 1): array[start:stop] for shard, (_, array) in zip(own, windows)}
            for node, out in zip(self._nodes[shards.comm.rank], self._sent[i][r]):
                self._additions[i].append(Additions(parts, node, out[: stop - start], spare))

    def used_digest(self) -> int:
        return crc32(used_by_any([buffer.flags for buffer in self.buffers]))

    def reduce(self, overwrite: bool, same_used: bool, start_over: bool = False) -> None:
        comm = agreed(self.shards.comm)
        self.used = used_on_any_rank(comm, used_by_any([buffer.flags for buffer in self.buffers]), same_used)
        comm.start_pieces(self).finish()
        self._add_common(self.total, 0, self.flat.size)

    def send(self, piece: int) -> Array:
        self._sum_own(piece)
        return self._message(piece)

    def _sum_own(self, piece: int) -> None:
        for additions in self._additions[piece]:
            additions.run()

    def _message(self, piece: int) -> Array:
        sent, half = self._sent[piece], self._half
        return sent if half is None or not self._sends_half else np.stack([half.encode(own[0]) for own in sent])

    def combine(self, piece: int, received: Array) -> Array:
        if self._sends_half:
            received = self._decoded(received, piece)[:, np.newaxis]
        parts = {node: received[r, k] for r, nodes in enumerate(self._nodes) for k, node in enumerate(nodes)}
        total = np.empty(received.shape[2:], received.dtype)
        Additions(parts, (0, self.shards.count), total, {}).run()
        if self._half is None:
            return total
        self._half.round(total)
        return self._half.encode(total)

    def receive(self, piece: int, combined: Array) -> None:
        self._totals[:, self._pieces[piece]] = combined if self._half is None else self._decoded(combined, piece)

    def _decoded(self, messages: Array, piece: int) -> Array:
        assert self._half is not None
        numbers = np.empty((len(messages), self._sent[piece].shape[2]), self.flat.dtype)
        for message, row in zip(messages, numbers, strict=True):
            self._half.decode(message, row)
        return numbers


class DelayedTreeReducer(MessageTreeReducer):
    """Its sums travel while backwards go on: `start` starts one, and the next `reduce` completes it. So the ranks agree
    on a sum before it starts. `total` is zeros at first.
    """

    overlaps = True

    def __init__(self, flat: Flat, shards: VirtualShards, half: bool) -> None:
        super().__init__(flat, shards, half)
        self.used = bytes([True] * len(self.leaves))
        self._messages: Started | None = None

    def start(self) -> None:
        """Starts the sum of the buffers, which may be overwritten then. A call of all ranks, which waits for none."""
        for piece in range(self.count):
            self._sum_own(piece)
        self._messages = agreed(self.shards.comm).start_pieces(self)

    def send(self, piece: int) -> Array:
        return self._message(piece)

    def send_complete(self) -> None:
        if self._messages is not None:
            self._messages.advance()

    def complete(self) -> None:
        """Makes `total` the sum that is under way. A call of all ranks."""
        if self._messages is not None:
            self._messages.finish()
            self._messages = None

    def reduce(self, overwrite: bool, same_used: bool, start_over: bool = False) -> None:
        self.complete()


def shard_visitor(select: Callable[[int | None], None]) -> Visitor:
    """The visitor of a walk that selects the buffers of each node's virtual shard."""
    current: int | None = None
    select(None)

    def visit(edge: Node | Leaf, gradient: Any) -> None:
        nonlocal current
        shard = edge.shard if isinstance(edge, Node) else None
        if shard != current:
            current = shard
            select(shard)

    return visit
