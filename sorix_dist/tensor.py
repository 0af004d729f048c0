"""The tensor and what belongs to it, under the path that sorix has for them."""

from sorix_dist.core.arguments import device as Device
from sorix_dist.core.dtype import DType, bool_, float16, float32, float64, int16, int32, int64, uint8
from sorix_dist.core.functions import tensor
from sorix_dist.core.graph import is_grad_enabled, no_grad, set_grad_enabled
from sorix_dist.core.tensor import Size, Tensor

__all__ = [
    "DType", "Device", "Size", "Tensor", "bool_", "float16", "float32", "float64", "int16", "int32", "int64",
    "is_grad_enabled", "no_grad", "set_grad_enabled", "tensor", "uint8",
]  # fmt: skip
