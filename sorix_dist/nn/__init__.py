"""Layers, losses and what they are built of."""

from sorix_dist.nn import functional, init
from sorix_dist.nn.containers import ModuleList, Sequential
from sorix_dist.nn.layers import Linear, ReLU
from sorix_dist.nn.loss import CrossEntropyLoss
from sorix_dist.nn.module import Module, Parameter

__all__ = [
    "CrossEntropyLoss",
    "Linear",
    "Module",
    "ModuleList",
    "Parameter",
    "ReLU",
    "Sequential",
    "functional",
    "init",
]
