"""DistributedSampler, by PyTorch's name and arguments."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from sorix_dist.core.arguments import as_int
from sorix_dist.utils.data import loader
from sorix_dist.utils.data.dataset import length_of
from sorix_dist.utils.data.sampler import Sampler


class DistributedSampler(Sampler):
    """The order of a data set's samples, for a DataLoader (`sampler=`) or to iterate over by itself.

    Given to a DataLoader it is the order of the global batches: `DataLoader(data, batch_size=64, shuffle=True)` does
    the same. Iterated by itself it gives this rank's indices: every `num_replicas`-th of the order, from the
    `rank`-th on. Unlike PyTorch's it pads and repeats nothing, so ranks may differ by one sample.

    dataset: anything with a length; num_replicas, rank: None for those of the job; seed: None for the seed that
    all ranks share. Each loop is the next epoch, also without `set_epoch`. `drop_last` belongs to the DataLoader.
    """

    def __init__(
        self,
        dataset: Any,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = True,
        seed: int | None = None,
        drop_last: bool = False,
    ) -> None:
        if drop_last:
            warnings.warn(
                "DistributedSampler: drop_last has no effect here, where ranks need not have equally many samples; "
                "DataLoader(drop_last=True) leaves out a smaller last batch",
                RuntimeWarning,
                stacklevel=2,
            )
        super().__init__(length_of("DistributedSampler", dataset), shuffle, seed)
        if (num_replicas is None) != (rank is None):
            raise ValueError(f"num_replicas and rank go together, got {num_replicas!r} and {rank!r}")
        if num_replicas is not None and as_int("rank", rank, 0) >= as_int("num_replicas", num_replicas, 1):
            raise ValueError(f"rank must be less than num_replicas, got rank {rank} of {num_replicas}")
        self._given = (rank, num_replicas)
        self._epoch = 0

    def _place(self) -> tuple[int, int]:
        rank, size = self._given
        return loader.ranks()[:2] if rank is None or size is None else (rank, size)

    def __len__(self) -> int:
        """The number of samples that this rank takes in an epoch."""
        rank, size = self._place()
        return len(range(rank, self.count(self._epoch if self.wanted_epoch is None else self.wanted_epoch), size))

    def __iter__(self) -> Iterator[int]:
        rank, size = self._place()
        epoch = self._epoch if self.wanted_epoch is None else self.wanted_epoch
        self._epoch, self.wanted_epoch = epoch + 1, None
        return iter(self.checked_order(epoch)[rank::size].tolist())
