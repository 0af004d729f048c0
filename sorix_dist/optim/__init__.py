"""Optimizers and learning rate schedulers."""

from sorix_dist.core.keywords import missing_from
from sorix_dist.optim import lr_scheduler, swa_utils
from sorix_dist.optim.adam import Adam, Adamax, AdamW, NAdam, RAdam
from sorix_dist.optim.optim import Adadelta, Adagrad, RMSprop, Rprop, SGDMomentum
from sorix_dist.optim.optimizer import Optimizer
from sorix_dist.optim.sgd import SGD

__all__ = [
    "SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "Optimizer", "RAdam", "RMSprop", "Rprop",
    "SGDMomentum", "lr_scheduler", "swa_utils",
]  # fmt: skip

__getattr__ = missing_from(__name__, globals())
