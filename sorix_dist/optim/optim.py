"""The optimizers under sorix's module path."""

from sorix_dist.optim import SGD, Adam, AdamW, Optimizer, RMSprop, SGDMomentum, lr_scheduler

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "RMSprop", "SGDMomentum", "lr_scheduler"]
