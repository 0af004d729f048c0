"""PyTorch's mixed precision: accepted, and without effect. Arithmetic stays in the dtype of the model."""

from __future__ import annotations

from contextlib import ContextDecorator
from typing import Any

from sorix_dist.core.keywords import missing_from
from sorix_dist.core.placement import current_group


class autocast(ContextDecorator):  # noqa: N801 (PyTorch's name)
    """A context, or a decorator, that changes nothing, which it says once unless it is not `enabled`."""

    def __init__(
        self, device_type: Any = "cuda", dtype: Any = None, enabled: bool = True, cache_enabled: Any = None
    ) -> None:
        if enabled:
            current_group().warn(
                "autocast: arithmetic stays in the dtype of the model, as there is no mixed precision on CPUs here"
            )

    def __enter__(self) -> autocast:
        return self

    def __exit__(self, *exception: object) -> None:
        return None


class GradScaler:
    """PyTorch's scaler as it is without a GPU: it scales by 1, and `step` is that of the optimizer."""

    def __init__(self, *options: Any, **named: Any) -> None:
        pass

    def scale(self, outputs: Any) -> Any:
        """The loss itself."""
        return outputs

    def unscale_(self, optimizer: Any) -> None:
        """Nothing: gradients are not scaled."""

    def step(self, optimizer: Any, *arguments: Any, **options: Any) -> Any:
        """`optimizer.step()`."""
        return optimizer.step(*arguments, **options)

    def update(self, new_scale: Any = None) -> None:
        """Nothing: the scale stays 1."""

    def get_scale(self) -> float:
        """1.0."""
        return 1.0

    def is_enabled(self) -> bool:
        """False."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Nothing to save."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load."""


__getattr__ = missing_from(__name__, globals())
