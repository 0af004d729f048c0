"""Module and the modules that hold others, under the name that sorix has for their place."""

from sorix_dist.nn.containers import ModuleList, Sequential
from sorix_dist.nn.module import Module

__all__ = ["Module", "ModuleList", "Sequential"]
