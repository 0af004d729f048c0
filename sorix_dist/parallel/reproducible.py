"""Reproducible mode: a forward runs once for each virtual shard, and what depends on rows is summed in one order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.batch import Batch, installed
from sorix_dist.core.graph import Leaf, Node
from sorix_dist.core.op import next_number, recording
from sorix_dist.core.ops.join import cat, part_of_rows, weighted_numbers
from sorix_dist.core.tensor import Array, Rows
from sorix_dist.nn import Module
from sorix_dist.parallel.accumulate import Denominator
from sorix_dist.parallel.forward import arrays_in, known_rows, mark
from sorix_dist.parallel.replicas import Replicas
from sorix_dist.parallel.sync import Synchronised
from sorix_dist.parallel.tree import sum_rows
from sorix_dist.parallel.virtual import VirtualShards
from sorix_dist.utils.data.nested import map_tensors


class Span(NamedTuple):
    """The operations numbered first to last - 1, which computed a virtual shard."""

    first: int
    last: int
    shard: int


class ShardedForward(Synchronised):
    """The `sync` of what was computed shard by shard: it knows which operations belong to which shard.

    is_reduced: whether a loss has reduced the rows, with weights that are the same on any number of ranks.
    """

    def __init__(self, replicas: Replicas, rows: Rows, spans: frozenset[Span], is_reduced: bool = False) -> None:
        assert replicas.shards is not None
        self.replicas, self.shards = replicas, replicas.shards
        self.rows, self.spans, self.is_reduced = rows, spans, is_reduced
        self.noted: Denominator | None = None
        self._reduced: ShardedForward | None = None

    def joined_forward(self, other: Any) -> Any:
        # Batches of two loaders may be joined row by row where they are the same rows of them.
        if self.is_reduced != other.is_reduced or (not self.is_reduced and self.rows[:-1] != other.rows[:-1]):
            raise RuntimeError(
                "reproducible mode can't join rows of a batch with those of another one or with a loss: end each loss "
                "in one of sorix_dist.nn or in mean(), then add the losses"
            )
        if self.replicas.accumulation is not None and self.noted is not None:
            self.noted.joined(other.noted)
        if other.spans <= self.spans:
            return self
        both = ShardedForward(self.replicas, self.rows, self.spans | other.spans, self.is_reduced)
        both.noted = self.noted or other.noted
        return both

    def reduced(self) -> Any:
        if self.is_reduced:
            return self
        if self._reduced is None or self._reduced.noted != self.noted:
            self._reduced = ShardedForward(self.replicas, self.rows, self.spans, is_reduced=True)
            self._reduced.noted = self.noted
        return self._reduced

    def divisor(self, count: int) -> float:
        if self.is_reduced:
            return count
        self.noted = Denominator("rows", self.rows.total)
        return max(1, self._of_each_row(count) * self.rows.total)

    def mean_weight(self, parts: Array) -> float:
        each = self._of_each_row(len(parts))
        bounds = [self.shards.rows(shard, self.rows.total) for shard in self.shards.owned]
        first = self.rows.start
        sums = [np.sum(parts[(a - first) * each : (b - first) * each], dtype=np.float64) for a, b in bounds]
        denominator = float(self.shards.sum(np.array(sums)))
        self.noted = Denominator("own", denominator)
        return 1 / denominator if denominator else 0.0

    def sum_weight(self) -> float:
        self.noted = Denominator("sum", 1.0)
        return 1.0

    def _of_each_row(self, count: int) -> int:
        """How many of `count` elements each row of this rank has."""
        held = self.rows.stop - self.rows.start
        if held and count % held:
            raise RuntimeError(
                f"reproducible mode: a loss must have as many elements for every row of the batch, got {count} for the "
                f"{held} rows of rank {self.replicas.comm.rank}: give rows that shall not count an ignored label"
            )
        return count // held if held else 1

    def factor(self) -> float:
        if not self.is_reduced:
            raise RuntimeError(
                "reproducible mode: a loss must end in one of sorix_dist.nn or in mean() over all that the model has "
                "computed: other reductions have other bits on every number of ranks"
            )
        return 1.0

    def denominator(self) -> Denominator:
        return self.noted or Denominator("rows", self.rows.total)

    def visitor(self) -> Callable[[Node | Leaf, Any], None] | None:
        """Follows the walk, newest operation first, and sends gradients to the shard whose operations it is in."""
        spans = sorted(self.spans, reverse=True)
        at, current = 0, None
        select = self.replicas.select
        select(None)

        def visit(edge: Node | Leaf, gradient: Any) -> None:
            nonlocal at, current
            assert isinstance(edge, Node)
            number = edge.number
            while at < len(spans) and number < spans[at].first:
                at += 1
            shard = spans[at].shard if at < len(spans) and number < spans[at].last else None
            if shard != current:
                current = shard
                select(shard)

        return visit

    def end(self) -> None:
        self.replicas.select(None)
        self.replicas.end(self.rows)

    def failed(self) -> None:
        self.replicas.select(None)
        self.replicas.failed()


class ByShards:
    """Computes a batch of a loader shard by shard, each as if it were alone."""

    def __init__(self, replicas: Replicas) -> None:
        assert replicas.shards is not None
        self.replicas, self.shards = replicas, replicas.shards

    def run(self, module: Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """The module's results for all shards of this rank, which synchronise what a backward from them reaches."""
        rows = self._rows([*arrays_in((inputs, options))])
        buffers = _Buffers(module) if module.training else None
        results, spans = [], []
        before, self.replicas.computing = self.replicas.computing, _InShard()
        try:
            for shard in self.shards.owned:
                start, stop = self.shards.rows(shard, rows.total)
                part = slice(start - rows.start, stop - rows.start)
                first = next_number()
                if buffers is not None:
                    buffers.restore()
                cut_inputs, cut_options = map_tensors((inputs, options), lambda x, part=part: _cut(x, part))  # type: ignore[misc]
                with installed(Batch(start, stop, rows.total, shard)):
                    results.append(module(*cut_inputs, **cut_options))
                spans.append(Span(first, next_number(), shard))
                if buffers is not None:
                    buffers.keep()
        finally:
            self.replicas.computing = before
        if buffers is not None:
            buffers.combine(self.shards, rows.total)
        return self._joined(results, ShardedForward(self.replicas, rows, frozenset(spans)))

    def _rows(self, arrays: list[Any]) -> Rows:
        tagged = [(a, a.rows) for a in arrays if isinstance(a, Tensor) and a.rows is not None]
        rows = known_rows(arrays)
        if rows is None:
            raise RuntimeError(
                "reproducible mode: a batch must come from a DataLoader, so that its rows are known: got "
                f"{', '.join(str(tuple(a.shape)) for a in arrays) or 'no array'} without that knowledge. Put "
                "preprocessing that changes the number of rows into the data set or the model"
            )
        held = (
            self.shards.rows(self.shards.owned.start, rows.total)[0],
            self.shards.rows(self.shards.owned[-1], rows.total)[1],
        )
        if held != (rows.start, rows.stop) or any(len(a.array) != rows.stop - rows.start for a, _ in tagged):
            raise RuntimeError(
                f"reproducible mode: this rank must hold rows {held[0]} to {held[1]} of a batch of {rows.total} rows, "
                f"got {', '.join(f'{len(a.array)} rows from {r.start}' for a, r in tagged)}: make the loader after init"
            )
        return rows

    def _joined(self, results: list[Any], forward: ShardedForward) -> Any:
        """One result of those of all shards: rows one after the other, single numbers as their mean over rows."""
        first = results[0]
        if isinstance(first, Tensor):
            return self._joined_tensors(results, forward)
        if isinstance(first, tuple | list):
            entries = [self._joined(list(column), forward) for column in zip(*results, strict=True)]
            return first._make(entries) if hasattr(first, "_make") else type(first)(entries)
        if isinstance(first, dict):
            return {key: self._joined([result[key] for result in results], forward) for key in first}
        return first

    def _joined_tensors(self, results: list[Tensor], forward: ShardedForward) -> Tensor:
        rows = forward.rows
        counts = [b - a for a, b in (self.shards.rows(shard, rows.total) for shard in self.shards.owned)]
        if results[0].ndim == 0:
            held = max(1, rows.stop - rows.start)
            scales = [count / held for count in counts]
            weights = [count / max(1, rows.total) for count in counts]
            forward.noted = Denominator("rows", rows.total)
            return mark(weighted_numbers(*results, scales=scales, weights=weights), forward.reduced())
        if any(len(result.array) != count for result, count in zip(results, counts, strict=True)):
            raise RuntimeError(
                "reproducible mode: each result of a model must have the rows of its batch as first dimension, or be a "
                f"single number, got shapes {[tuple(r.shape) for r in results]} for shards of {counts} rows"
            )
        whole = cat(results) if len(results) > 1 else results[0]
        whole.rows = rows
        return mark(whole, forward)


def _cut(x: Tensor, part: slice) -> Tensor:
    if x.rows is None:
        return x
    return part_of_rows(x, rows=part) if x.requires_grad and recording.get() else Tensor.of(x.array[part])


class _InShard:
    """What reductions inside a forward are told: a shard knows only its own rows."""

    def mean_weight(self, parts: Array) -> float:
        raise self._error("class weights or ignored labels")

    def sum_weight(self) -> float:
        raise self._error("reduction='sum'")

    def _error(self, what: str) -> RuntimeError:
        return RuntimeError(
            f"reproducible mode: a loss with {what} can't be computed inside the model, which sees one virtual shard "
            "at a time: return the scores and compute the loss outside"
        )


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
