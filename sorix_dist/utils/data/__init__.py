"""Data sets, samplers and loaders of global batches."""

from sorix_dist.utils.data.dataset import Dataset
from sorix_dist.utils.data.loader import DataLoader
from sorix_dist.utils.data.sampler import DistributedSampler, share

__all__ = ["DataLoader", "Dataset", "DistributedSampler", "share"]
