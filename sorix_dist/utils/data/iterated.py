"""Samplers as PyTorch has them: a loop over them gives the indices of an epoch, or the lists of its batches."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any
from zlib import crc32

import numpy as np

from sorix_dist.core import random as rng
from sorix_dist.core.arguments import as_bool, as_int, described
from sorix_dist.utils.data.dataset import length_of
from sorix_dist.utils.data.sampler import Indices, Sampler

_MOST = 10_000_000  # indices of an epoch, if the sampler does not tell their number: an endless one is refused
_STREAM = 1 << 62  # of the draws of an order, beside those of samples, whose numbers are their indices


class IteratedSampler(Sampler):
    """The order that a loop over `source` gives at the start of each epoch. What it draws by `sx.randperm` and its kin
    without a generator follows from the seed and the epoch, so it is the same when a run goes on within the epoch.

    length: that of the data set; in_batches: whether `source` gives lists of indices, one for each global batch.
    """

    has_own_order = True

    def __init__(self, source: Any, length: int, in_batches: bool = False) -> None:
        super().__init__(length, shuffle=True)
        self.source, self.in_batches = source, in_batches
        self._drawn: tuple[tuple[int, int], Indices] | None = None  # the seed and the epoch, and their order

    def __getattr__(self, name: str) -> Any:
        if name == "source" or name.startswith("__"):  # of a copy that has no attributes yet
            raise AttributeError(name)
        return getattr(self.source, name)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        if hasattr(self.source, "set_epoch"):
            self.source.set_epoch(epoch)

    def order(self, epoch: int) -> Indices:
        key = self.seed_in_force(), epoch
        if self._drawn is None or self._drawn[0] != key:
            self._drawn = key, self._draw(epoch)
        return self._drawn[1]

    def _draw(self, epoch: int) -> Indices:
        streams = rng.SampleStreams(self.seed_in_force(), epoch)
        streams.begin(_STREAM)
        token = rng.sample_streams.set(streams)
        try:
            given = [*islice(self.source, _MOST)]
        finally:
            rng.sample_streams.reset(token)
        if len(given) == _MOST:
            raise ValueError(f"{self.name} gives {_MOST} indices and more: a sampler has to end after an epoch")
        if self.in_batches:
            if any(isinstance(batch, str) or not hasattr(batch, "__iter__") for batch in given):
                raise TypeError(f"batch_sampler must give lists of indices, got an element of {self.name} that is none")
            batches = [[*batch] for batch in given]
            if not all(batches):
                raise ValueError(f"{self.name} gives an empty batch, number {batches.index([])} of the epoch")
            self.ends = np.cumsum([len(batch) for batch in batches], dtype=np.int64)
            given = [index for batch in batches for index in batch]
        numbers = (index.item() if hasattr(index, "item") else index for index in given)
        return np.array([as_int(f"an index that {self.name} gives", number, 0) for number in numbers], np.int64)

    @property
    def name(self) -> str:
        """The class of what is looped over."""
        return type(self.source).__name__

    def named_order(self, epoch: int) -> str:
        return f"the order of epoch {epoch} that {self.name} gives"

    def _said(self, epoch: int) -> int | None:
        """The length that `source` claims, while the order of the epoch is not needed yet: to draw it changes some."""
        drawn = self._drawn is not None and self._drawn[0][1] == epoch
        return None if drawn or not hasattr(self.source, "__len__") else len(self.source)

    def count(self, epoch: int) -> int:
        said = None if self.in_batches else self._said(epoch)
        return super().count(epoch) if said is None else said

    def batches(self, epoch: int) -> int:
        said = self._said(epoch)
        if said is not None:
            return said
        self.order(epoch)
        return super().batches(epoch)

    def identity(self, epoch: int, started: bool) -> dict[str, Any]:
        return {"order": crc32(self.order(epoch).tobytes())} if started else {}


def as_sampler(name: str, given: Any, length: int, in_batches: bool = False) -> Sampler:
    """A sampler of a user's as a Sampler of a data set of this length: it has an `order`, or is looped over.

    name: that of the argument, for errors.
    """
    if isinstance(given, Sampler) and hasattr(given, "length"):
        return given
    if not hasattr(given, "__iter__") or isinstance(given, str | bytes | type | Iterator):
        raise TypeError(
            f"{name} must be a Sampler, or an object whose __iter__ gives the indices of an epoch, got "
            f"{described(given)}: a subclass of Sampler calls super().__init__(len(dataset)) and defines order(epoch), "
            "or defines __iter__ as in PyTorch"
        )
    return IteratedSampler(given, length, in_batches)


class RandomSampler:
    """The indices in a new order every epoch, as `DataLoader(shuffle=True)`; or drawn with `replacement`.

    num_samples: how many an epoch gives, by default as many as there are. generator: where the draws come from.
    """

    def __init__(
        self, data_source: Any, replacement: bool = False, num_samples: int | None = None, generator: Any = None
    ) -> None:
        self.data_source, self.replacement, self.generator = data_source, as_bool("replacement", replacement), generator
        self.length = length_of("RandomSampler", data_source)
        self.num_samples = self.length if num_samples is None else as_int("num_samples", num_samples, 1)

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        stream = rng.generator(self.generator)
        if self.replacement:
            return iter(stream.integers(self.length, size=self.num_samples).tolist())
        orders = [stream.permutation(self.length) for _ in range(-(-self.num_samples // self.length))]
        return iter(np.concatenate(orders)[: self.num_samples].tolist())


class SequentialSampler:
    """The indices in order, as `DataLoader(shuffle=False)`."""

    def __init__(self, data_source: Any) -> None:
        self.data_source = data_source

    def __len__(self) -> int:
        return length_of("SequentialSampler", self.data_source)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))


class SubsetRandomSampler:
    """Some of the indices, in a new order every epoch. generator: where the draws come from."""

    def __init__(self, indices: Any, generator: Any = None) -> None:
        self.indices, self.generator = indices, generator

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return (self.indices[i] for i in rng.generator(self.generator).permutation(len(self.indices)).tolist())
