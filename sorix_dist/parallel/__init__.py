"""The joint between tensors and ranks: data-parallel training."""

from sorix_dist.parallel import comm_hooks
from sorix_dist.parallel.collectives import (
    all_gather,
    all_reduce,
    barrier,
    broadcast,
    global_rows,
    global_value,
    replicated,
)
from sorix_dist.parallel.data_parallel import DistributedDataParallel, assert_replicas_equal
from sorix_dist.parallel.host_shared import host_shared
from sorix_dist.parallel.local_sgd import DiLoCo, LocalSGD
from sorix_dist.parallel.world import init, is_main_process, local_rank, rank, size
from sorix_dist.parallel.world import world as world

__all__ = [
    "DiLoCo", "DistributedDataParallel", "LocalSGD", "assert_replicas_equal", "all_gather", "all_reduce", "barrier",
    "broadcast", "comm_hooks", "global_rows", "global_value", "host_shared", "init", "is_main_process", "local_rank",
    "rank", "replicated", "size",
]  # fmt: skip
