"""How batches are made: which rows of which global batch come next, the samples that they are, and threads that fetch
them ahead."""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from itertools import islice
from queue import SimpleQueue
from typing import Any

from sorix_dist.core import Tensor
from sorix_dist.core.placement import Batch, Rows, current_group, tagged
from sorix_dist.utils.data.dataset import Dataset, contents
from sorix_dist.utils.data.nested import collate, map_arrays, tensors
from sorix_dist.utils.data.sampler import BatchSampler, Indices, digest, shard_bounds

Ranks = tuple[int, int, int | None]
"""Rank, number of ranks, and the pieces of a batch: see `shard_bounds`."""

_END: Any = object()


class Collator:
    """Makes batches of samples, and tags their tensors with the rows of the global batch that they hold.

    All ranks must tag or none, since those with tags ask nobody how many rows there are. What the function of a
    user makes of samples may have any number of rows, so it is tried once, on one sample and on two, the same ones
    on every rank: if every tensor has as many rows as there were samples, then all batches are tagged. One that
    later has another number of rows is an error, for the other ranks are tagged.

    function: None for `collate`; tag: False for never; per_sample: the answer of the trial, if it is known.
    """

    def __init__(self, function: Callable[[list[Any]], Any] | None, tag: bool, per_sample: bool | None) -> None:
        self.function = function
        self.tag = tag
        self.per_sample = True if function is None else per_sample
        self._first: Any = None

    def learn(self, samples: list[Any]) -> None:
        """Tries the function on the first of `samples` and on the first two; does nothing where all is known."""
        if not self.tag or self.per_sample is not None or self.function is None:
            return
        try:
            self.per_sample = all(_fits(self.function(list(part)), len(part)) for part in (samples[:1], samples[:2]))
        except Exception as error:
            error.add_note(
                "raised while collate_fn was tried on the first samples, to find out whether it makes one row of "
                "each; DataLoader(one_row_per_sample=True) or False says so instead"
            )
            raise

    def batch(self, rows: Rows, samples: list[Any], example: Callable[[], Any]) -> Any:
        """The batch of `samples`; if there are none, the batch of the sample `example()` without its row."""
        make = self.function or collate
        if samples:
            return self.tagged(make(samples), rows)
        if self._first is None:
            self._first = make([example()])
        return self.tagged(map_arrays(self._first, lambda array: array[:0] if array.ndim else array), rows)

    def tagged(self, batch: Any, rows: Rows) -> Any:
        """The batch with `rows` on its tensors, unless they are not rows of a global batch."""
        if self.tag and self.per_sample:
            count = rows.stop - rows.start
            if self.function is not None and not _fits(batch, count):
                shapes = ", ".join(str(tuple(tensor.array.shape)) for tensor in tensors(batch))
                raise ValueError(
                    f"collate_fn must make {count} rows of {count} samples, as it does of the first ones, got tensors "
                    f"of shape {shapes}; with DataLoader(one_row_per_sample=False) it may make any number"
                )
            place = Batch(rows, current_group()).at(0)
            for tensor in tensors(batch):
                tagged(tensor, place)
        return batch


def _fits(batch: Any, count: int) -> bool:
    """Whether every tensor has `count` rows."""
    return all(tensor.array.ndim > 0 and len(tensor.array) == count for tensor in tensors(batch))


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


def ahead(make: Callable[[Any], Any], tasks: Iterator[Any], threads: int, depth: int) -> Generator[Any, None, None]:
    """`make(task)` of each of the tasks, in order; `threads` threads are up to `depth` results ahead.

    The threads also take the tasks from their iterator, one at a time. What fails in a thread is raised where its
    result would have come. The threads end after the last result, and when this generator is closed or forgotten,
    each as soon as what it is making is done. With 0 threads everything is done here, when it is asked for.
    """
    if threads == 0:
        for task in tasks:
            yield _made(make, task)
        return
    requests: SimpleQueue[Future[Any]] = SimpleQueue()
    turn, ended = threading.Lock(), threading.Event()

    def work() -> None:
        while True:
            with turn:  # a request and its task are taken together, so that the results keep the order
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

    for number in range(threads):
        # With the caller's context, where the seed and the ranks are found.
        run = contextvars.copy_context().run
        threading.Thread(target=run, args=(work,), name=f"sorix_dist data loader {number}", daemon=True).start()
    try:
        for _ in range(depth):
            ask()
        while (result := awaited.popleft().result()) is not _END:
            ask()
            yield result
    finally:
        ended.set()
        for _ in range(threads):
            requests.put(Future())


def _made(make: Callable[[Any], Any], task: Any) -> Any:
    """`make(task)`. A StopIteration of it becomes a RuntimeError, because loops take one for the end of the tasks."""
    try:
        return make(task)
    except StopIteration as error:
        failure = RuntimeError(
            "StopIteration was raised where a sample or batch was made, and would have ended the epoch"
        )
        for note in getattr(error, "__notes__", ()):
            failure.add_note(note)
        raise failure from error
