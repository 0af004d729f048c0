"""Optimizers and learning rate schedulers."""

from sorix_dist.optim import lr_scheduler
from sorix_dist.optim.optim import SGD, Adam, AdamW, RMSprop, SGDMomentum
from sorix_dist.optim.optimizer import Optimizer

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "RMSprop", "SGDMomentum", "lr_scheduler"]
