"""How a wrapped model computes a batch: which rows these are, and what its results must know for the backward."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.batch import Batch, installed
from sorix_dist.core.graph import Node
from sorix_dist.core.tensor import Array, Rows
from sorix_dist.nn import Module
from sorix_dist.parallel.replicas import Replicas
from sorix_dist.parallel.sync import Forward, even_proportions, proportions
from sorix_dist.utils.data.nested import map_tensors

_WATCHED = 3  # batches that no loader made, whose rows are compared between the ranks
_SAMPLE = 4096  # bytes of a batch that are compared


def arrays_in(value: Any) -> Iterator[Any]:
    """The tensors and arrays in nested tuples, lists and dicts."""
    if isinstance(value, Tensor | np.ndarray):
        yield value
    elif isinstance(value, tuple | list | dict):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from arrays_in(entry)


def known_rows(inputs: Sequence[Any], options: dict[str, Any] | None = None) -> Rows | None:
    """The rows that a loader said of the first tensor that comes from one, in nested inputs and options."""
    first = inputs[0] if inputs else None
    if isinstance(first, Tensor) and first.rows is not None:
        return first.rows
    tensors = (a for a in arrays_in((inputs, options)) if isinstance(a, Tensor))
    return next((tensor.rows for tensor in tensors if tensor.rows is not None), None)


class WholeForward:
    """Computes all rows of this rank at once.

    tagged: whether the loader's word on rows holds for these ranks; else they are asked at every batch.
    """

    def __init__(self, replicas: Replicas, tagged: bool) -> None:
        self.replicas = replicas
        self.tagged = tagged
        self.watched = 0

    def run(self, module: Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """The module's results, which synchronise what a backward from them reaches."""
        replicas = self.replicas
        rows = known_rows(inputs, options) if self.tagged else None
        if rows is not None:
            forward = Forward(replicas, rows, even_proportions(rows.total, replicas.comm.size))
        else:
            forward = self._asked([*arrays_in((inputs, options))])
            rows = forward.rows
        before, replicas.computing = replicas.computing, forward
        try:
            with installed(Batch(rows.start, rows.stop, rows.total, 0, self._sum)):
                results = module(*inputs, **options)
        finally:
            replicas.computing = before
        if isinstance(results, Tensor):
            return mark(results, forward)
        return map_tensors(results, lambda result: mark(result, forward))

    def _asked(self, arrays: list[Any]) -> Forward:
        """That of a batch that no loader has shared out: the ranks tell each other how many rows they have."""
        comm = self.replicas.comm
        first = arrays[0] if arrays else np.zeros(1)
        count = 1 if first.ndim == 0 else len(first)
        counts, sums = comm.all_gather(np.array([count, self._checksum(first)], np.int64)).T.tolist()
        if self.watched < _WATCHED and comm.size > 1:
            self.watched += 1
            if count > 1 and len(set(sums)) == 1 and len(set(counts)) == 1:
                warnings.warn(
                    f"every rank was given the same {count} rows, which no loader has shared out: they count "
                    f"{comm.size} times. Take the batch from a DataLoader (its batch_size is that of all ranks "
                    "together), or give each rank rows of its own",
                    RuntimeWarning,
                    stacklevel=5,
                )
                self.watched = _WATCHED
        start = sum(counts[: comm.rank])
        return Forward(self.replicas, Rows(start, start + count, sum(counts)), proportions(tuple(counts)))

    def _checksum(self, array: Any) -> int:
        if self.watched >= _WATCHED:
            return 0
        values = np.ascontiguousarray(getattr(array, "array", array)).reshape(-1).view(np.uint8)
        return zlib.crc32(values[:: max(1, values.size // _SAMPLE)].tobytes())

    def _sum(self, array: Array) -> Array:
        self.replicas.comm.all_reduce(array).wait()
        return array


def mark(result: Tensor, forward: Any) -> Tensor:
    """Makes a tensor that a forward computed a result of it."""
    origin = result.origin
    if isinstance(origin, Node) and origin.sync is not None:
        origin.sync = origin.sync.joined(forward)
    return result
