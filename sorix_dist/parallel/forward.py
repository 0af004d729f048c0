"""How a wrapped model computes a batch: which rows its inputs are, and how its layers come to know it."""

from __future__ import annotations

import warnings
import zlib
from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.placement import REPLICATE, Batch, Rows, Shard, forward_of, tagged
from sorix_dist.nn import Module
from sorix_dist.parallel.replicas import Replicas
from sorix_dist.utils.data.nested import entries, map_arrays

_WATCHED = 3  # batches that no loader made, whose rows are compared between the ranks
_SAMPLE = 4096  # bytes of a batch that are compared


def shards_in(value: Any) -> list[Shard]:
    """The placements of the tensors in nested inputs that are rows of a batch."""
    return [x.place for x in entries(value) if isinstance(x, Tensor) and isinstance(x.place, Shard)]


class WholeForward:
    """Computes all rows of this rank at once.

    tagged: whether the loader's word on rows holds for these ranks; else they are asked at every batch.
    """

    def __init__(self, replicas: Replicas, tagged: bool) -> None:
        self.replicas = replicas
        self.tagged = tagged
        self.watched = 0

    def run(self, module: Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """The module's results, which know their rows."""
        first = inputs[0] if len(inputs) == 1 and not options else None
        if self.tagged and isinstance(first, Tensor) and isinstance(first.place, Shard):
            known_batch = first.place.batch
            self.replicas.rows = known_batch.known or known_batch.rows
            return module(first) if known_batch.group.single else self._compute(known_batch, module, inputs, options)
        arrays = [*entries((inputs, options))]
        known = [x.place for x in arrays if self.tagged and isinstance(x, Tensor) and isinstance(x.place, Shard)]
        open_ = [x for x in arrays if x.ndim and not (isinstance(x, Tensor) and self._is_known(x))]
        alike = any(isinstance(x, Tensor) and x.place is REPLICATE for x in arrays)
        if not (known or open_ or alike or self.replicas.group.single):
            raise RuntimeError(
                "the inputs of a wrapped model in training hold no tensor with rows of a batch, so that nobody knows "
                "which part of it this rank computes: pass the batch as an argument, or sx.replicated(x) for what is "
                "the same on every rank"
            )
        batch, rows = self._asked(known, open_)
        if batch is not None:
            self.replicas.rows = batch.rows

            def tag(x: Any) -> Any:
                if id(x) not in rows:
                    return x
                if isinstance(x, Tensor) and x.place is None:
                    return tagged(x, batch.at(0))
                leaf = x.leaf if isinstance(x, Tensor) else None
                fresh = Tensor.of(x.array, x.origin) if isinstance(x, Tensor) else Tensor(x)
                fresh.leaf = leaf
                return tagged(fresh, batch.at(0))

            inputs, options = map_arrays((inputs, options), tag)
        return self._compute(batch, module, inputs, options)

    def _compute(self, batch: Batch | None, module: Module, inputs: Any, options: Any) -> Any:
        if self.replicas.group.single:
            return module(*inputs, **options)
        before = forward_of.set(batch)
        try:
            return module(*inputs, **options)
        finally:
            forward_of.reset(before)

    def _is_known(self, x: Tensor) -> bool:
        return x.place is REPLICATE or (self.tagged and x.place is not None)

    def _asked(self, known: list[Shard], arrays: list[Any]) -> tuple[Batch | None, set[int]]:
        """The batch of inputs, and which of the arrays are rows of it: the ranks tell each other how long these are.

        Where one of the inputs comes from a loader, arrays with as many rows belong to them; else the first array says
        how many there are.
        """
        comm, group = self.replicas.comm, self.replicas.group
        if not arrays:
            return (known[0].batch if known else None), set()
        lengths = [len(x) for x in arrays]
        if known:
            held = known[0].batch.held
            sums = 0
        else:
            held, sums = lengths[0], self._checksum(arrays[0])
        if group.single:
            everywhere = [[held, sums, *lengths]]
        else:
            everywhere = comm.all_gather(np.array([held, sums, *lengths], np.int64)).tolist()
        counts = [said[0] for said in everywhere]
        if known:
            batch = known[0].batch
        else:
            self._warn_of_the_same(held, everywhere)
            start = sum(counts[: comm.rank])
            batch = Batch(Rows(start, start + held, sum(counts)), group)
        rows = {id(x) for i, x in enumerate(arrays, 2) if [said[i] for said in everywhere] == counts}
        return batch, rows

    def _warn_of_the_same(self, count: int, everywhere: list[list[int]]) -> None:
        if self.watched >= _WATCHED or len(everywhere) == 1:
            return
        self.watched += 1
        if count > 1 and len({tuple(said[:2]) for said in everywhere}) == 1:
            warnings.warn(
                f"every rank was given the same {count} rows, which no loader has shared out: they count "
                f"{len(everywhere)} times. Take the batch from a DataLoader (its batch_size is that of all ranks "
                "together), give each rank rows of its own, or say sx.replicated(x) if all ranks compute the same",
                RuntimeWarning,
                stacklevel=6,
            )
            self.watched = _WATCHED

    def _checksum(self, array: Any) -> int:
        if self.watched >= _WATCHED:
            return 0
        values = np.ascontiguousarray(getattr(array, "array", array)).reshape(-1).view(np.uint8)
        return zlib.crc32(values[:: max(1, values.size // _SAMPLE)].tobytes())
