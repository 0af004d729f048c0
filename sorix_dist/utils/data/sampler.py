"""Which samples make which global batch, and which of its rows a rank takes: arithmetic, without a message."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from zlib import crc32

import numpy as np

from sorix_dist.core import random as rng
from sorix_dist.core.placement import Rows

Indices = np.ndarray[Any, np.dtype[np.int64]]

_LOOKED_AT = 64  # samples in the order of an epoch, to find out that another rank has another order


def share(total: int, rank: int, size: int, pieces: int | None = None) -> tuple[int, int]:
    """The rows [start, stop) of `total` that `rank` of `size` takes: contiguous.

    pieces: the rows are cut into so many pieces, whose lengths differ by at most 1, and a rank takes whole ones;
    None for as many as there are ranks.
    """
    if pieces is None:
        return total * rank // size, total * (rank + 1) // size
    first, last = share(pieces, rank, size)
    return total * first // pieces, total * last // pieces


def digest(*numbers: int) -> int:
    """A number for what decides which samples the batches hold, and for the seed of this rank: who has another one
    trains on other samples."""
    return crc32(repr((rng.seed().value, *numbers)).encode())


def whole(name: str, value: Any, least: int) -> int:
    """`value` as an int; ValueError unless it is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
    return int(value)


class Sampler:
    """The order of the samples of each epoch: a function of the seed and the epoch alone, the same on every rank.

    length: the number of samples; shuffle: a new order every epoch; seed: None for the one that all ranks share.
    A subclass may define another `order`, whose answer must follow from its arguments on every rank alike.
    """

    def __init__(self, length: int, shuffle: bool = False, seed: int | None = None) -> None:
        if length < 1:
            raise ValueError(f"dataset must have at least one sample, got a data set of length {length}")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0):
            raise ValueError(f"seed must be an integer >= 0 or None, got {seed!r}")
        self.length, self.shuffle = length, bool(shuffle)
        self.seed = None if seed is None else int(seed)
        self.wanted_epoch: int | None = None

    def set_epoch(self, epoch: int) -> None:
        """Makes the next loop over the loader of this sampler the epoch `epoch`; it advances by itself otherwise."""
        self.wanted_epoch = whole("set_epoch: epoch", epoch, 0)

    def seed_in_force(self) -> int:
        """The seed that the order follows from."""
        return rng.seed().value if self.seed is None else self.seed

    def order(self, epoch: int) -> Indices:
        """All samples in the order of this epoch."""
        if not self.shuffle:
            return np.arange(self.length)
        words = np.random.SeedSequence([self.seed_in_force(), epoch])
        return np.random.Generator(np.random.Philox(words)).permutation(self.length)


class BatchSampler:
    """The order of a sampler, cut into global batches.

    Global batch b is rows [b * batch_size, (b + 1) * batch_size) of the order, whatever the number of ranks;
    nothing is padded, dropped or repeated, and the last batch is just smaller (with `drop_last` it is left out).
    """

    def __init__(self, sampler: Sampler, batch_size: int, drop_last: bool = False) -> None:
        self.sampler, self.batch_size, self.drop_last = sampler, whole("batch_size", batch_size, 1), drop_last
        if drop_last and batch_size > sampler.length:
            raise ValueError(
                f"batch_size must be at most the data set's length {sampler.length} with drop_last, got {batch_size}"
            )

    def __len__(self) -> int:
        """The number of global batches of an epoch."""
        full, rest = divmod(self.sampler.length, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def batches(
        self, epoch: int, rank: int, size: int, pieces: int | None = None, first: int = 0, contents: int = 0
    ) -> Iterator[tuple[Rows, Indices]]:
        """This rank's rows of every global batch of the epoch from the batch `first` on, in order, and the samples
        that they are; possibly none of one. See `share` for `pieces`; contents: a digest of the data set."""
        order = self.sampler.order(epoch)
        some = order[:: max(1, len(order) // _LOOKED_AT)]
        identity = digest(len(order), *some.tolist(), self.batch_size, self.drop_last, contents)
        for batch in range(first, len(self)):
            indices = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            start, stop = share(len(indices), rank, size, pieces)
            yield Rows(start, stop, len(indices), epoch, batch, identity), indices[start:stop]
