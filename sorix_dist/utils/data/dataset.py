"""Data sets: samples by index."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.tensor import as_array


class Dataset:
    """Samples X and, if given, their targets y, each an array with one entry per sample.

    transform, target_transform: functions of one sample and of one target, applied when it is fetched.
    A subclass may define `__len__` and `__getitem__` instead.
    """

    def __init__(
        self,
        X: Any,
        y: Any = None,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
    ) -> None:
        self.X = as_array(X)
        self.y = None if y is None else as_array(y)
        if self.X.ndim == 0 or (self.y is not None and self.y.ndim == 0):
            raise ValueError("X and y must have one entry per sample, got a single number")
        if self.y is not None and len(self.X) != len(self.y):
            raise ValueError(f"X and y must have the same length, got {len(self.X)} and {len(self.y)}")
        self.transform = transform
        self.target_transform = target_transform

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, index: Any) -> Any:
        x = self.X[index] if self.transform is None else self.transform(self.X[index])
        if self.y is None:
            return x
        return x, self.y[index] if self.target_transform is None else self.target_transform(self.y[index])

    def fetch(self, indices: np.ndarray[Any, Any]) -> tuple[Any, ...]:
        """The samples at `indices` stacked: (X,) or (X, y), by one fancy indexing where nothing is transformed."""
        return tuple(
            values[indices] if function is None else _transformed(values, indices, function)
            for values, function in ((self.X, self.transform), (self.y, self.target_transform))
            if values is not None
        )


def _transformed(
    values: np.ndarray[Any, Any], indices: np.ndarray[Any, Any], function: Callable[[Any], Any]
) -> np.ndarray[Any, Any]:
    # Without samples, the first one says what shape they would have.
    samples = map(function, values[indices if len(indices) else [0]])
    return np.stack([np.asarray(getattr(sample, "array", sample)) for sample in samples])[: len(indices)]


def collate(samples: list[Any]) -> Any:
    """Stacks samples (arrays, numbers, tensors, or tuples and dicts of them) into batches of each."""
    first = samples[0]
    if isinstance(first, tuple | list):
        return tuple(collate(list(column)) for column in zip(*samples, strict=True))
    if isinstance(first, dict):
        return {key: collate([sample[key] for sample in samples]) for key in first}
    if isinstance(first, Tensor):
        return Tensor(np.stack([sample.array for sample in samples]))
    if isinstance(first, str):
        return samples
    if isinstance(first, np.ndarray | np.generic):
        return Tensor(np.stack(samples))
    return Tensor(as_array(samples))
