"""Arrays that remember: tensors, operations and the walk that differentiates them. NumPy only."""

from sorix_dist.core import compositions, memory, methods, numpy_functions
from sorix_dist.core.create import as_tensor
from sorix_dist.core.gradients import grad
from sorix_dist.core.graph import enable_grad, inference_mode, is_grad_enabled, no_grad, set_grad_enabled
from sorix_dist.core.tensor import Size, Tensor

memory.keep_freed_pages()

__all__ = [
    "Size", "Tensor", "as_tensor", "compositions", "enable_grad", "grad", "inference_mode", "is_grad_enabled",
    "memory", "methods", "no_grad", "numpy_functions", "set_grad_enabled",
]  # fmt: skip
