"""Learning rates that change with the epoch (or with the step: whatever `step()` is called after)."""

from sorix_dist.optim.lr_scheduler.base import LRScheduler
from sorix_dist.optim.lr_scheduler.formulas import (
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    StepLR,
)
from sorix_dist.optim.lr_scheduler.one_cycle import OneCycleLR
from sorix_dist.optim.lr_scheduler.plateau import ReduceLROnPlateau
from sorix_dist.optim.lr_scheduler.sequential import SequentialLR

__all__ = [
    "ConstantLR",
    "CosineAnnealingLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
]
