"""Data sets, samplers and loaders of global batches."""

from sorix_dist.utils.data.dataset import Dataset, IterableDataset
from sorix_dist.utils.data.distributed import DistributedSampler
from sorix_dist.utils.data.loader import DataLoader
from sorix_dist.utils.data.sampler import BatchSampler, Sampler, WeightedRandomSampler, shard_bounds

__all__ = [
    "BatchSampler",
    "DataLoader",
    "Dataset",
    "DistributedSampler",
    "IterableDataset",
    "Sampler",
    "WeightedRandomSampler",
    "shard_bounds",
]
