"""Virtual shards: the global batch in pieces that are the same on any number of ranks, and one order to sum them in.

The order is a fixed binary tree over the shards: neighbours are added first, then the sums of neighbours,
((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)). A rank owns consecutive shards and sums whole subtrees locally. The bits of
the result do not depend on the distribution of the shards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sorix_dist.comm import Comm
from sorix_dist.core.arguments import is_integer
from sorix_dist.core.tensor import Array
from sorix_dist.utils.data.sampler import shard_bounds


def check_virtual_shards(count: Any, size: int) -> None:
    """ValueError unless `count` is None or a power of two that is at least the number of ranks."""
    if count is None:
        return
    if not is_integer(count) or count < 1 or count & (count - 1):
        raise ValueError(f"init: virtual_shards must be a power of two such as 8, or None, got {count!r}")
    if count < size:
        raise ValueError(
            f"init: virtual_shards must be at least the number of ranks, {size}, got {count}: give a larger power of "
            "two (the results depend on it) or start fewer ranks"
        )


class VirtualShards:
    """Cuts every global batch into `count` pieces; each rank of `comm` owns consecutive ones."""

    def __init__(self, comm: Comm, count: int) -> None:
        self.comm = comm
        self.count = count
        self.owned = range(*shard_bounds(count, comm.rank, comm.size))

    def rows(self, shard: int, total: int) -> tuple[int, int]:
        """The rows [start, stop) of a batch of `total` rows that a shard has."""
        return shard_bounds(total, shard, self.count)

    def table(self, parts: Array) -> Array:
        """Gathers the numbers (owned shards, m) of all ranks as (shards, m), the same on every rank."""
        table = np.zeros((self.count, *parts.shape[1:]), parts.dtype)
        table[self.owned.start : self.owned.stop] = parts
        self.comm.all_reduce(table)  # each entry plus zeros: exact, whatever the order
        return table

    def sum(self, parts: Array) -> Array:
        """The sum of the numbers (owned shards, m) of all ranks over all shards, by the fixed tree."""
        return sum_rows(self.table(parts))


Node = tuple[int, int]  # (first, stop): the sum of the shards first to stop - 1


def sum_rows(rows: Array) -> Array:
    """The sum of the rows of an array by the tree. Their number is a power of two."""
    rows = rows + rows.dtype.type(0)  # -0.0 becomes +0.0, as it does in `table`, which adds zeros
    while len(rows) > 1:
        rows = rows[0::2] + rows[1::2]
    total: Array = rows[0]
    return total


def subtrees(first: int, last: int, count: int) -> list[Node]:
    """The fewest nodes of the tree over `count` shards that make up the shards first to last - 1, in order."""

    def walk(low: int, high: int) -> list[Node]:
        if high <= first or last <= low:
            return []
        if first <= low and high <= last:
            return [(low, high)]
        middle = (low + high) // 2
        return walk(low, middle) + walk(middle, high)

    return walk(0, count) if last > first else []


def halves(node: Node) -> tuple[Node, Node]:
    """The two nodes that a node adds."""
    low, high = node
    middle = (low + high) // 2
    return (low, middle), (middle, high)


class Additions:
    """The additions that make one node of some known ones, on arrays of one length.

    parts: the arrays of known nodes; target: the node to compute; total: the array for its sum; spare: scratch arrays
    of at least this length, one per level, made here if they are missing.
    """

    def __init__(self, parts: Mapping[Node, Array], target: Node, total: Array, spare: dict[int, Array]) -> None:
        self.steps: list[tuple[Array, Array, Array]] = []
        self._parts = parts
        self._spare = spare
        whole = self._sum(target, total, 0)
        self.copied = None if whole is total else (total, whole)

    def _sum(self, node: Node, out: Array, depth: int) -> Array:
        if node in self._parts:
            return self._parts[node]
        first, second = halves(node)
        left = self._sum(first, out, depth)
        # `out` has the first half while the second is computed, which needs a scratch array of its level.
        room = out
        if second not in self._parts:
            room = self._spare.setdefault(depth, np.empty_like(out))[: len(out)]
        right = self._sum(second, room, depth + 1)
        self.steps.append((left, right, out))
        return out

    def run(self) -> None:
        """Computes the sum."""
        for left, right, out in self.steps:
            np.add(left, right, out=out)
        if self.copied is not None:
            np.copyto(*self.copied)


def blocks(
    total: Array, start: int, stop: int, length: int, parts: Mapping[Node, Array], target: Node
) -> Sequence[Additions]:
    """Additions of the elements start to stop - 1 in blocks of `length`, so that a block stays in the cache."""
    spare: dict[int, Array] = {}
    return [
        Additions({node: part[at:end] for node, part in parts.items()}, target, total[at:end], spare)
        for at, end in ((at, min(at + length, stop)) for at in range(start, stop, length))
    ]
