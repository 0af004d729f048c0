"""Updates of parameters."""

from sorix_dist.optim.optimizer import Optimizer
from sorix_dist.optim.sgd import SGD

__all__ = ["SGD", "Optimizer"]
