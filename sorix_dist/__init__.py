"""sorix_dist: data-parallel training on NumPy and MPI. The same script takes the same steps on one process
and on any number of MPI ranks."""

import sys as _sys
from math import e, inf, nan, pi  # noqa: F401

# `python -m sorix_dist` is a command, which must not run a json.py or numpy.py of the current folder.
if _sys.argv[:1] == ["-m"] and not _sys.flags.safe_path and "-m sorix_dist " in " ".join([*_sys.orig_argv, ""]):
    del _sys.path[0]

# First of all: where several ranks were started, it has them watched, and caps their BLAS before NumPy is loaded.
from sorix_dist import comm

# isort: split
# Before the functions below, because one of these modules has the name of a function: sx.tensor makes tensors.
from sorix_dist import amp, autograd, backends, core, cuda, distributed, linalg, metrics, nn, optim, utils
from sorix_dist import parallel as _ranks
from sorix_dist import tensor as _tensor_module  # noqa: F401
from sorix_dist._version import __version__
from sorix_dist.amp import GradScaler, autocast  # noqa: F401 (PyTorch's paths of them are amp and autocast)
from sorix_dist.core import Size, Tensor, enable_grad, grad, inference_mode, is_grad_enabled, no_grad, set_grad_enabled
from sorix_dist.core import compositions as _compositions
from sorix_dist.core import dtype as _dtype
from sorix_dist.core import functions as _functions
from sorix_dist.core.arguments import device
from sorix_dist.core.compositions import *  # noqa: F403
from sorix_dist.core.dtype import *  # noqa: F403
from sorix_dist.core.functions import *  # noqa: F403
from sorix_dist.core.keywords import MissingModules, missing_from
from sorix_dist.core.random import Generator, manual_seed
from sorix_dist.launch.spawn import Pool, run
from sorix_dist.nn.summary import summary
from sorix_dist.parallel import *  # noqa: F403
from sorix_dist.serialize import load, save, to_torch_state
from sorix_dist.train.checkpoint import Checkpointer
from sorix_dist.train.compile import compile
from sorix_dist.train.loops import evaluate, fit, predict
from sorix_dist.train.profile import profile
from sorix_dist.train.progress import get_logger, main_process_only, print, progress
from sorix_dist.train.recorder import Recorder
from sorix_dist.train.stopping import EarlyStopping, Preemption
from sorix_dist.watchdog.launcher import EXIT_PREEMPTED

newaxis = channels_last = contiguous_format = preserve_format = None
accelerator = cuda

__all__ = [
    "__version__",
    # modules
    "amp", "autograd", "backends", "comm", "core", "cuda", "distributed", "linalg", "metrics", "nn", "optim", "utils",
    # ranks
    *_ranks.__all__, "Pool", "print", "run",
    # training
    "Checkpointer", "EXIT_PREEMPTED", "EarlyStopping", "Preemption", "Recorder", "compile", "evaluate", "fit",
    "get_logger", "main_process_only", "predict", "profile", "progress", "summary",
    # tensors
    *_dtype.__all__, "Generator", "Size", "Tensor", "device", "enable_grad", "grad", "inference_mode",
    "is_grad_enabled", "load", "manual_seed", "no_grad", "save", "set_grad_enabled", "to_torch_state",
    *_functions.__all__, *_compositions.__all__,
]  # fmt: skip

__getattr__ = missing_from(__name__, globals())
_sys.meta_path.append(MissingModules)
