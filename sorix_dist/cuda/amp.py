"""PyTorch's older path of mixed precision."""

from sorix_dist.amp import GradScaler, autocast

__all__ = ["GradScaler", "autocast"]
