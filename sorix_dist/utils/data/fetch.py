"""Fetching of batches: this rank's rows of each global batch, their samples, and threads that prefetch."""

from __future__ import annotations

import contextvars
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import nullcontext
from itertools import islice
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core import random as rng
from sorix_dist.core.placement import Batch, Rows, current_group, tagged
from sorix_dist.core.tensor import array_of
from sorix_dist.utils.data.augment import BatchTransform
from sorix_dist.utils.data.dataset import dataset_digest, reader
from sorix_dist.utils.data.nested import collate, entries, map_arrays, tensors
from sorix_dist.utils.data.sampler import BatchSampler, Indices, LengthBucketSampler, order_digest, shard_bounds

if TYPE_CHECKING:
    from concurrent.futures import Future

Ranks = tuple[int, int, int | None]  # rank, number of ranks, and the pieces of a batch: see `shard_bounds`

_END: Any = object()


class Collator:
    """Makes batches of samples, and tags their tensors with their rows of the global batch.

    Either all ranks tag their batches or none, because an untagged batch leads to a collective. A user's `function` may
    make any number of rows of its samples, so every rank tries it on the same one sample and the same two. If all
    tensors have one row per sample, all batches are tagged, and a later batch with another number of rows is an error.

    function: None for `collate`; transform: a BatchTransform; tag: False for never; per_sample: the answer of the
    trial, if the user gives it.
    """

    def __init__(
        self,
        function: Callable[[list[Any]], Any] | None,
        transform: BatchTransform | None = None,
        *,
        tag: bool,
        per_sample: bool | None,
    ) -> None:
        self.function, self.transform, self.tag = function, transform, tag
        self.per_sample = True if function is None else per_sample
        self._example: Any = None

    def learn(self, samples: list[Any]) -> None:
        """Tries the function on the first of two samples and on both, unless the answer is known."""
        if not self.tag or self.per_sample is not None or self.function is None:
            return
        try:
            self.per_sample = all(_fits(self(list(part)), len(part)) for part in (samples[:1], samples[:2]))
        except Exception as error:
            error.add_note(
                "raised while collate_fn was tried on the first samples, to find out whether it makes one row of "
                "each; DataLoader(one_row_per_sample=True) or False says so instead"
            )
            raise

    def __call__(self, samples: list[Any]) -> Any:
        """The batch of some samples, before its transform. Arrays of numbers become tensors, which know their rows."""
        if self.function is None:
            return collate(samples)
        batch = self.function(samples)
        return map_arrays(batch, _as_tensor) if any(isinstance(x, np.ndarray) for x in entries(batch)) else batch

    def batch(self, rows: Rows, indices: Indices, make: Callable[[Indices], Any], seed: int) -> Any:
        """The batch that `make` gives for the samples at `indices`, transformed and tagged.

        Without any samples it is the batch of sample 0 without its row, which has the right dtypes and shapes.
        """
        if len(indices):
            return self._tagged(self._transformed(make(indices), rows, indices, seed), rows)
        if self._example is None:
            first = np.zeros(1, np.int64)
            self._example = self._transformed(make(first), rows._replace(start=0, stop=1), first, seed)
        return self._tagged(map_arrays(self._example, lambda array: array[:0] if array.ndim else array), rows)

    def _transformed(self, batch: Any, rows: Rows, indices: Indices, seed: int) -> Any:
        if self.transform is not None:
            batch = map_arrays(self.transform(batch, seed, rows.epoch, indices), Tensor)
            self._check("batch_transform", batch, rows.stop - rows.start)
        return batch

    def _tagged(self, batch: Any, rows: Rows) -> Any:
        """The batch with its rows on its tensors, unless these are not rows of a global batch."""
        if self.tag and self.per_sample:
            if self.function is not None:
                self._check("collate_fn", batch, rows.stop - rows.start)
            place = Batch(rows, current_group()).at(0)
            if self.function is not None:
                place.batch.lengths = tuple(tensor.array.shape[1:] for tensor in tensors(batch))
            for tensor in tensors(batch):
                tagged(tensor, place)
        return batch

    def _check(self, name: str, batch: Any, count: int) -> None:
        if self.per_sample and not _fits(batch, count):
            shapes = ", ".join(str(tuple(tensor.array.shape)) for tensor in tensors(batch))
            raise ValueError(
                f"{name} must make {count} rows of {count} samples, got tensors of shape {shapes}"
                + ("; with DataLoader(one_row_per_sample=False) it may make any number" if self.function else "")
            )


def _as_tensor(x: Any) -> Any:
    return Tensor(x) if isinstance(x, np.ndarray) and x.ndim and x.dtype.kind in "biuf" else x


def _fits(batch: Any, count: int) -> bool:
    """Whether every tensor has `count` rows."""
    return all(tensor.array.ndim > 0 and len(tensor.array) == count for tensor in tensors(batch))


class Indexed:
    """Batches of a data set with `__len__` and `__getitem__`."""

    def __init__(self, dataset: Any, collator: Collator, batches: BatchSampler) -> None:
        self.dataset, self.collator, self.batches = dataset, collator, batches
        sampler = batches.sampler
        self.seed = sampler.seed_in_force()
        self.buckets = sampler if isinstance(sampler, LengthBucketSampler) else None
        self.longest: list[int] = []
        self.read = None if collator.function is not None or self.buckets is not None else reader(dataset)
        self.several = False  # ranks
        self.checked = False

    def tasks(self, epoch: int, first: int, ranks: Ranks) -> Iterator[tuple[Rows, Indices]]:
        """This rank's rows of each global batch of the epoch, from batch `first` on, and the indices of its samples."""
        if self.buckets is not None:
            lengths = self.buckets.lengths[self.batches.sampler.checked_order(epoch)]
            self.longest = np.maximum.reduceat(lengths, range(0, len(lengths), self.batches.batch_size)).tolist()
        if self.read is None and self.collator.per_sample is None:
            self.collator.learn([self._sample(0), self._sample(min(1, len(self.dataset) - 1))])
        self.several = ranks[1] > 1
        return self.batches.batches(epoch, *ranks, first=first, contents=dataset_digest(self.dataset) or 0)

    def make(self, task: tuple[Rows, Indices]) -> Any:
        """The batch of a task."""
        rows, indices = task

        def gather(wanted: Indices) -> Any:
            token = rng.sample_streams.set(rng.SampleStreams(self.seed, rows.epoch))
            try:
                if self.read is not None:
                    return map_arrays(self.read(wanted), Tensor)
                samples = [self._sample(index) for index in wanted.tolist()]
            finally:
                rng.sample_streams.reset(token)
            if self.buckets is not None:
                longest = max(self.longest[rows.batch], int(self.buckets.lengths[wanted].max()))
                samples = [self._padded(*entry, longest) for entry in zip(samples, wanted.tolist(), strict=True)]
            return self.collator(samples)

        looking = self.several and not self.checked and rows.stop > rows.start
        try:
            sources = {"dataset": self.dataset, "collate_fn": self.collator.function}
            with rng.draws_from(**sources) if looking else nullcontext(()) as drawn:
                batch = self.collator.batch(rows, indices, gather, self.seed)
        except Exception as error:
            error.add_note(f"in {_name(rows)} of the data loader, whose samples are {_listed(indices.tolist())}")
            raise
        self.checked = self.checked or looking
        for name in drawn:
            warnings.warn(
                f"DataLoader: {type(self.dataset).__name__} draws from {name} for a batch, so "
                "that the samples depend on the number of ranks; sx.rand and its kin draw from a stream of the "
                "sample's own there",
                RuntimeWarning,
                stacklevel=2,
            )
        return batch

    def _sample(self, index: int) -> Any:
        if (streams := rng.sample_streams.get()) is not None:
            streams.begin(index)
        try:
            return self.dataset[index]
        except Exception as error:
            error.add_note(f"raised by the data set for sample {index}")
            raise

    def _padded(self, sample: Any, index: int, longest: int) -> Any:
        """The sample with its sequences padded to the longest one of the global batch."""
        assert self.buckets is not None
        length, value = int(self.buckets.lengths[index]), self.buckets.padding
        found = False

        def pad(entry: Any) -> Any:
            nonlocal found
            array = array_of(entry)
            if array.ndim == 0 or len(array) != length:
                return entry
            found = True
            widths = [(0, longest - length), *((0, 0) for _ in array.shape[1:])]
            return np.pad(array, widths, constant_values=value)

        padded = map_arrays(sample, pad)
        if not found:
            raise ValueError(
                f"LengthBucketSampler: sample {index} must have an array of its length {length}, got {sample!r}"
            )
        return padded


class Streamed:
    """Batches of a data set with only `__iter__`: every rank reads all samples and takes its rows of each batch."""

    def __init__(self, dataset: Iterable[Any], collator: Collator, batch_size: int, drop_last: bool) -> None:
        self.dataset, self.collator = dataset, collator
        self.batch_size, self.drop_last = batch_size, drop_last
        self.seed = rng.seed().value

    def tasks(self, epoch: int, first: int, ranks: Ranks) -> Iterator[tuple[Rows, list[Any]]]:
        """This rank's rows of each global batch of the epoch, from `first` on, and all samples of the batch."""
        samples = iter(self.dataset)
        batch = 0
        while block := self._block(samples, epoch, batch):
            if batch == 0:
                self.collator.learn(block[:1] * 2 if len(block) == 1 else block[:2])
            if len(block) < self.batch_size and self.drop_last:
                break
            if batch >= first:
                identity = order_digest(self.batch_size, len(block))
                yield Rows(*shard_bounds(len(block), *ranks), len(block), epoch, batch, identity), block
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
        start = rows.batch * self.batch_size

        def gather(wanted: Indices) -> Any:
            samples = [block[int(index) - start] for index in wanted] if rows.stop > rows.start else block[:1]
            return self.collator(samples)

        try:
            return self.collator.batch(rows, np.arange(start + rows.start, start + rows.stop), gather, self.seed)
        except Exception as error:
            error.add_note(
                f"in {_name(rows)} of the data loader, whose samples are number "
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


def _name(rows: Rows) -> str:
    return f"batch {rows.batch} of epoch {rows.epoch}"


def _listed(indices: list[int]) -> str:
    return ", ".join(map(str, indices[:8])) + (f" and {len(indices) - 8} more" if len(indices) > 8 else "")


def ahead(make: Callable[[Any], Any], tasks: Iterator[Any], threads: int, depth: int) -> Generator[Any, None, None]:
    """`make(task)` for each task, in order, computed by `threads` threads up to `depth` results ahead.

    The threads take the tasks from their iterator, one thread at a time. An exception in a thread is raised where its
    result was due. The threads end after the last result, or when this generator is closed or garbage, each after the
    result that it works on. With 0 threads everything is computed here, on demand.
    """
    if threads == 0:
        for task in tasks:
            yield _made(make, task)
        return
    from concurrent.futures import Future  # slow to import

    requests: SimpleQueue[Future[Any]] = SimpleQueue()
    turn, ended = threading.Lock(), threading.Event()

    def work() -> None:
        while True:
            with turn:  # takes a request and its task together, so that results come in the order of tasks
                result = requests.get()
                if ended.is_set():
                    return
                try:
                    task = next(tasks, _END)
                except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
                    result.set_exception(error)
                    continue
            try:
                result.set_result(task if task is _END else _made(make, task))
            except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
                result.set_exception(error)

    awaited: deque[Future[Any]] = deque()

    def ask() -> None:
        awaited.append(Future())
        requests.put(awaited[-1])

    started = 0
    try:
        while started < threads:
            run = contextvars.copy_context().run  # the context holds the seed and the ranks
            name = f"sorix_dist data loader {started}"
            try:
                threading.Thread(target=run, args=(work,), name=name, daemon=True).start()
            except RuntimeError as error:
                raise RuntimeError(f"num_workers={threads}: no more than {started} threads can be started") from error
            started += 1
        for _ in range(depth):
            ask()
        while (result := awaited.popleft().result()) is not _END:
            ask()
            yield result
    finally:
        ended.set()
        for _ in range(started):
            requests.put(Future())


def _made(make: Callable[[Any], Any], task: Any) -> Any:
    """`make(task)`. A StopIteration in it becomes a RuntimeError: a loop would take it for the end of the epoch."""
    try:
        return make(task)
    except StopIteration as error:
        failure = RuntimeError(
            "StopIteration was raised where a sample or batch was made, and would have ended the epoch"
        )
        for note in getattr(error, "__notes__", ()):
            failure.add_note(note)
        raise failure from error
