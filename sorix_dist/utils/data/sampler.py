"""Which samples make which global batch, and which of its rows a rank takes: arithmetic, without a message."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from sorix_dist.core import random as rng
from sorix_dist.core.tensor import Rows

Indices = np.ndarray[Any, np.dtype[np.int64]]


def share(total: int, rank: int, size: int, pieces: int | None = None) -> tuple[int, int]:
    """The rows [start, stop) of `total` that `rank` of `size` takes: contiguous.

    pieces: the rows are cut into so many pieces, whose lengths differ by at most 1, and a rank takes whole ones;
    None for as many as there are ranks.
    """
    if pieces is None:
        return total * rank // size, total * (rank + 1) // size
    first, last = share(pieces, rank, size)
    return total * first // pieces, total * last // pieces


class DistributedSampler:
    """The order of the samples of each epoch, cut into global batches.

    The order is a function of the seed and the epoch alone, the same on every rank. Global batch b is rows
    [b * batch_size, (b + 1) * batch_size) of it, whatever the number of ranks; nothing is padded, dropped
    or repeated, and the last batch is just smaller (with `drop_last` it is left out).
    """

    def __init__(
        self, length: int, batch_size: int, shuffle: bool = False, seed: int | None = None, drop_last: bool = False
    ) -> None:
        if length < 1:
            raise ValueError(f"dataset must have at least one sample, got a data set of length {length}")
        if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
            raise ValueError(f"batch_size must be an integer >= 1, got {batch_size!r}")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0):
            raise ValueError(f"seed must be an integer >= 0 or None, got {seed!r}")
        if drop_last and batch_size > length:
            raise ValueError(
                f"batch_size must be at most the data set's length {length} with drop_last, got {batch_size}"
            )
        self.length, self.batch_size = length, int(batch_size)
        self.shuffle, self.seed, self.drop_last = shuffle, seed, drop_last

    def __len__(self) -> int:
        """The number of global batches of an epoch."""
        return self.length // self.batch_size if self.drop_last else -(-self.length // self.batch_size)

    def order(self, epoch: int) -> Indices:
        """All samples in the order of this epoch."""
        if not self.shuffle:
            return np.arange(self.length)
        seed = rng.seed().value if self.seed is None else self.seed
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch]))).permutation(self.length)

    def batches(self, epoch: int, rank: int, size: int, pieces: int | None = None) -> Iterator[tuple[Rows, Indices]]:
        """This rank's rows of every global batch of the epoch, in order, and the samples that they are; possibly
        none of one. See `share` for `pieces`."""
        order = self.order(epoch)
        for batch in range(len(self)):
            indices = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            start, stop = share(len(indices), rank, size, pieces)
            yield Rows(start, stop, len(indices), epoch, batch), indices[start:stop]
