"""Data sets: samples by index, or one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from zlib import crc32

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.tensor import as_array
from sorix_dist.utils.data.nested import stacked

Array = np.ndarray[Any, Any]

_SAMPLES, _NUMBERS = 16, 64  # that a digest looks at, and of each of them


class Dataset:
    """Samples X and, if given, their targets y, each an array with one entry per sample.

    transform, target_transform: functions of one sample and of one target, applied when it is fetched.
    An array is not copied: a memory map (`np.load(path, mmap_mode="r")`) is read batch by batch.
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

    def fetch(self, indices: Array) -> tuple[Any, ...]:
        """The samples at `indices` stacked: (X,) or (X, y), by one fancy indexing where nothing is transformed."""
        return tuple(
            values[indices] if function is None else _transformed(values, indices, function)
            for values, function in ((self.X, self.transform), (self.y, self.target_transform))
            if values is not None
        )

    def digest(self) -> int:
        """A number for what X and y hold, as far as a few numbers of a few samples tell: ranks with other data have
        another one, and so has a run that goes on with other data. A subclass with its own `__getitem__` may define
        its own, which is asked then."""
        return crc32(b"".join(_outline(values) for values in (self.X, self.y) if values is not None))


def contents(dataset: Any) -> int | None:
    """A digest of a data set's arrays; None for one that makes its samples itself, or reads them from elsewhere."""
    array = dataset.array if isinstance(dataset, Tensor) else dataset
    if isinstance(array, np.ndarray) and array.dtype.kind in "biuf":
        dataset = Dataset(array)
    kind = type(dataset)
    own = issubclass(kind, Dataset) and (kind.__getitem__ is Dataset.__getitem__ or kind.digest is not Dataset.digest)
    return dataset.digest() if own else None


class IterableDataset:
    """Samples one after the other, as `__iter__` of a subclass gives them: the same ones, in the same order, on every
    rank and each time that it is called, or for each epoch, which `set_epoch` would be told before."""

    def __iter__(self) -> Iterator[Any]:
        raise NotImplementedError(f"{type(self).__name__} must define __iter__")


def _outline(values: Array) -> bytes:
    """Some of an array's numbers: integers as they are, of floats the sign and the power of two. Those of another kind
    of processor may differ in their last bits, and are noise where they are small beside the others."""
    places = np.linspace(0, len(values) - 1, min(_SAMPLES, len(values))).astype(np.intp)
    samples = [np.asarray(values[place]) for place in places]
    numbers = np.concatenate([sample.flat[:: max(1, sample.size // _NUMBERS)] for sample in samples])
    if values.dtype.kind == "f":
        sizes = np.abs(np.nan_to_num(numbers.astype(np.float64)))
        large = sizes > sizes.max(initial=0) / 1000
        numbers = np.where(large, 2 * np.frexp(sizes)[1] + (numbers < 0), 0)
    return numbers.astype(np.int64).tobytes()


def _transformed(values: Array, indices: Array, function: Callable[[Any], Any]) -> Array:
    # Without samples, the first one says what shape they would have.
    wanted = indices if len(indices) else np.zeros(1, np.int64)
    results = []
    for index, value in zip(wanted, values[wanted], strict=True):
        try:
            sample = function(value)
            results.append(np.asarray(getattr(sample, "array", sample)))
        except Exception as error:
            error.add_note(f"raised by the transform of sample {index} of the data set")
            raise
    return stacked(results)[: len(indices)]
