"""Data sets, samplers and loaders of global batches."""

from sorix_dist.core.keywords import missing_from
from sorix_dist.utils.data.augment import SampleRandom, normalize, one_hot
from sorix_dist.utils.data.dataset import (
    ConcatDataset,
    Dataset,
    IterableDataset,
    StackDataset,
    Subset,
    TensorDataset,
    random_split,
)
from sorix_dist.utils.data.distributed import DistributedSampler
from sorix_dist.utils.data.iterated import RandomSampler, SequentialSampler, SubsetRandomSampler
from sorix_dist.utils.data.loader import DataLoader
from sorix_dist.utils.data.nested import collate as default_collate
from sorix_dist.utils.data.sampler import (
    BatchSampler,
    LengthBucketSampler,
    Sampler,
    WeightedRandomSampler,
    shard_bounds,
)
from sorix_dist.utils.data.tables import LabelEncoder, read_table

__all__ = [
    # data sets
    "ConcatDataset", "Dataset", "IterableDataset", "LabelEncoder", "StackDataset", "Subset", "TensorDataset",
    "random_split", "read_table",
    # orders
    "BatchSampler", "DistributedSampler", "LengthBucketSampler", "RandomSampler", "Sampler", "SequentialSampler",
    "SubsetRandomSampler", "WeightedRandomSampler", "shard_bounds",
    # batches
    "DataLoader", "SampleRandom", "default_collate", "normalize", "one_hot",
]  # fmt: skip

__getattr__ = missing_from(__name__, globals())
