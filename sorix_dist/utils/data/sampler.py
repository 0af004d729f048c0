"""Which samples make which global batch, and which of its rows a rank takes: arithmetic, without messages."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any
from zlib import crc32

import numpy as np

from sorix_dist.core import random as rng
from sorix_dist.core.arguments import as_int, described, int_or_none
from sorix_dist.core.placement import Rows
from sorix_dist.core.tensor import as_array
from sorix_dist.utils.data.tables import numbers

Indices = np.ndarray[Any, np.dtype[np.int64]]


def shard_bounds(total: int, rank: int, size: int, pieces: int | None = None) -> tuple[int, int]:
    """The rows [start, stop) of `total` that `rank` of `size` ranks takes; ranks take consecutive rows.

    pieces: the rows are first cut into this many pieces, whose lengths differ by at most 1, and a rank takes whole
    pieces; None for one piece per rank.
    """
    if pieces is None:
        return total * rank // size, total * (rank + 1) // size
    first, last = shard_bounds(pieces, rank, size)
    return total * first // pieces, total * last // pieces


def order_digest(*numbers: int) -> int:
    """A checksum of this rank's seed and of the numbers that determine the samples of each batch. Ranks compare it,
    so that none trains on other samples."""
    return crc32(repr((rng.seed().value, *numbers)).encode())


class Sampler:
    """The order of the samples of each epoch. It follows from the seed and the epoch, so every rank has the same.

    length: the number of samples of the data set; shuffle: a new order every epoch; seed: None for the seed that all
    ranks share. A subclass may define another `order(epoch)`, which must give the same on every rank. An epoch is as
    long as its order, which may leave samples out and repeat others. Or it defines `__iter__`, as in PyTorch, with the
    indices of the next epoch, and then needs none of the arguments.
    """

    in_batches = False  # whether the order comes with the batches that it is cut into
    ends: Indices | None = None  # those of the batches of the last order, then

    def __init__(self, length: Any = None, shuffle: bool = False, seed: int | None = None) -> None:
        if self.is_iterated and not self.has_own_order:
            return
        if as_int("Sampler: length", length, 0) < 1:
            raise ValueError(f"dataset must have at least one sample, got a data set of length {length}")
        self.length, self.shuffle = length, bool(shuffle)
        self.seed = int_or_none("seed", seed, 0)
        self.wanted_epoch: int | None = None

    @property
    def is_iterated(self) -> bool:
        """Whether a user's subclass defines `__iter__`."""
        its = getattr(type(self), "__iter__", None)
        return its is not None and not its.__module__.startswith("sorix_dist.")

    def set_epoch(self, epoch: int) -> None:
        """Makes `epoch` the next epoch of this sampler's loader. Without this call, epochs count up by themselves."""
        self.wanted_epoch = as_int("set_epoch: epoch", epoch, 0)

    def seed_in_force(self) -> int:
        """The seed that the order follows from."""
        return rng.seed().value if self.seed is None else self.seed

    def order(self, epoch: int) -> Indices:
        """The indices of this epoch's samples, in order."""
        return self.random(epoch).permutation(self.length) if self.shuffle else np.arange(self.length)

    def random(self, epoch: int) -> np.random.Generator:
        """Random numbers for this epoch, the same on every rank."""
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed_in_force(), epoch])))

    @property
    def has_own_order(self) -> bool:
        """Whether a subclass defines the order."""
        return type(self).order is not Sampler.order

    def named_order(self, epoch: int) -> str:
        """What gives the order of this epoch, for errors."""
        return f"{type(self).__name__}.order({epoch})"

    def checked_order(self, epoch: int) -> Indices:
        """The order as an array; ValueError unless it names samples of the data set, at least one."""
        indices = np.asarray(self.order(epoch))
        if not self.has_own_order:
            return indices
        what = self.named_order(epoch)
        if indices.ndim != 1 or not indices.size or indices.dtype.kind not in "iu":
            raise ValueError(
                f"{what} must be a vector of at least one index, got shape {indices.shape} and dtype {indices.dtype}"
            )
        if indices.min() < 0 or indices.max() >= self.length:
            outside = indices[(indices < 0) | (indices >= self.length)][0]
            raise ValueError(f"{what} must name samples in [0, {self.length}), got {outside}")
        return indices.astype(np.int64, copy=False)

    def count(self, epoch: int) -> int:
        """The number of samples of this epoch."""
        return len(self.checked_order(epoch)) if self.has_own_order else self.length

    def batches(self, epoch: int) -> int:
        """The number of batches of this epoch, if the order comes with them."""
        return 0 if self.ends is None else len(self.ends)

    def identity(self, epoch: int, started: bool) -> dict[str, Any]:
        """What a saved state has of the order of this epoch, beside seed and length."""
        return {"samples": self.count(epoch)} if self.has_own_order else {}


class WeightedRandomSampler(Sampler):
    """Draws samples at random, with probabilities proportional to their weights (as PyTorch's).

    weights: a number >= 0 for every sample of the data set; num_samples: how many an epoch draws;
    replacement: whether a sample may be drawn again; seed: None for the seed that all ranks share.
    """

    def __init__(self, weights: Any, num_samples: int, replacement: bool = True, *, seed: int | None = None) -> None:
        given = as_array(weights).astype(np.float64)
        if given.ndim != 1 or not np.isfinite(given).all() or (given < 0).any() or not given.any():
            raise ValueError("weights must be a vector of finite numbers >= 0 that are not all 0")
        super().__init__(len(given), shuffle=True, seed=seed)
        self.probabilities = given / given.sum()
        self.num_samples = as_int("num_samples", num_samples, 1)
        self.replacement = bool(replacement)
        drawable = np.count_nonzero(given)
        if not self.replacement and self.num_samples > drawable:
            raise ValueError(
                f"num_samples must be at most {drawable}, the number of weights above 0, without replacement, "
                f"got {num_samples}"
            )

    def order(self, epoch: int) -> Indices:
        return self.random(epoch).choice(self.length, self.num_samples, self.replacement, self.probabilities)


class LengthBucketSampler(Sampler):
    """Puts sequences of similar length into one batch, so that little is padded.

    lengths: the length of every sample's sequence; batch_size: that of the loader. Samples are sorted by length
    within pools of `pool` batches, cut into batches, and the batches are shuffled; without `shuffle`, all samples are
    sorted. The loader pads a sample's arrays that have its length along their first axis by `padding`, to the longest
    of the global batch, which does not depend on the number of ranks.
    """

    def __init__(
        self,
        lengths: Any,
        batch_size: int,
        shuffle: bool = True,
        seed: int | None = None,
        *,
        padding: float = 0,
        pool: int = 50,
    ) -> None:
        self.lengths = numbers("lengths", lengths)
        if self.lengths.ndim != 1 or self.lengths.dtype.kind not in "iu" or (self.lengths < 0).any():
            raise ValueError("LengthBucketSampler: lengths must be a vector of integers >= 0, one for each sample")
        super().__init__(len(self.lengths), shuffle, seed)
        self.batch_size, self.padding = as_int("batch_size", batch_size, 1), padding
        self.pool = as_int("pool", pool, 1)
        self.sorted = True

    def unsorted(self) -> LengthBucketSampler:
        """A sampler of all samples in the order of the data set, which are padded alike."""
        other = copy.copy(self)
        other.shuffle = other.sorted = False
        return other

    def order(self, epoch: int) -> Indices:
        if not self.sorted:
            return np.arange(self.length)
        if not self.shuffle:
            return np.argsort(self.lengths, kind="stable")
        random = self.random(epoch)
        samples = random.permutation(self.length)
        size = self.pool * self.batch_size
        pools = (samples[start : start + size] for start in range(0, self.length, size))
        samples = np.concatenate([pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools])
        full = self.length // self.batch_size
        batches = samples[: full * self.batch_size].reshape(full, self.batch_size)
        return np.concatenate([random.permutation(batches).reshape(-1), samples[full * self.batch_size :]])


class BatchSampler:
    """The order of a sampler, cut into global batches.

    Global batch b is rows [b * batch_size, (b + 1) * batch_size) of the order, on any number of ranks. Nothing is
    padded or repeated. The last batch may be smaller; `drop_last` leaves it out then.
    """

    def __init__(self, sampler: Any, batch_size: int, drop_last: bool = False) -> None:
        if not hasattr(sampler, "__iter__") and not isinstance(sampler, Sampler):
            raise TypeError(f"BatchSampler: sampler must be a Sampler, or have __iter__, got {described(sampler)}")
        self.sampler, self.batch_size, self.drop_last = sampler, as_int("batch_size", batch_size, 1), drop_last
        self._looped_over = not (isinstance(sampler, Sampler) and hasattr(sampler, "length"))  # as PyTorch's are
        if drop_last and not self._looped_over and not sampler.has_own_order:
            self._count(sampler.length)

    def __len__(self) -> int:
        """The number of global batches of the first epoch."""
        return self.count(0)

    def count(self, epoch: int) -> int:
        """The number of global batches of this epoch."""
        if self._looped_over:
            return self._count(len(self.sampler))
        return self.sampler.batches(epoch) if self.sampler.in_batches else self._count(self.sampler.count(epoch))

    def _count(self, samples: int) -> int:
        if self.drop_last and self.batch_size > samples:
            whose = "an epoch's" if self._looped_over or self.sampler.has_own_order else "the data set's"
            raise ValueError(
                f"batch_size must be at most {whose} length {samples} with drop_last, got {self.batch_size}"
            )
        full, rest = divmod(samples, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def batches(
        self, epoch: int, rank: int, size: int, pieces: int | None = None, first: int = 0, contents: int = 0
    ) -> Iterator[tuple[Rows, Indices]]:
        """This rank's rows of each global batch of the epoch, from batch `first` on, and the indices of their samples.
        A rank may have no rows of a batch. See `shard_bounds` for `pieces`; contents: a digest of the data set."""
        order = self.sampler.checked_order(epoch)
        ends = self.sampler.ends
        cut = self.batch_size if ends is None else crc32(ends.tobytes())
        identity = order_digest(len(order), crc32(order.tobytes()), cut, self.drop_last, contents)
        for batch in range(first, self._count(len(order)) if ends is None else len(ends)):
            if ends is None:
                indices = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            else:
                indices = order[ends[batch - 1] if batch else 0 : ends[batch]]
            start, stop = shard_bounds(len(indices), rank, size, pieces)
            yield Rows(start, stop, len(indices), epoch, batch, identity), indices[start:stop]
