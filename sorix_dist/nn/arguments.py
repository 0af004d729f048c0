"""What layers take alike: where and of which dtype their parameters are, and numbers from 1."""

from __future__ import annotations

from typing import Any

import numpy as np

from sorix_dist.core.device import raise_for_device
from sorix_dist.core.dtype import or_float32


def parameter_dtype(device: Any, dtype: Any) -> np.dtype[Any]:
    """The dtype that a layer's parameters get, float32 for None; raises for any device but "cpu"."""
    raise_for_device(device)
    return or_float32(dtype)


def at_least_one(layer: str, **numbers: Any) -> None:
    """ValueError, which names the argument of the layer, unless all are integers >= 1."""
    for argument, value in numbers.items():
        if not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{layer}: {argument} must be an integer >= 1, got {value!r}")
