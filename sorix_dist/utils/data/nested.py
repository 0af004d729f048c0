"""Batches are nested: tensors in tuples, lists, dicts, dataclasses and plain objects."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import is_dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.tensor import Array, as_array, shape_of


def _fields(value: Any) -> dict[str, Any] | None:
    """The attributes of a dataclass or another plain object with values; None for anything else."""
    if isinstance(value, type):
        return None
    plain = is_dataclass(value) or isinstance(value, SimpleNamespace)
    if plain or (type(value).__module__ not in _LIBRARIES and not callable(value)):
        slots = (vars(base).get("__slots__", ()) for base in type(value).__mro__)
        names = [name for each in slots for name in ((each,) if isinstance(each, str) else each)]
        found = {name: getattr(value, name) for name in names if name[:2] != "__" and hasattr(value, name)}
        return getattr(value, "__dict__", {}) | found
    return None


_LIBRARIES = {"builtins", "numpy", "random", "io", "pathlib"}


def map_arrays(value: Any, function: Callable[[Any], Any]) -> Any:
    """A copy of `value` with `function` applied to every tensor and array in it. Everything else stays."""
    if isinstance(value, Tensor | np.ndarray):
        return function(value)
    if isinstance(value, tuple | list | deque):
        return like(value, [map_arrays(entry, function) for entry in value])
    if isinstance(value, dict):
        return like_dict(value, {key: map_arrays(entry, function) for key, entry in value.items()})
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


def like(value: Any, items: Iterable[Any]) -> Any:
    """A sequence of the same type with other items."""
    return value._make(items) if hasattr(value, "_make") else type(value)(items)


def like_dict(value: dict[Any, Any], items: dict[Any, Any]) -> dict[Any, Any]:
    """A dict of the same type with other items."""
    if type(value) is dict:
        return items
    made = copy.copy(value)
    for key, item in items.items():
        made[key] = item
    return made


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A copy of `value` with `function` applied to every tensor in it."""
    return map_arrays(value, lambda x: function(x) if isinstance(x, Tensor) else x)


def entries(value: Any) -> Iterator[Any]:
    """The tensors and arrays in `value`."""
    if isinstance(value, Tensor | np.ndarray):
        yield value
    elif isinstance(value, tuple | list | deque | dict):
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
        columns = [collate(list(column)) for column in zip(*samples, strict=True)]
        return like(first, columns) if hasattr(first, "_make") else tuple(columns)
    if isinstance(first, dict):
        return like_dict(first, {key: collate([sample[key] for sample in samples]) for key in first})
    if isinstance(first, Tensor):
        return Tensor(stacked([sample.array for sample in samples]))
    if isinstance(first, str):
        return samples
    if isinstance(first, np.ndarray | np.generic):
        return Tensor(stacked(samples))
    return Tensor(as_array(samples))


def stacked(arrays: Sequence[Any]) -> Array:
    """The arrays along a new first axis; ValueError if their shapes differ."""
    shape = shape_of(arrays[0])
    for number, array in enumerate(arrays):
        if shape_of(array) != shape:
            raise ValueError(
                f"samples of one batch must have the same shape to be stacked, got {shape} and {shape_of(array)} "
                f"(number {number} of the batch): a collate_fn can pad them"
            )
    return np.stack(arrays)
