"""Gradients by request, and whether operations are recorded."""

from sorix_dist.core.autograd import backward
from sorix_dist.core.gradients import Function, grad
from sorix_dist.core.graph import enable_grad, inference_mode, is_grad_enabled, no_grad, set_grad_enabled
from sorix_dist.core.keywords import missing_from

__all__ = [
    "Function", "backward", "enable_grad", "grad", "inference_mode", "is_grad_enabled", "no_grad", "set_grad_enabled",
]  # fmt: skip

__getattr__ = missing_from(__name__, globals())
