"""Where batches come from: samples by index, or a stream of them. Each says what is to be fetched, in order, and
fetches it; the two steps may happen in different threads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from sorix_dist.core import Tensor
from sorix_dist.core.placement import Rows
from sorix_dist.utils.data.collate import Collator
from sorix_dist.utils.data.dataset import Dataset, contents
from sorix_dist.utils.data.sampler import BatchSampler, Indices, digest, share

Ranks = tuple[int, int, int | None]  # rank, size, and the pieces of a batch: see `share`


class Indexed:
    """Batches of a data set with `__len__` and `__getitem__`."""

    def __init__(self, dataset: Any, collator: Collator, batches: BatchSampler) -> None:
        self.dataset, self.collator, self.batches = dataset, collator, batches
        self.whole_arrays = type(dataset).__getitem__ is Dataset.__getitem__ and collator.function is None

    def tasks(self, epoch: int, first: int, ranks: Ranks) -> Iterator[tuple[Rows, Indices]]:
        """This rank's rows of each global batch of the epoch from `first` on, and the samples that they are."""
        if not self.whole_arrays and self.collator.per_sample is None:
            self.collator.learn([self._sample(0), self._sample(min(1, len(self.dataset) - 1))])
        return self.batches.batches(epoch, *ranks, first=first, contents=contents(self.dataset) or 0)

    def make(self, task: tuple[Rows, Indices]) -> Any:
        """The batch of a task."""
        rows, indices = task
        try:
            if self.whole_arrays:
                batch = tuple(Tensor(values) for values in self.dataset.fetch(indices))
                return self.collator.tagged(batch if len(batch) > 1 else batch[0], rows)
            samples = [self._sample(index) for index in indices.tolist()]
            return self.collator.batch(rows, samples, lambda: self._sample(0))
        except Exception as error:
            error.add_note(f"in {_place(rows)} of the data loader, whose samples are {_listed(indices.tolist())}")
            raise

    def _sample(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except Exception as error:
            error.add_note(f"raised by the data set for sample {index}")
            raise


class Streamed:
    """Batches of a data set with `__iter__` alone: every rank reads all samples and keeps its rows of each batch."""

    def __init__(self, dataset: Iterable[Any], collator: Collator, batch_size: int, drop_last: bool) -> None:
        self.dataset, self.collator = dataset, collator
        self.batch_size, self.drop_last = batch_size, drop_last

    def tasks(self, epoch: int, first: int, ranks: Ranks) -> Iterator[tuple[Rows, list[Any]]]:
        """This rank's rows of each global batch of the epoch from `first` on, and all samples of the batch."""
        samples = iter(self.dataset)
        batch = 0
        while block := self._block(samples, epoch, batch):
            if batch == 0:
                self.collator.learn(block[:1] * 2 if len(block) == 1 else block[:2])
            if len(block) < self.batch_size and self.drop_last:
                break
            if batch >= first:
                identity = digest(self.batch_size, len(block))
                yield Rows(*share(len(block), *ranks), len(block), epoch, batch, identity), block
            batch += 1
        else:
            if batch == 0:
                raise ValueError(
                    f"dataset must have at least one sample, got none from {type(self.dataset).__name__} in epoch "
                    f"{epoch}; an iterator can be read only once, an object whose __iter__ starts anew every epoch"
                )
        if batch < first:
            raise ValueError(f"dataset must have the {first} batches that were read before the stop, got {batch}")

    def make(self, task: tuple[Rows, list[Any]]) -> Any:
        """The batch of a task."""
        rows, block = task
        try:
            return self.collator.batch(rows, block[rows.start : rows.stop], lambda: block[0])
        except Exception as error:
            start = rows.batch * self.batch_size
            error.add_note(
                f"in {_place(rows)} of the data loader, whose samples are number "
                f"{start + rows.start} to {start + rows.stop - 1} of the stream"
            )
            raise

    def _block(self, samples: Iterator[Any], epoch: int, batch: int) -> list[Any]:
        block: list[Any] = []
        try:
            block.extend(islice(samples, self.batch_size))
        except Exception as error:
            number = batch * self.batch_size + len(block)
            error.add_note(f"raised by the data set for sample number {number} of the stream, in epoch {epoch}")
            raise
        return block


def _place(rows: Rows) -> str:
    return f"batch {rows.batch} of epoch {rows.epoch}"


def _listed(indices: list[int]) -> str:
    return ", ".join(map(str, indices[:8])) + (f" and {len(indices) - 8} more" if len(indices) > 8 else "")
