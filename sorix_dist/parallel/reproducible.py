"""Reproducible mode: a forward runs once for each virtual shard of the batch, as if that were all there is."""

from __future__ import annotations

from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.op import current_shard
from sorix_dist.core.ops.collective import first_of, summed_parts, take_rows
from sorix_dist.core.ops.join import concatenate
from sorix_dist.core.ops.shape import reshape_to
from sorix_dist.core.placement import Batch, Partial, Rows, Shard, forward_of, tagged
from sorix_dist.core.rules import bare
from sorix_dist.core.tensor import Array
from sorix_dist.nn import Module
from sorix_dist.parallel.forward import shards_in
from sorix_dist.parallel.groups import InOrder
from sorix_dist.parallel.replicas import Replicas
from sorix_dist.parallel.tree import sum_rows
from sorix_dist.parallel.virtual import VirtualShards
from sorix_dist.utils.data.nested import entries, map_tensors


class ByShards:
    """Computes a batch of a loader shard by shard.

    Inside, a shard is one of V parts, of which sums over rows are made when all shards are computed. Outside, every
    rank computes alike what follows from sums, so that a gradient comes in whole.
    """

    def __init__(self, replicas: Replicas) -> None:
        assert replicas.shards is not None
        assert isinstance(replicas.group, InOrder)
        self.replicas, self.shards, self.group = replicas, replicas.shards, replicas.group

    def run(self, module: Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """The module's results for all shards of this rank."""
        batch = self._batch(inputs, options)
        rows = self.replicas.rows = batch.rows
        buffers = _Buffers(module) if module.training else None
        results = []
        for group, shard in zip(self.group.within, self.shards.owned, strict=True):
            start, stop = self.shards.rows(shard, rows.total)
            part = Batch(Rows(start, stop, rows.total), group, shard)
            if buffers is not None:
                buffers.restore()
            token, before = current_shard.set((shard, True)), forward_of.set(part)
            try:
                cut_inputs, cut_options = map_tensors((inputs, options), lambda x, part=part: self._cut(x, rows, part))  # type: ignore[misc]
                results.append(module(*cut_inputs, **cut_options))
            finally:
                current_shard.reset(token)
                forward_of.reset(before)
            if buffers is not None:
                buffers.keep()
        if buffers is not None:
            buffers.combine(self.shards, rows.total)
        return self._joined(results, batch)

    def _batch(self, inputs: tuple[Any, ...], options: dict[str, Any]) -> Batch:
        found = shards_in((inputs, options))
        if not found:
            shapes = [str(tuple(x.shape)) for x in entries((inputs, options))]
            raise RuntimeError(
                "reproducible mode: a batch must come from a DataLoader, so that its rows are known: got "
                f"{', '.join(shapes) or 'no array'} without that knowledge. Put preprocessing that changes the number "
                "of rows into the data set or the model"
            )
        batch, owned = found[0].batch, self.shards.owned
        rows = batch.rows
        held = self.shards.rows(owned.start, rows.total)[0], self.shards.rows(owned[-1], rows.total)[1]
        if batch.group is not self.group or held != (rows.start, rows.stop):
            raise RuntimeError(
                f"reproducible mode: this rank must hold rows {held[0]} to {held[1]} of a batch of {rows.total} rows, "
                f"got rows {rows.start} to {rows.stop}: make the loader after init"
            )
        return batch

    def _cut(self, x: Tensor, rows: Rows, part: Batch) -> Tensor:
        place = x.place
        if not isinstance(place, Shard):
            if x.origin is not None and (x.leaf is None or x.leaf.sync is None):
                raise RuntimeError(
                    f"reproducible mode: an input of shape {tuple(x.shape)} requires a gradient and is no rows of the "
                    "batch: every shard would have a part of its gradient. Compute it inside of the model"
                )
            return x
        if place.rows[:3] != rows[:3]:
            raise RuntimeError(
                "reproducible mode: all inputs must be rows of one batch, "
                f"got rows of {rows.total} and {place.rows.total}"
            )
        start, stop = part.rows.start - rows.start, part.rows.stop - rows.start
        cut = take_rows(bare(x), shard=place, start=start, stop=stop)
        return tagged(cut, part.at(place.axis, place.outer, place.inner))

    def _joined(self, results: list[Any], batch: Batch) -> Any:
        """One result of those of all shards: rows one after the other, sums added up in one order."""
        first = results[0]
        if isinstance(first, Tensor):
            return self._joined_tensors(results, batch)
        if isinstance(first, tuple | list):
            items = [self._joined(list(column), batch) for column in zip(*results, strict=True)]
            return first._make(items) if hasattr(first, "_make") else type(first)(items)
        if isinstance(first, dict):
            return {key: self._joined([result[key] for result in results], batch) for key in first}
        found = [[*entries(result)] for result in results]
        if not found[0]:
            return first
        joined = iter([self._joined(list(column), batch) for column in zip(*found, strict=True)])
        return map_tensors(first, lambda x: next(joined))

    def _joined_tensors(self, results: list[Tensor], batch: Batch) -> Tensor:
        place = results[0].place
        parts = [bare(result) for result in results]
        if isinstance(place, Partial):
            bounds = tuple(self.shards.rows(shard, batch.rows.total) for shard in self.shards.owned)
            total = summed_parts(*parts, batch=batch, bounds=bounds)
            return tagged(total, batch.partial(place.over))
        if not isinstance(place, Shard):
            return first_of(*parts, count=self.shards.count)
        places = [result.place for result in results]
        shards = [p for p in places if isinstance(p, Shard) and p.batch.known is not None]
        if len(shards) < len(places):
            raise RuntimeError(
                "reproducible mode: a model must not return what a mask has selected of its rows, whose number is "
                "another one in each shard: return all rows, and select outside"
            )
        shape, axis = results[0].array.shape, place.axis
        opened = [
            reshape_to(part, shape=(*shape[:axis], place.outer, own.batch.held * place.inner, *shape[axis + 1 :]))
            for part, own in zip(parts, shards, strict=True)
        ]
        whole = concatenate(*opened, axis=axis + 1) if len(opened) > 1 else opened[0]
        shard = batch.at(axis, place.outer, place.inner)
        return tagged(reshape_to(whole, shape=(*shape[:axis], shard.held, *shape[axis + 1 :])), shard)


class _Buffers:
    """The buffers of a model, which every shard starts with anew: afterwards they are the mean of what the shards
    have made of them, weighted by their rows."""

    def __init__(self, module: Module) -> None:
        self.places = [(m, name) for m in module.modules() for name in m._own_buffers() if getattr(m, name) is not None]
        self.before = [getattr(m, name) for m, name in self.places]
        self.values = [tensor.array.copy() for tensor in self.before]
        self.after: list[list[Array]] = []

    def restore(self) -> None:
        for (module, name), tensor, value in zip(self.places, self.before, self.values, strict=True):
            if getattr(module, name) is not tensor:
                setattr(module, name, tensor)
            np.copyto(tensor.array, value)

    def keep(self) -> None:
        self.after.append([getattr(module, name).array.copy() for module, name in self.places])

    def combine(self, shards: VirtualShards, total: int) -> None:
        if not self.places:
            return
        self.restore()
        for tensor, *values in zip(self.before, *self.after, strict=True):
            if tensor.array.dtype.kind != "f":
                np.copyto(tensor.array, values[0])  # a count of batches
                continue
            bounds = [shards.rows(shard, total) for shard in shards.owned]
            weights = [(stop - start) / max(1, total) for start, stop in bounds]
            parts = np.array([v * np.asarray(w, v.dtype) for v, w in zip(values, weights, strict=True)])
            np.copyto(tensor.array, sum_rows(shards.table(np.ascontiguousarray(parts))))
