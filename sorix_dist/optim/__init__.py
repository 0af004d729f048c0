"""Optimizers and learning rate schedulers."""

from sorix_dist.core.keywords import missing_from
from sorix_dist.optim import lr_scheduler, swa_utils
from sorix_dist.optim.adaptive import Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop
from sorix_dist.optim.optim import SGD, SGDMomentum
from sorix_dist.optim.optimizer import Optimizer

__all__ = [
    "SGD", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "Optimizer", "RAdam", "RMSprop", "SGDMomentum",
    "lr_scheduler", "swa_utils",
]  # fmt: skip

__getattr__ = missing_from(__name__, globals())
