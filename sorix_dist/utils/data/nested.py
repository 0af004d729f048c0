"""Batches are nested: tensors in tuples, lists, dicts, dataclasses and plain objects."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import is_dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.tensor import Array, as_array


def _fields(value: Any) -> dict[str, Any] | None:
    """The attributes of a dataclass or another plain object with values; None for anything else."""
    if isinstance(value, type):
        return None
    plain = is_dataclass(value) or isinstance(value, SimpleNamespace)
    if plain or (type(value).__module__ not in _LIBRARIES and hasattr(value, "__dict__") and not callable(value)):
        fields = getattr(value, "__dict__", None)
        if fields is None:  # a dataclass with slots
            fields = {name: getattr(value, name) for name in value.__dataclass_fields__}
        return dict(fields)
    return None


_LIBRARIES = {"builtins", "numpy", "random", "io", "pathlib"}


def map_arrays(value: Any, function: Callable[[Any], Any]) -> Any:
    """A copy of `value` with `function` applied to every tensor and array in it. Everything else stays."""
    if isinstance(value, Tensor | np.ndarray):
        return function(value)
    if isinstance(value, tuple | list):
        items = [map_arrays(entry, function) for entry in value]
        return value._make(items) if hasattr(value, "_make") else type(value)(items)
    if isinstance(value, dict):
        return {key: map_arrays(entry, function) for key, entry in value.items()}
    fields = _fields(value)
    if not fields:
        return value
    changed = {name: map_arrays(entry, function) for name, entry in fields.items()}
    if all(changed[name] is entry for name, entry in fields.items()):
        return value
    made = copy.copy(value)
    for name, entry in changed.items():
        object.__setattr__(made, name, entry)
    return made


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A copy of `value` with `function` applied to every tensor in it."""
    return map_arrays(value, lambda x: function(x) if isinstance(x, Tensor) else x)


def entries(value: Any) -> Iterator[Any]:
    """The tensors and arrays in `value`."""
    if isinstance(value, Tensor | np.ndarray):
        yield value
    elif isinstance(value, tuple | list | dict):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from entries(entry)
    elif fields := _fields(value):
        for entry in fields.values():
            yield from entries(entry)


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in `value`."""
    return (entry for entry in entries(value) if isinstance(entry, Tensor))


def collate(samples: list[Any]) -> Any:
    """Stacks samples (arrays, numbers, tensors, or tuples and dicts of them) along a new first axis."""
    first = samples[0]
    if isinstance(first, tuple | list):
        return tuple(collate(list(column)) for column in zip(*samples, strict=True))
    if isinstance(first, dict):
        return {key: collate([sample[key] for sample in samples]) for key in first}
    if isinstance(first, Tensor):
        return Tensor(stacked([sample.array for sample in samples]))
    if isinstance(first, str):
        return samples
    if isinstance(first, np.ndarray | np.generic):
        return Tensor(stacked(samples))
    return Tensor(as_array(samples))


def stacked(arrays: Sequence[Any]) -> Array:
    """The arrays along a new first axis; ValueError if their shapes differ."""
    shape = np.shape(arrays[0])
    for number, array in enumerate(arrays):
        if np.shape(array) != shape:
            raise ValueError(
                f"samples of one batch must have the same shape to be stacked, got {shape} and {np.shape(array)} "
                f"(number {number} of the batch): a collate_fn can pad them"
            )
    return np.stack(arrays)
