"""How a wrapped model computes a batch: which rows these are, and what its results must know for the backward."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.batch import Batch, installed
from sorix_dist.core.graph import Node
from sorix_dist.core.tensor import Array, Rows
from sorix_dist.nn import Module
from sorix_dist.parallel.replicas import Replicas
from sorix_dist.parallel.sync import Forward, Share, even_proportions, proportions
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


def known_rows(arrays: list[Any]) -> Rows | None:
    """The rows that a loader said of the first tensor that comes from one."""
    return next((a.rows for a in arrays if isinstance(a, Tensor) and a.rows is not None), None)


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
        share = self._share([*arrays_in((inputs, options))])
        rows = share.rows
        forward = Forward(self.replicas, share)
        before, self.replicas.computing = self.replicas.computing, forward
        try:
            with installed(Batch(rows.start, rows.stop, rows.total, sum=self._sum)):
                return map_tensors(module(*inputs, **options), lambda result: mark(result, forward))
        finally:
            self.replicas.computing = before

    def _share(self, arrays: list[Any]) -> Share:
        comm = self.replicas.comm
        rows = known_rows(arrays) if self.tagged else None
        if rows is not None:
            return Share(rows, even_proportions(rows.total, comm.size))
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
        return Share(Rows(start, start + count, sum(counts)), proportions(tuple(counts)))

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
    if isinstance(result.origin, Node) and result.origin.sync is not None:
        result.origin.sync = result.origin.sync.joined(forward)
    return result
