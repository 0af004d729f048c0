"""Updates of parameters."""

from sorix_dist.optim import lr_scheduler
from sorix_dist.optim.adam import Adam, AdamW
from sorix_dist.optim.optimizer import Optimizer
from sorix_dist.optim.rmsprop import RMSprop
from sorix_dist.optim.sgd import SGD, SGDMomentum

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "RMSprop", "SGDMomentum", "lr_scheduler"]
