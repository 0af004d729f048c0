"""DataLoader: this rank's rows of the global batches of a data set, as tensors that know which rows they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.tensor import Rows
from sorix_dist.utils.data.dataset import Dataset, collate
from sorix_dist.utils.data.sampler import DistributedSampler


def _alone() -> tuple[int, int, int | None]:
    return 0, 1, None


# Rank and size of the processes that share the batches, and the pieces that they cut them into (see `share`);
# `parallel` puts its own function here.
world: Callable[[], tuple[int, int, int | None]] = _alone


class DataLoader:
    """Batches of a data set, over and over: each `for` loop over it is the next epoch.

    dataset: a Dataset, or anything with `__len__` and `__getitem__`; batch_size: rows of a global batch,
    which the ranks share; shuffle: a new order every epoch, the same on every rank; collate_fn: makes a batch
    of a list of samples; drop_last: leaves out a smaller last batch; shard: False gives every rank all rows.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 16,
        shuffle: bool = False,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        *,
        drop_last: bool = False,
        shard: bool = True,
        seed: int | None = None,
    ) -> None:
        for method in ("__len__", "__getitem__"):
            if not hasattr(dataset, method):
                raise TypeError(f"dataset must have {method}, got {type(dataset).__name__}")
        self.dataset = dataset
        self.collate_fn = collate_fn
        self.shard = shard
        self.sampler = DistributedSampler(len(dataset), batch_size, shuffle, seed, drop_last)
        self.epoch = 0

    @property
    def batch_size(self) -> int:
        """The number of rows of a global batch."""
        return self.sampler.batch_size

    def __len__(self) -> int:
        """The number of batches of an epoch, the same on every rank."""
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Makes the next loop over this loader the epoch `epoch`; it advances by itself otherwise."""
        if isinstance(epoch, bool) or not isinstance(epoch, int | np.integer) or epoch < 0:
            raise ValueError(f"set_epoch: epoch must be an integer >= 0, got {epoch!r}")
        self.epoch = int(epoch)

    def __iter__(self) -> Iterator[Any]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        rank, size, pieces = world() if self.shard else _alone()
        for rows, indices in self.sampler.batches(epoch, rank, size, pieces):
            yield self._tagged(self._fetch(indices), rows)

    def _fetch(self, indices: np.ndarray[Any, Any]) -> Any:
        plain = type(self.dataset).__getitem__ is Dataset.__getitem__
        if plain and self.collate_fn is None:
            batch = tuple(Tensor(values) for values in self.dataset.fetch(indices))
            return batch if len(batch) > 1 else batch[0]
        make = self.collate_fn or collate
        if len(indices):
            return make([self.dataset[int(i)] for i in indices])
        # No rows on this rank: the form of a batch of one, without the row.
        return _map(make([self.dataset[0]]), lambda array: array[:0] if array.ndim else array)

    def _tagged(self, batch: Any, rows: Rows) -> Any:
        # What a user's own function makes of some samples may have any number of rows.
        if not self.shard or self.collate_fn is not None:
            return batch

        def tag(tensor: Tensor) -> Tensor:
            tensor.rows = rows
            return tensor

        return map_tensors(batch, tag)


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """`function` of every tensor in nested tuples, lists and dicts."""
    return _map(value, lambda x: function(x) if isinstance(x, Tensor) else x)


def _map(value: Any, function: Callable[[Any], Any]) -> Any:
    """`function` of every tensor and array in nested tuples, lists and dicts."""
    if isinstance(value, Tensor | np.ndarray):
        return function(value)
    if isinstance(value, tuple | list):
        entries = [_map(v, function) for v in value]
        return value._make(entries) if hasattr(value, "_make") else type(value)(entries)
    if isinstance(value, dict):
        return {key: _map(v, function) for key, v in value.items()}
    return value
