"""How samples become a batch, and how a batch comes to know which rows of the global batch it holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.placement import Batch, Rows, current_group, tagged
from sorix_dist.core.tensor import as_array
from sorix_dist.utils.data.nested import map_arrays, tensors

Array = np.ndarray[Any, Any]


def collate(samples: list[Any]) -> Any:
    """Stacks samples (arrays, numbers, tensors, or tuples and dicts of them) into batches of each."""
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


class Collator:
    """Makes batches of samples, and tags their tensors with the rows of the global batch that they hold.

    All ranks must tag or none, since those with tags ask nobody how many rows there are. What the function of a
    user makes of samples may have any number of rows, so it is tried once, on one sample and on two, the same ones
    on every rank: if every tensor has as many rows as there were samples, then all batches are tagged. One that
    later has another number of rows is an error, for the other ranks are tagged.

    function: None for `collate`; tag: False for never; per_sample: the answer of the trial, if it is known.
    """

    def __init__(self, function: Callable[[list[Any]], Any] | None, tag: bool, per_sample: bool | None) -> None:
        self.function = function
        self.tag = tag
        self.per_sample = True if function is None else per_sample
        self._first: Any = None

    def learn(self, samples: list[Any]) -> None:
        """Tries the function on the first of `samples` and on the first two; does nothing where all is known."""
        if not self.tag or self.per_sample is not None or self.function is None:
            return
        try:
            self.per_sample = all(_fits(self.function(list(part)), len(part)) for part in (samples[:1], samples[:2]))
        except Exception as error:
            error.add_note(
                "raised while collate_fn was tried on the first samples, to find out whether it makes one row of "
                "each; DataLoader(one_row_per_sample=True) or False says so instead"
            )
            raise

    def batch(self, rows: Rows, samples: list[Any], example: Callable[[], Any]) -> Any:
        """The batch of `samples`; if there are none, the batch of the sample `example()` without its row."""
        make = self.function or collate
        if samples:
            return self.tagged(make(samples), rows)
        if self._first is None:
            self._first = make([example()])
        return self.tagged(map_arrays(self._first, lambda array: array[:0] if array.ndim else array), rows)

    def tagged(self, batch: Any, rows: Rows) -> Any:
        """The batch with `rows` on its tensors, unless they are not rows of a global batch."""
        if self.tag and self.per_sample:
            count = rows.stop - rows.start
            if self.function is not None and not _fits(batch, count):
                shapes = ", ".join(str(tuple(tensor.array.shape)) for tensor in tensors(batch))
                raise ValueError(
                    f"collate_fn must make {count} rows of {count} samples, as it does of the first ones, got tensors "
                    f"of shape {shapes}; with DataLoader(one_row_per_sample=False) it may make any number"
                )
            place = Batch(rows, current_group()).at(0)
            for tensor in tensors(batch):
                tagged(tensor, place)
        return batch


def _fits(batch: Any, count: int) -> bool:
    """Whether every tensor has `count` rows."""
    return all(tensor.array.ndim > 0 and len(tensor.array) == count for tensor in tensors(batch))
