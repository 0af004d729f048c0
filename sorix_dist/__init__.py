"""sorix_dist: data-parallel training on NumPy and MPI. The same script takes the same steps on one process
and on any number of MPI ranks."""

from sorix_dist import comm, core, nn, optim, utils
from sorix_dist._version import __version__
from sorix_dist.core import (
    Size,
    Tensor,
    enable_grad,
    grad,
    is_grad_enabled,
    no_grad,
    set_grad_enabled,
)
from sorix_dist.core.dtype import float16, float32, float64, int16, int32, int64, uint8
from sorix_dist.core.random import manual_seed
from sorix_dist.core.tensor import Tensor as tensor
from sorix_dist.parallel import (
    DistributedDataParallel,
    all_gather,
    all_reduce,
    barrier,
    broadcast,
    init,
    is_main_process,
    local_rank,
    rank,
    size,
)
from sorix_dist.serialize import load, save

__all__ = [
    "DistributedDataParallel",
    "Size",
    "Tensor",
    "__version__",
    "all_gather",
    "all_reduce",
    "barrier",
    "broadcast",
    "comm",
    "core",
    "enable_grad",
    "float16",
    "float32",
    "float64",
    "grad",
    "init",
    "int16",
    "int32",
    "int64",
    "is_grad_enabled",
    "is_main_process",
    "load",
    "local_rank",
    "manual_seed",
    "nn",
    "no_grad",
    "optim",
    "rank",
    "save",
    "set_grad_enabled",
    "size",
    "tensor",
    "uint8",
    "utils",
]
