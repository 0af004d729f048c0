"""Tensors and arrays in nested tuples, lists and dicts, as batches are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from sorix_dist.core import Tensor


def map_arrays(value: Any, function: Callable[[Any], Any]) -> Any:
    """`value` with `function` of every tensor and array in it; anything else in it stays."""
    if isinstance(value, Tensor | np.ndarray):
        return function(value)
    if isinstance(value, tuple | list):
        entries = [map_arrays(entry, function) for entry in value]
        return value._make(entries) if hasattr(value, "_make") else type(value)(entries)
    if isinstance(value, dict):
        return {key: map_arrays(entry, function) for key, entry in value.items()}
    return value


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """`value` with `function` of every tensor in it."""
    return map_arrays(value, lambda x: function(x) if isinstance(x, Tensor) else x)


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in `value`."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | dict):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from tensors(entry)
