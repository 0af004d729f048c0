"""The names of the package for type checkers, which do not see names that the package lists by computing."""

# ruff: noqa: F403

from math import e as e
from math import inf as inf
from math import nan as nan
from math import pi as pi

from sorix_dist import amp as amp
from sorix_dist import autograd as autograd
from sorix_dist import backends as backends
from sorix_dist import comm as comm
from sorix_dist import core as core
from sorix_dist import cuda as cuda
from sorix_dist import distributed as distributed
from sorix_dist import linalg as linalg
from sorix_dist import metrics as metrics
from sorix_dist import nn as nn
from sorix_dist import optim as optim
from sorix_dist import utils as utils
from sorix_dist._version import __version__ as __version__
from sorix_dist.core import Size as Size
from sorix_dist.core import Tensor as Tensor
from sorix_dist.core import enable_grad as enable_grad
from sorix_dist.core import grad as grad
from sorix_dist.core import inference_mode as inference_mode
from sorix_dist.core import is_grad_enabled as is_grad_enabled
from sorix_dist.core import no_grad as no_grad
from sorix_dist.core import set_grad_enabled as set_grad_enabled
from sorix_dist.core.algebra import *
from sorix_dist.core.arguments import device as device
from sorix_dist.core.arrange import *
from sorix_dist.core.create import *
from sorix_dist.core.create import tensor as tensor
from sorix_dist.core.dtype import *
from sorix_dist.core.functions import *
from sorix_dist.core.random import Generator as Generator
from sorix_dist.core.random import manual_seed as manual_seed
from sorix_dist.core.statistics import *
from sorix_dist.launch.spawn import Pool as Pool
from sorix_dist.launch.spawn import run as run
from sorix_dist.nn.summary import summary as summary
from sorix_dist.parallel import *
from sorix_dist.serialize import load as load
from sorix_dist.serialize import save as save
from sorix_dist.serialize import to_torch_state as to_torch_state
from sorix_dist.train.checkpoint import Checkpointer as Checkpointer
from sorix_dist.train.compile import compile as compile
from sorix_dist.train.loops import evaluate as evaluate
from sorix_dist.train.loops import fit as fit
from sorix_dist.train.loops import predict as predict
from sorix_dist.train.profile import profile as profile
from sorix_dist.train.progress import get_logger as get_logger
from sorix_dist.train.progress import main_process_only as main_process_only
from sorix_dist.train.progress import print as print
from sorix_dist.train.progress import progress as progress
from sorix_dist.train.recorder import Recorder as Recorder
from sorix_dist.train.stopping import EarlyStopping as EarlyStopping
from sorix_dist.train.stopping import Preemption as Preemption
from sorix_dist.watchdog.launcher import EXIT_PREEMPTED as EXIT_PREEMPTED

newaxis = None
channels_last = None
contiguous_format = None
preserve_format = None
accelerator = cuda
