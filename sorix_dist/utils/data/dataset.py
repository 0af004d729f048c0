"""Data sets: samples by index, or a stream of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any
from zlib import crc32

import numpy as np

from sorix_dist.core import as_tensor
from sorix_dist.core import random as rng
from sorix_dist.core.arguments import as_function, described, is_integer
from sorix_dist.core.placement import current_group
from sorix_dist.core.tensor import Array, array_of, shape_of
from sorix_dist.utils.data.nested import map_arrays, stacked
from sorix_dist.utils.data.tables import numbers

Reader = Callable[[Array], Any]

_DIGEST_ROWS, _DIGEST_NUMBERS, _DIGEST_WHOLE = 64, 64, 1 << 20


class Dataset:
    """Samples X and, if given, their targets y: arrays, tensors or frames of numbers with one entry per sample.

    transform, target_transform: functions of one sample and of one target, applied when it is fetched. They are called
    sample by sample, which is slow; `DataLoader(batch_transform=)` transforms whole batches.
    An array is not copied: a memory map (`np.load(path, mmap_mode="r")`) is read batch by batch.
    A subclass may define `__len__` and `__getitem__` instead, and `fetch` to read many samples at once.

    TypeError, with the name of the column, for a frame with text in it; ValueError if X and y differ in length.
    """

    def __init__(
        self,
        X: Any = None,
        y: Any = None,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
    ) -> None:
        if X is None and type(self).__getitem__ is not Dataset.__getitem__:
            return  # PyTorch's super().__init__()
        self.X = numbers("X", X)
        self.y = None if y is None else numbers("y", y)
        if self.X.ndim == 0 or (self.y is not None and self.y.ndim == 0):
            raise ValueError("X and y must have one entry per sample, got a single number")
        if self.y is not None and len(self.X) != len(self.y):
            raise ValueError(f"X and y must have the same length, got {len(self.X)} and {len(self.y)}")
        self.transform = None if transform is None else as_function("transform", transform, "a sample")
        if target_transform is not None:
            as_function("target_transform", target_transform, "a target")
        self.target_transform = target_transform

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, index: Any) -> Any:
        x = self.X[index] if self.transform is None else self.transform(self.X[index])
        if self.y is None:
            return x
        return x, self.y[index] if self.target_transform is None else self.target_transform(self.y[index])

    def __setitem__(self, index: Any, value: Any) -> None:
        """Overwrites samples: `data[i] = x`, or `data[i] = x, y` with targets. Every rank must do the same."""
        if self.y is None:
            self.X[index] = value
        else:
            x, y = value
            self.X[index], self.y[index] = x, np.reshape(y, shape_of(self.y[index]))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(len={len(self)}, has_labels={getattr(self, 'y', None) is not None})"

    def fetch(self, indices: Array) -> Any:
        """The samples at `indices`, stacked: X or (X, y). One fancy indexing where nothing is transformed."""
        x = _transformed(self.X, indices, self.transform)
        return x if self.y is None else (x, _transformed(self.y, indices, self.target_transform))

    def digest(self) -> int | None:
        """A checksum of X and y that very likely differs for other data, see `array_digest`. A subclass that defines
        `__getitem__` may define its own."""
        return crc32(b"".join(array_digest(values) for values in (self.X, self.y) if values is not None))


class TensorDataset:
    """Samples that are tuples: entry i of each of some tensors or arrays of one length (as PyTorch's TensorDataset)."""

    def __init__(self, *tensors: Any) -> None:
        self.arrays = tuple(numbers(f"tensor {number}", each) for number, each in enumerate(tensors))
        if not tensors or any(array.ndim == 0 or len(array) != len(self.arrays[0]) for array in self.arrays):
            shapes = ", ".join(str(array.shape) for array in self.arrays) or "none"
            raise ValueError(f"TensorDataset: tensors must have the same length, got shapes {shapes}")
        self.tensors = tuple(as_tensor(each) for each in tensors)

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, index: Any) -> tuple[Any, ...]:
        return tuple(array[index] for array in self.arrays)

    def fetch(self, indices: Array) -> tuple[Any, ...]:
        """The samples at `indices`, stacked."""
        return self[indices]

    def digest(self) -> int | None:
        """See `Dataset.digest`."""
        return crc32(b"".join(map(array_digest, self.arrays)))


class Subset:
    """The samples of a data set at some indices, in their order (as PyTorch's Subset)."""

    def __init__(self, dataset: Any, indices: Any) -> None:
        self.dataset, length = dataset, length_of("Subset", dataset)
        if not hasattr(indices, "__iter__"):
            raise TypeError(f"Subset: indices must be a vector of integers, got {described(indices)}")
        self.indices = np.asarray(indices if isinstance(indices, np.ndarray) else list(indices))
        self.indices = self.indices if self.indices.size else self.indices.astype(np.int64)
        if self.indices.ndim != 1 or self.indices.dtype.kind not in "iu":
            raise ValueError(
                f"Subset: indices must be a vector of integers, got shape {self.indices.shape} and dtype "
                f"{self.indices.dtype}"
            )
        outside = (self.indices < 0) | (self.indices >= length)
        if outside.any():
            raise ValueError(f"Subset: indices must be in [0, {length}), got {self.indices[outside][0]}")

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[int(self.indices[index])]

    def reader(self) -> Reader | None:
        """See `reader`."""
        read = reader(self.dataset)
        return None if read is None else lambda indices: read(self.indices[indices])

    def digest(self) -> int | None:
        """See `Dataset.digest`; None if the whole data set has none."""
        whole = dataset_digest(self.dataset)
        return None if whole is None else crc32(self.indices.astype("<i8").tobytes(), whole)


class ConcatDataset:
    """The samples of some data sets, one data set after the other (as PyTorch's ConcatDataset)."""

    def __init__(self, datasets: Sequence[Any]) -> None:
        if not hasattr(datasets, "__iter__"):
            raise TypeError(f"ConcatDataset: datasets must be a list of data sets, got {described(datasets)}")
        self.datasets = list(datasets)
        if not self.datasets:
            raise ValueError("ConcatDataset: datasets must hold at least one data set, got none")
        self.cumulative_sizes = np.cumsum([length_of("ConcatDataset", each) for each in self.datasets]).tolist()

    def __len__(self) -> int:
        return int(self.cumulative_sizes[-1])

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"ConcatDataset: index must be in [{-len(self)}, {len(self)}), got {index}")
        index = index % len(self)
        number = int(np.searchsorted(self.cumulative_sizes, index, side="right"))
        return self.datasets[number][index - self.cumulative_sizes[number] + len(self.datasets[number])]

    def digest(self) -> int | None:
        """See `Dataset.digest`; None if one of the data sets has none."""
        digests = [dataset_digest(dataset) for dataset in self.datasets]
        return None if None in digests else crc32(repr((digests, self.cumulative_sizes)).encode())


class StackDataset:
    """Samples that are tuples of those of some data sets, or dicts of those given by name (PyTorch's StackDataset)."""

    def __init__(self, *datasets: Any, **named: Any) -> None:
        if bool(datasets) == bool(named):
            raise ValueError("StackDataset: data sets must be given by position or by name, and at least one")
        self.datasets: Any = datasets or named
        self._each = list(datasets or named.values())
        lengths = [length_of("StackDataset", each) for each in self._each]
        if len(set(lengths)) > 1:
            raise ValueError(f"StackDataset: data sets must have the same length, got {lengths}")

    def __len__(self) -> int:
        return len(self._each[0])

    def __getitem__(self, index: Any) -> Any:
        samples = [each[index] for each in self._each]
        return dict(zip(self.datasets, samples, strict=True)) if isinstance(self.datasets, dict) else tuple(samples)

    def digest(self) -> int | None:
        """See `Dataset.digest`; None if one of the data sets has none."""
        digests = [dataset_digest(dataset) for dataset in self._each]
        return None if None in digests else crc32(repr(digests).encode())


class IterableDataset:
    """A stream: `__iter__` of a subclass yields the samples, the same ones in the same order on every rank. If they
    differ by epoch, it may define `set_epoch(epoch)`, which the loader calls before each epoch."""

    def __iter__(self) -> Iterator[Any]:
        raise NotImplementedError(f"{type(self).__name__} must define __iter__")


def random_split(dataset: Any, lengths: Sequence[float], generator: Any = None) -> list[Subset]:
    """Splits a data set at random into subsets without overlap, the same ones on every rank.

    lengths: the numbers of samples, which add up to the data set's; or fractions that add up to 1, whose remainder
    goes to the first subsets, one sample each. generator: a seed or generator; None for the stream of `manual_seed`.
    """
    total = length_of("random_split", dataset)
    given = np.asarray(lengths)
    if given.ndim != 1 or given.dtype.kind not in "iuf":
        raise TypeError(f"random_split: lengths must be a list of numbers of samples, or of fractions, got {lengths!r}")
    lengths = given.tolist()
    if abs(sum(lengths) - 1) < 1e-9 and all(0 <= fraction <= 1 for fraction in lengths) and total != 1:
        counts = [int(total * fraction) for fraction in lengths]
        for number in range(total - sum(counts)):
            counts[number % len(counts)] += 1
    else:
        counts = given.tolist()
    if sum(counts) != total or any(count < 0 or count != int(count) for count in counts):
        raise ValueError(f"random_split: lengths must add up to {total} samples, or to 1 as fractions, got {lengths}")
    current_group()  # ranks without a seed agree on one
    if not (generator is None or isinstance(generator, np.random.Generator | rng.Generator)):
        generator = np.random.default_rng(seed_of(generator))
    order = rng.generator(generator).permutation(total)
    ends = np.cumsum([0, *map(int, counts)]).tolist()
    return [Subset(dataset, order[start:stop]) for start, stop in pairwise(ends)]


def length_of(call: str, dataset: Any) -> int:
    """The number of samples; TypeError, with the name of the call, for what has none by index."""
    for method in ("__len__", "__getitem__"):
        if not hasattr(dataset, method) or getattr(dataset, "shape", None) == ():
            raise TypeError(f"{call}: dataset must have {method}, got {described(dataset)}")
    return len(dataset)


def seed_of(generator: Any) -> int:
    """The seed that `generator=` means: an integer itself, the next integer of a NumPy generator, or the initial seed
    of a torch.Generator."""
    if isinstance(generator, np.random.Generator):
        return int(generator.integers(2**63))
    seed = generator.initial_seed() if callable(getattr(generator, "initial_seed", None)) else generator
    if not is_integer(seed) or seed < 0:
        raise TypeError(f"generator must be an integer >= 0 or a generator, got {type(generator).__name__}")
    return int(seed)


def reader(dataset: Any) -> Reader | None:
    """The function that reads the samples at an array of indices at once, stacked; None if there is none.

    That is `fetch` of a data set, unless a subclass has another `__getitem__`, and the columns, by name, of a data set
    of Hugging Face's `datasets`.
    """
    if isinstance(dataset, Subset):
        return dataset.reader()
    if matches_override(type(dataset), "fetch", "__getitem__"):
        return dataset.fetch  # type: ignore[no-any-return]
    if hasattr(dataset, "with_format") and hasattr(dataset, "column_names"):
        table = dataset.with_format("numpy")
        return lambda indices: {name: numbers(f"column {name!r}", each) for name, each in table[indices].items()}
    return None


def dataset_digest(dataset: Any) -> int | None:
    """The digest of a data set; None for one that makes its samples itself, or reads them from elsewhere."""
    array = array_of(dataset)
    if isinstance(array, np.ndarray) and array.dtype.kind in "biuf":
        return Dataset(array).digest()
    return dataset.digest() if matches_override(type(dataset), "digest", "__getitem__") else None


def matches_override(kind: type, method: str, overridden: str) -> bool:
    """Whether a class that overrides the method `overridden` also overrides `method`, which depends on it."""
    defining = (vars(each).keys() for each in kind.__mro__)
    return method in next((names for names in defining if {method, overridden} & names), ())


def array_digest(values: Array) -> bytes:
    """Bytes that distinguish an array: its shape, dtype and numbers. They are the same in every process and on every
    processor.

    Integer arrays up to 1 MiB are taken whole. Of others, up to 64 numbers of each of up to 64 samples are taken, so
    that a memory map is not read. Floats are reduced to sign and power of two, and their mean size is added, because
    processors differ in the last bits. Floats below a thousandth of the largest count as 0: they may be noise.
    """
    about = f"{values.dtype.kind}{values.dtype.itemsize}{values.shape}"
    if values.dtype.kind != "f" and values.nbytes <= _DIGEST_WHOLE:
        return about.encode() + values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    rows = np.linspace(0, len(values) - 1, min(_DIGEST_ROWS, len(values))).astype(np.intp)
    samples = [np.asarray(values[row]) for row in rows]
    sampled = np.concatenate([sample.flat[:: max(1, sample.size // _DIGEST_NUMBERS)] for sample in samples] or [values])
    if values.dtype.kind == "f":
        sizes = np.abs(np.nan_to_num(sampled.astype(np.float64)))
        large = sizes > sizes.max(initial=0) / 1000
        about += f"{sizes.mean() if sizes.size else 0:.3g}"
        sampled = np.where(large, 2 * np.frexp(sizes)[1] + (sampled < 0), 0)
    return about.encode() + sampled.astype("<i8").tobytes()


def _transformed(values: Array, indices: Array, function: Callable[[Any], Any] | None) -> Array:
    """The entries at `indices`, each transformed. If there are none, the first entry gives the shape of no entries."""
    if function is None:
        return np.asarray(values[indices])
    wanted = indices if len(indices) else np.zeros(1, np.int64)
    results = []
    streams = rng.sample_streams.get()
    for index, value in zip(wanted, values[wanted], strict=True):
        if streams is not None:
            streams.begin(index)
        try:
            results.append(np.asarray(map_arrays(function(value), array_of)))
        except Exception as error:
            error.add_note(f"raised by the transform of sample {index} of the data set")
            raise
    return stacked(results)[: len(indices)]
