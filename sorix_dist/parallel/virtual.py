"""Virtual shards: the global batch in pieces that are the same on any number of ranks."""

from __future__ import annotations

from typing import Any

import numpy as np

from sorix_dist.comm import Comm
from sorix_dist.core.tensor import Array
from sorix_dist.parallel.tree import sum_rows
from sorix_dist.utils.data.sampler import shard_bounds


def check_virtual_shards(count: Any, size: int) -> None:
    """ValueError unless `count` is None or a power of two that is at least the number of ranks."""
    if count is None:
        return
    if isinstance(count, bool) or not isinstance(count, int) or count < 1 or count & (count - 1):
        raise ValueError(f"init: virtual_shards must be a power of two such as 8, or None, got {count!r}")
    if count < size:
        raise ValueError(
            f"init: virtual_shards must be at least the number of ranks, {size}, got {count}: give a larger power of "
            "two (the results depend on it) or start fewer ranks"
        )


class VirtualShards:
    """`count` pieces of every global batch, of which each rank of `comm` owns consecutive ones."""

    def __init__(self, comm: Comm, count: int) -> None:
        self.comm = comm
        self.count = count
        self.owned = range(*shard_bounds(count, comm.rank, comm.size))

    def rows(self, shard: int, total: int) -> tuple[int, int]:
        """The rows [start, stop) of a batch of `total` rows that a shard has."""
        return shard_bounds(total, shard, self.count)

    def table(self, parts: Array) -> Array:
        """The numbers (owned shards, m) of this rank and those of all others: (shards, m), the same on every rank."""
        table = np.zeros((self.count, *parts.shape[1:]), parts.dtype)
        table[self.owned.start : self.owned.stop] = parts
        self.comm.all_reduce(table)  # each entry plus zeros: exact, whatever the order
        return table

    def sum(self, parts: Array) -> Array:
        """The sum of the numbers (owned shards, m) of all ranks over all shards, by the fixed tree."""
        return sum_rows(self.table(parts))
