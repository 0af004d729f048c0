"""DataLoader: this rank's rows of the global batches of a data set, as tensors tagged with their rows."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import Any

from sorix_dist.core import random as rng
from sorix_dist.core.arguments import as_bool, as_function, as_int, as_state, described
from sorix_dist.core.calling_code import is_loop
from sorix_dist.core.placement import current_group
from sorix_dist.utils.data.augment import BatchTransform
from sorix_dist.utils.data.dataset import IterableDataset, dataset_digest, seed_of
from sorix_dist.utils.data.fetch import Collator, Indexed, Ranks, Streamed, ahead
from sorix_dist.utils.data.iterated import as_sampler
from sorix_dist.utils.data.sampler import BatchSampler, LengthBucketSampler, Sampler


def ranks() -> Ranks:
    """Rank and size of the processes that share batches, and the number of virtual shards (see `shard_bounds`)."""
    group = current_group()
    return group.rank, group.size, group.virtual_shards


# Options of PyTorch's DataLoader without a meaning here: workers are threads, and there is no device to copy to.
_WITHOUT_EFFECT = {
    "pin_memory", "pin_memory_device", "persistent_workers", "timeout", "worker_init_fn", "multiprocessing_context",
    "in_order",
}  # fmt: skip


class DataLoader:
    """Batches of a data set. Each `for` loop over it is the next epoch, also a loop that breaks off.

    `next(iter(loader))` peeks at the first batch. From the second `next` on, an iterator counts as an epoch.

    dataset: a Dataset, an array, anything with `__len__` and `__getitem__`, or, with `__iter__` alone, a stream that
        every rank reads; its `set_epoch(epoch)`, if it has one, is called before each epoch.
    batch_size: rows of a global batch, which the ranks share (default 16); or batch_size_per_rank: this number
        times the number of ranks.
    shuffle: a new order every epoch, the same on every rank; seed: None for the seed that all ranks share, also
        `generator=`, as PyTorch has it; sampler: a Sampler, or what gives the indices of an epoch in a loop, instead of
        both; batch_sampler: a BatchSampler, or what gives lists of indices, instead of these, batch_size and drop_last.
    collate_fn: makes a batch of a list of samples, whose arrays of numbers become tensors; one_row_per_sample: whether
        each of these has a row for each sample, None to find out by trying it on the first two.
    batch_transform: a function of the arrays of this rank's batch, `f(x, y)` or `f(x, y, draw)` (see `augment`), which
        returns the new batch, with a row for each sample. Much faster than a transform of single samples.
    drop_last: leaves out a smaller last batch; shard: False gives every rank all rows. A wrapped model in training
        counts them as different rows on each rank, unless they are `replicated`.
    num_workers: threads that fetch ahead, each up to prefetch_factor (2) batches. They call the data set, transforms
        and collate_fn at the same time.
    PyTorch's other options (pin_memory, persistent_workers, timeout ...) are accepted without effect, with a warning.

    epoch: the number of the next loop's epoch.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = None,
        shuffle: bool | None = False,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        *,
        sampler: Any = None,
        batch_sampler: Any = None,
        batch_size_per_rank: int | None = None,
        batch_transform: Callable[..., Any] | None = None,
        one_row_per_sample: bool | None = None,
        drop_last: bool = False,
        shard: bool = True,
        seed: int | None = None,
        generator: Any = None,
        num_workers: int = 0,
        prefetch_factor: int | None = None,
        **without_effect: Any,
    ) -> None:
        self._ignored = _ignored(without_effect)
        if batch_size is not None and batch_size_per_rank is not None:
            raise ValueError(
                "batch_size and batch_size_per_rank exclude each other, "
                f"got batch_size={batch_size!r} and batch_size_per_rank={batch_size_per_rank!r}"
            )
        if batch_sampler is not None:
            if shuffle or drop_last or any(each is not None for each in (batch_size, batch_size_per_rank, sampler)):
                raise ValueError("batch_sampler excludes batch_size, batch_size_per_rank, shuffle, sampler, drop_last")
            if isinstance(batch_sampler, BatchSampler) and not hasattr(batch_sampler, "__iter__"):
                sampler, batch_size = batch_sampler.sampler, batch_sampler.batch_size
                drop_last = batch_sampler.drop_last
            else:
                sampler = as_sampler("batch_sampler", batch_sampler, len(dataset), in_batches=True)
        if generator is not None:
            if seed is not None:
                raise ValueError(f"seed and generator exclude each other, got {seed!r} and {generator!r}")
            seed = seed_of(generator) if shuffle else None
        if batch_size_per_rank is None:
            self._batch_size = as_int("batch_size", 16 if batch_size is None else batch_size, 1)
        else:
            self._batch_size = as_int("batch_size_per_rank", batch_size_per_rank, 1)
        if collate_fn is not None:
            as_function("collate_fn", collate_fn, "a list of samples")
        self._per_rank = batch_size_per_rank is not None
        self.dataset = dataset
        self.sampler = _order(dataset, sampler, as_bool("shuffle", False if shuffle is None else shuffle), seed)
        self.drop_last, self.shard = as_bool("drop_last", drop_last), as_bool("shard", shard)
        self.num_workers = as_int("num_workers", num_workers, 0)
        self.prefetch_factor = as_int("prefetch_factor", 2 if prefetch_factor is None else prefetch_factor, 1)
        transform = None if batch_transform is None else BatchTransform(batch_transform)
        self._collator = Collator(collate_fn, transform, tag=shard, per_sample=one_row_per_sample)
        self.epoch = 0
        self._first = 0  # the first batch of the next loop: not 0 if a saved state stopped within the epoch
        self._yielded = (0, 0)  # the epoch of the last batch that was yielded, and its number of batches so far
        buckets = getattr(self.sampler, "batch_size", None)
        if buckets is not None and buckets != self.batch_size:
            raise ValueError(f"batch_size must be that of the sampler, {buckets}, got {self.batch_size}")
        if self.sampler is not None and drop_last and not self._per_rank:
            len(self)  # raises if there is no full batch

    @property
    def batch_size(self) -> int:
        """The number of rows of a global batch."""
        return self._batch_size * self._ranks()[1] if self._per_rank else self._batch_size

    @property
    def collate_fn(self) -> Callable[[list[Any]], Any] | None:
        """The function of a list of samples that makes a batch, if one was given."""
        return self._collator.function

    def __len__(self) -> int:
        """The number of batches of an epoch, the same on every rank; TypeError for a stream.

        If epochs differ in length, that of the running epoch, or of the next one.
        """
        if self.sampler is None:
            raise TypeError(f"the length of a DataLoader over {type(self.dataset).__name__}, a stream, is unknown")
        return self._batches(self.sampler).count(self._yielded[0])

    @property
    def first_batch(self) -> int:
        """The number of the first batch of the next loop; not 0 if a loaded state stopped within an epoch."""
        return self._first

    def in_order(self) -> DataLoader:
        """Another loader with these options and a separate epoch: each sample once, in the order of the data set."""
        other = copy.copy(self)
        if isinstance(self.sampler, LengthBucketSampler):
            other.sampler = self.sampler.unsorted()
        elif self.sampler is not None:
            other.sampler = Sampler(len(self.dataset))
        other.drop_last, other.epoch, other._first, other._yielded = False, 0, 0, (0, 0)
        return other

    def _batches(self, sampler: Sampler) -> BatchSampler:
        return BatchSampler(sampler, self.batch_size, self.drop_last)

    def set_epoch(self, epoch: int) -> None:
        """Makes `epoch` the epoch of the next loop. Without this call, epochs count up by themselves.

        The number of the next epoch changes nothing, so a loaded state continues where it stopped.
        """
        epoch = as_int("set_epoch: epoch", epoch, 0)
        if epoch != self.epoch:
            self.epoch, self._first = epoch, 0
        self._yielded = (self.epoch, self._first)

    def __iter__(self) -> Iterator[Any]:
        if self.sampler is not None and self.sampler.wanted_epoch is not None:
            self.set_epoch(self.sampler.wanted_epoch)
            self.sampler.wanted_epoch = None
        ranks = self._ranks()
        if self._ignored:
            current_group().warn(self._ignored)  # here, where the ranks are known: one of them says it
            self._ignored = ""
        epoch, first = self.epoch, self._first
        looking = not is_loop(sys._getframe(1))
        if not looking:
            self._count(epoch, first)
        self._yielded = (epoch, first)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        source = self._source()
        depth = self.num_workers * self.prefetch_factor
        with closing(ahead(source.make, source.tasks(epoch, first, ranks), self.num_workers, depth)) as batches:
            for count, batch in enumerate(batches, first + 1):
                self._yielded = (epoch, count)
                try:
                    yield batch
                except GeneratorExit:
                    if looking and (self.epoch, self._first) == (epoch, first):
                        self._yielded = epoch, first
                    raise
                if looking:
                    self._count(epoch, first)
                    looking = False
        if looking:  # there was no batch
            self._count(epoch, first)
        self._yielded = (self.epoch, self._first)

    def _count(self, epoch: int, first: int) -> None:
        """Makes the epoch after this one the next, unless another loop or `set_epoch` has changed it meanwhile."""
        if (self.epoch, self._first) == (epoch, first):
            self.epoch, self._first = epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Numbers and bools. From them another loader over the same data continues after the last batch of this one,
        on any number of ranks. The first call may be a call of all ranks, which agree on a seed.

        After the last batch of an epoch, but before its loop has ended, the rest of the epoch is empty. After a
        loop that broke off it is the rest of that epoch: `set_epoch(loader.epoch)` drops it.
        """
        epoch, batches = self._yielded
        return {"epoch": epoch, "batches": batches, **self._identity(epoch, batches)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Makes the next loop the rest of the epoch of the `state_dict()` call, each sample once.

        ValueError, with nothing changed, if the state is that of a loader with another order, other batches or other
        data, as far as `Dataset.digest()` tells. Between two epochs the batch size may change. The seed is taken from
        the state, unless this loader or `manual_seed` was given another one.
        """
        self.check_state_dict(state_dict)
        if self.sampler is not None:
            if self._takes_seed() and state_dict["seed"] is not None:
                self.sampler.seed = int(state_dict["seed"])
            self.sampler.wanted_epoch = None
        self.epoch, self._first = int(state_dict["epoch"]), int(state_dict["batches"])
        if self._first and self.sampler is not None and self._at_border(state_dict):
            self._first = self._batches(self.sampler).count(self.epoch)
        self._yielded = (self.epoch, self._first)

    def check_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Raises what `load_state_dict` would raise for this state, and changes nothing."""
        state_dict = as_state("load_state_dict", state_dict, "epoch", "batches")
        epoch = as_int("load_state_dict: epoch", state_dict["epoch"], 0)
        batches = as_int("load_state_dict: batches", state_dict["batches"], 0)
        seed = state_dict.get("seed") if self._takes_seed() else None
        own = self._identity(epoch, batches, seed)
        as_state("load_state_dict", state_dict, *own.keys() - {"data"})
        different = {name for name in own if name in state_dict and state_dict[name] != own[name]}
        # Earlier versions saved no digest of the data; data of another length need no second reason.
        if "data" in different and (state_dict["data"] is None or "length" in different):
            different.discard("data")
        border = self._at_border(state_dict)
        if border:
            different -= {"batch_size", "drop_last", "order"}
        if different:
            changes = ", ".join(f"{n} is {own[n]!r} and was {state_dict[n]!r}" for n in own if n in different)
            if "batch_size" in different and self._per_rank:
                changes += f" (on another number of ranks, give batch_size={state_dict['batch_size']})"
            elif "batch_size" in different:
                changes += " (it may change between two epochs only)"
            if "order" in different and "seed" not in different:
                changes += (
                    " (an order that goes on follows from set_epoch, or is drawn by sx.randperm without a generator)"
                )
            if "data" in different:
                changes += " (a digest of some samples; to go on with other data, start an epoch of it with set_epoch)"
            raise ValueError(f"load_state_dict: this loader is not like the one whose state was saved: {changes}")
        most = None if self.sampler is None or border else self._batches(self.sampler).count(epoch)
        if most is not None and batches > most:
            raise ValueError(f"load_state_dict: batches must be at most {most}, got {batches}")

    def _at_border(self, state_dict: Mapping[str, Any]) -> bool:
        """Whether a state was saved between two epochs, so that the batch size may change. Never if the batch size
        follows from the number of ranks, which must not change the steps."""
        if self._per_rank:
            return False
        if state_dict["batches"] == 0 or self.sampler is None:
            return bool(state_dict["batches"] == 0)
        if self.sampler.in_batches:
            return bool(state_dict["batches"] == self.sampler.batches(state_dict["epoch"]))
        size = as_int("load_state_dict: batch_size", state_dict["batch_size"], 1)
        full, rest = divmod(self.sampler.count(state_dict["epoch"]), size)
        return bool(state_dict["batches"] == full + (rest > 0 and not state_dict["drop_last"]))

    def _takes_seed(self) -> bool:
        """Whether the seed of a saved state replaces that of this loader: if the user has not chosen one."""
        return self.sampler is not None and self.sampler.seed is None and not rng.seed().chosen

    def _identity(self, epoch: int, batches: int, seed: int | None = None) -> dict[str, Any]:
        """The numbers that determine the order and the batches of an epoch, with another seed if it is given."""
        self._ranks()  # the ranks agree on a seed
        order = copy.copy(self.sampler)
        if order is not None and seed is not None:
            order.seed = as_int("load_state_dict: seed", seed, 0)
        shuffle = order is not None and order.shuffle
        return {
            "seed": order.seed_in_force() if order is not None and shuffle else None,
            "length": None if order is None else order.length,
            **({} if order is None else order.identity(epoch, batches > 0)),
            "batch_size": self.batch_size,
            "shuffle": shuffle,
            "drop_last": self.drop_last,
            "data": dataset_digest(self.dataset) if self.shard else None,  # unsharded data may differ between ranks
        }

    def _ranks(self) -> Ranks:
        return ranks() if self.shard else (0, 1, None)

    def _source(self) -> Indexed | Streamed:
        if self.sampler is None:
            return Streamed(self.dataset, self._collator, self.batch_size, self.drop_last)
        return Indexed(self.dataset, self._collator, self._batches(self.sampler))


def _ignored(options: Mapping[str, Any]) -> str:
    """The warning of options without effect, an empty text if none is given; TypeError for an unknown one."""
    unknown = sorted(options.keys() - _WITHOUT_EFFECT)
    if unknown:
        raise TypeError(f"DataLoader got an unexpected keyword argument {unknown[0]!r}")
    given = ", ".join(sorted(name for name, value in options.items() if value))
    return f"DataLoader: {given} has no effect: workers are threads, and data stay in the CPU's memory" if given else ""


def _order(dataset: Any, sampler: Any, shuffle: bool, seed: int | None) -> Sampler | None:
    """The order of the samples of a data set, None for a stream."""
    if (hasattr(dataset, "columns") and hasattr(dataset, "to_numpy")) or type(dataset).__module__.startswith("pyarrow"):
        raise TypeError(
            f"dataset is a {type(dataset).__name__}, a table of columns: give Dataset(*read_table(dataset, "
            "target='...')), from sorix_dist.utils.data"
        )
    columns = isinstance(dataset, dict) and dataset and 0 not in dataset
    if columns or isinstance(dataset, str | bytes) or getattr(dataset, "shape", None) == ():
        raise TypeError(
            f"dataset must hold samples, got {described(dataset)}: an array, a Dataset, or for a table or a file "
            "Dataset(*read_table(...)), from sorix_dist.utils.data"
        )
    indexed = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if isinstance(dataset, IterableDataset) or (not indexed and hasattr(dataset, "__iter__")):
        if shuffle or sampler is not None:
            what = "sampler" if sampler is not None else "shuffle=True"
            raise ValueError(
                f"{what} needs a data set with __len__ and __getitem__, got {type(dataset).__name__}, a stream, "
                "which can only give its samples in another order itself"
            )
        return None
    for method in ("__len__", "__getitem__"):
        if not hasattr(dataset, method):
            raise TypeError(f"dataset must have {method}, or __iter__ alone, got {described(dataset)}")
    if sampler is None:
        return Sampler(len(dataset), shuffle, seed)
    order = as_sampler("sampler", sampler, len(dataset))
    if shuffle or seed is not None:
        raise ValueError("sampler excludes shuffle and seed, got both")
    if order.length != len(dataset):
        raise ValueError(f"sampler must be of the data set's length {len(dataset)}, got {order.length}")
    return order
