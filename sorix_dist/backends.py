"""PyTorch's switches of GPU libraries, such as `backends.cudnn.benchmark = True`: accepted, and without effect."""

import sys
from types import ModuleType
from typing import Any


class _Switches(ModuleType):
    matmul: Any  # of cuda
    enabled = benchmark = deterministic = allow_tf32 = False

    def is_available(self) -> bool:
        """False: tensors are on the CPU."""
        return False

    is_built = is_available


cuda, cudnn, mps = (_Switches(f"{__name__}.{name}") for name in ("cuda", "cudnn", "mps"))
cuda.matmul = _Switches("matmul")
sys.modules.update({module.__name__: module for module in (cuda, cudnn, mps)})
