"""Gradients by request, and whether operations are recorded."""

from sorix_dist.core.autograd import backward, enable_grad, grad, is_grad_enabled, no_grad, set_grad_enabled

__all__ = ["backward", "enable_grad", "grad", "is_grad_enabled", "no_grad", "set_grad_enabled"]
