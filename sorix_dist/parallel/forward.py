"""The forward of a wrapped model: it finds out which rows of the batch the inputs are, and tags them."""

from __future__ import annotations

import zlib
from collections import deque
from threading import get_ident
from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.capture import host, listening, outside, recorders
from sorix_dist.core.graph import Leaf
from sorix_dist.core.op import current_shard
from sorix_dist.core.ops.collective import first_of, in_row_order, summed_parts, take_rows
from sorix_dist.core.ops.join import concatenate
from sorix_dist.core.ops.shape import reshape_to
from sorix_dist.core.placement import REPLICATE, Batch, Deferred, Group, Partial, Rows, Shard, computing, tagged
from sorix_dist.core.random import RepeatedDraws, repeated_draws
from sorix_dist.core.rules import bare
from sorix_dist.core.tensor import Array, array_of
from sorix_dist.nn import Module
from sorix_dist.parallel.coordinator import Coordinator, coordinator_of
from sorix_dist.parallel.groups import InOrder
from sorix_dist.parallel.module_state import Numbers, buffers_of
from sorix_dist.parallel.world import current_group
from sorix_dist.utils.data.nested import entries, like, like_dict, map_arrays, map_tensors

_WATCHED = 3  # untagged batches whose bytes are compared between the ranks, to warn of equal ones
_SAMPLE = 4096  # bytes of a batch that are compared


def shards_in(value: Any) -> list[Shard]:
    """The placements of those tensors in nested inputs that are rows of a batch."""
    return [x.place for x in entries(value) if isinstance(x, Tensor) and isinstance(x.place, Shard)]


def _begin_batch(coordinator: Coordinator, batch: Batch) -> None:
    """Notes which rows are computed, for the agreement at the end of the backward."""
    if recorders and (recorder := listening()) is not None:
        recorder.host(_begin_batch, (coordinator, batch), {})
        return
    coordinator.rows = batch.known or batch.rows


def _tag(x: Tensor, batch: Batch) -> None:
    """Makes an input rows of the batch, here and where its owner uses it again."""
    if recorders and (recorder := listening()) is not None:
        recorder.tagged.append(x)
        recorder.host(_tag, (x, batch), {})
        return
    tagged(x, batch.at(0))


def _compute(batch: Batch | None, module: Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """The module's result, computed as that of a batch."""
    thread = get_ident()
    before = computing.get(thread)
    computing[thread] = batch
    try:
        return module(*inputs, **options)
    finally:
        computing[thread] = before


def _is_replicate(x: Any) -> bool:
    return isinstance(x, Tensor) and x.place is REPLICATE


def _replicates(outputs: Any) -> Any:
    """Results of inputs that are the same on every rank: so are a hidden state, say, which the next call gets."""
    return map_tensors(outputs, lambda x: x if x.place or x.leaf else tagged(x, REPLICATE))


class BatchForward:
    """Computes all rows of this rank at once.

    tagged: whether the loader's tags are those of these ranks; otherwise every forward gathers the numbers of rows.
    """

    def __init__(self, coordinator: Coordinator, tagged: bool) -> None:
        self.coordinator = coordinator
        self.tagged = tagged
        self.watched = 0

    def run(self, module: Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """The module's results, which know their rows."""
        first = inputs[0] if len(inputs) == 1 and not options else None
        if self.tagged and isinstance(first, Tensor) and isinstance(first.place, Shard):
            known_batch = first.place.batch
            _begin_batch(self.coordinator, known_batch)
            return module(first) if known_batch.group.single else _compute(known_batch, module, inputs, options)
        arrays = [*entries((inputs, options))]
        known = [x.place for x in arrays if self.tagged and isinstance(x, Tensor) and isinstance(x.place, Shard)]
        open_ = [x for x in arrays if x.ndim and not (isinstance(x, Tensor) and self._is_known(x))]
        alike = any(map(_is_replicate, arrays))
        if not (known or open_ or alike or self.coordinator.group.single):
            raise RuntimeError(
                "the inputs of a wrapped model in training hold no tensor with rows of a batch, so the rows of this "
                "rank are unknown: pass the batch as an argument, or sx.replicated(x) for what is the same everywhere"
            )
        batch, rows = self._batch_of(known, open_)
        if batch is not None:
            _begin_batch(self.coordinator, batch)

            def tag(x: Any) -> Any:
                if id(x) not in rows:
                    return x
                if isinstance(x, Tensor) and x.place is None:
                    _tag(x, batch)
                    return x
                leaf = x.leaf if isinstance(x, Tensor) else None
                fresh = Tensor.of(x.array, x.origin) if isinstance(x, Tensor) else Tensor(x)
                fresh.leaf = leaf
                return tagged(fresh, batch.at(0))

            inputs, options = map_arrays((inputs, options), tag)
        outputs = _compute(batch, module, inputs, options)
        return _replicates(outputs) if batch is None and alike else outputs

    def _is_known(self, x: Tensor) -> bool:
        parameter = x.leaf is not None and x.leaf.sync is not None
        return parameter or x.place is REPLICATE or (self.tagged and x.place is not None)

    def _batch_of(self, known: list[Shard], arrays: list[Any]) -> tuple[Batch | None, set[int]]:
        """The batch of the inputs, and the ids of the untagged arrays that are rows of it."""
        if not arrays:
            return (known[0].batch if known else None), set()
        if recorders and not (known or self.coordinator.group.single):
            outside("several ranks must know the rows of a batch before the step: take it from a DataLoader")
        batch, are_rows = self._gathered(known[0].batch if known else None, *arrays)
        if recorders:
            _must_be(are_rows, are_rows.tolist())
        return batch, {id(x) for x, is_rows in zip(arrays, are_rows, strict=True) if is_rows}

    @host
    def _gathered(self, known: Batch | None, *arrays: Any) -> tuple[Batch, Array]:
        """The batch, and which of the untagged arrays are rows of it, by an all-gather of lengths.

        An array belongs to the batch if on every rank it is as long as the tagged inputs or, without any, as the first
        array.
        """
        comm, group = self.coordinator.comm, self.coordinator.group
        held = len(arrays[0]) if known is None else known.held
        row = [held, self._checksum(arrays[0]) if known is None else 0, *map(len, arrays)]
        table = [row] if group.single else comm.all_gather(np.array(row, np.int64)).tolist()
        counts = [each[0] for each in table]
        if known is None:
            self._warn_of_equal_batches(held, table)
            start = sum(counts[: comm.rank])
            known = Batch(Rows(start, start + held, sum(counts)), group)
        return known, np.array([[each[i] for each in table] == counts for i in range(2, len(row))])

    def _warn_of_equal_batches(self, count: int, everywhere: list[list[int]]) -> None:
        if self.watched >= _WATCHED or len(everywhere) == 1:
            return
        self.watched += 1
        if count and len({tuple(row[:2]) for row in everywhere}) == 1:
            self.coordinator.group.warn(
                f"every rank was given the same {count} rows, which no loader has shared out: they count "
                f"{len(everywhere)} times. Take the batch from a DataLoader (its batch_size is that of all ranks "
                "together), give each rank other rows, or use sx.replicated(x) if all ranks compute the same; to "
                "evaluate under no_grad(), call model.eval() first"
            )
            self.watched = _WATCHED

    def _checksum(self, array: Any) -> int:
        if self.watched >= _WATCHED:
            return 0
        values = np.ascontiguousarray(array_of(array)).reshape(-1).view(np.uint8)
        return zlib.crc32(values[:: max(1, values.size // _SAMPLE)].tobytes())


def batch_of(value: Any, group: InOrder) -> Batch:
    """The batch of a loader in nested inputs. RuntimeError if there is none, or if this rank has other rows of it than
    those of its virtual shards."""
    found = shards_in(value)
    if not found:
        shapes = [str(tuple(x.shape)) for x in entries(value)]
        raise RuntimeError(
            "reproducible mode: a batch must come from a DataLoader, so that its rows are known: got "
            f"{', '.join(shapes) or 'no array'} without that knowledge. Put what changes the number of rows into the "
            "data set or the model, pass sx.replicated(x) if all ranks compute the same, and call model.eval() to "
            "evaluate under no_grad()"
        )
    batch, shards = found[0].batch, group.shards
    rows = batch.rows
    held = shards.rows(shards.owned.start, rows.total)[0], shards.rows(shards.owned[-1], rows.total)[1]
    if batch.parent is not None:
        raise RuntimeError(
            "reproducible mode: rows that a mask has selected can't be the inputs of a model, since its virtual shards "
            "are those of whole batches: select among its outputs, or inside of it"
        )
    if batch.group is not group or held != (rows.start, rows.stop):
        raise RuntimeError(
            f"reproducible mode: this rank must hold rows {held[0]} to {held[1]} of a batch of {rows.total} rows, "
            f"got rows {rows.start} to {rows.stop}: make the loader after init"
        )
    return batch


class ShardedForward:
    """Computes a loader's batch in reproducible mode: virtual shard by virtual shard.

    Inside the module, a sum over rows is Partial among V shards. Afterwards the tree sums the shards, and every rank
    computes the rest, so the gradients of sums are complete on each rank.
    """

    def __init__(self, coordinator: Coordinator) -> None:
        assert coordinator.shards is not None
        assert isinstance(coordinator.group, InOrder)
        self.coordinator, self.shards, self.group = coordinator, coordinator.shards, coordinator.group

    def run(self, module: Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """The module's results for all virtual shards of this rank, joined; of inputs that are Replicates, as it is."""
        if any(map(_is_replicate, entries((inputs, options)))) and not shards_in((inputs, options)):
            return _replicates(module(*inputs, **options))
        batch = batch_of((inputs, options), self.group)
        _begin_batch(self.coordinator, batch)
        rows = batch.rows
        buffers = buffers_of(module) if module.training else None
        numbers = Numbers(module)
        results: list[Any] = []
        self._computed: dict[tuple[int, ...], Tensor] = {}
        draws = _repeated_draws()
        for group, shard in zip(self.group.within, self.shards.owned, strict=True):
            _draw_again(draws, shard == self.shards.owned[0])
            start, stop = self.shards.rows(shard, rows.total)
            part = _part(start, stop, rows.total, group, shard)
            if buffers is not None:
                buffers.restore()
            numbers.restore()
            token = current_shard.set((shard, True))
            try:
                cut_inputs, cut_options = map_tensors((inputs, options), lambda x, part=part: self._cut(x, rows, part))  # type: ignore[misc]
                results.append(_compute(part, module, cut_inputs, cut_options))
            finally:
                current_shard.reset(token)
            if buffers is not None:
                buffers.keep()
            numbers.compare(self.group)
        _draw_again(None)
        if buffers is not None:
            buffers.combine(self.shards, rows.total)
        return self._joined(results, batch)

    def _cut(self, x: Tensor, rows: Rows, part: Batch) -> Tensor:
        place = x.place
        if not isinstance(place, Shard):
            if x.origin is not None and (x.leaf is None or x.leaf.sync is None):
                raise RuntimeError(
                    f"reproducible mode: an input of shape {tuple(x.shape)} requires a gradient and is not rows of the "
                    "batch, so its gradient would be scattered over the shards. Compute it inside of the model"
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
        """Joins the results of all shards: rows are concatenated, sums are added in the order of the tree."""
        first = results[0]
        if isinstance(first, Tensor):
            return self._joined_tensors(results, batch)
        if isinstance(first, tuple | list | deque):
            return like(first, [self._joined(list(column), batch) for column in zip(*results, strict=True)])
        if isinstance(first, dict):
            return like_dict(first, {key: self._joined([result[key] for result in results], batch) for key in first})
        found = [[*entries(result)] for result in results]
        if not found[0]:
            return first
        joined = iter([self._joined(list(column), batch) for column in zip(*found, strict=True)])
        return map_tensors(first, lambda x: next(joined))

    def _joined_tensors(self, results: list[Tensor], batch: Batch) -> Tensor:
        place = results[0].place
        if isinstance(place, Deferred):
            return self._deferred(results, batch)
        parts: list[Tensor] = [bare(result) for result in results]
        if isinstance(place, Partial):
            bounds = tuple(self.shards.rows(shard, batch.rows.total) for shard in self.shards.owned)
            total = summed_parts(*parts, batch=batch, bounds=bounds)
            return tagged(total, batch.partial(place.denominator))
        if not isinstance(place, Shard):
            if isinstance(origin := parts[0].origin, Leaf) and origin.sync is not None:
                return parts[0]  # a parameter
            return first_of(*parts, count=self.shards.count)
        places = [result.place for result in results]
        shards = [p for p in places if isinstance(p, Shard) and p.batch.known is not None]
        if len(shards) < len(places):
            raise RuntimeError(
                "reproducible mode: a model must not return rows that a mask has selected, since shards have different "
                "numbers of them: return all rows, and select outside"
            )
        shape, axis = results[0].array.shape, place.axis
        opened = [
            reshape_to(
                in_row_order(part), shape=(*shape[:axis], place.outer, own.batch.held * place.inner, *shape[axis + 1 :])
            )
            for part, own in zip(parts, shards, strict=True)
        ]
        whole = concatenate(*opened, axis=axis + 1) if len(opened) > 1 else opened[0]
        shard = batch.at(axis, place.outer, place.inner)
        return tagged(reshape_to(whole, shape=(*shape[:axis], shard.held, *shape[axis + 1 :])), shard)

    def _deferred(self, results: list[Tensor], batch: Batch) -> Tensor:
        """What the forward could not compute of one shard alone; see `core.deferred`."""
        key = tuple(map(id, results))
        if key not in self._computed:
            waiting = [place for result in results if isinstance(place := result.place, Deferred)]
            if len(waiting) < len(results) or len({place.apply for place in waiting}) > 1:
                raise RuntimeError(
                    "reproducible mode: the forward has computed something else of one virtual shard than of another, "
                    "after sums over its rows: a branch must not depend on which rows the shard has"
                )
            operands = [
                self._joined_tensors(list(column), batch) if isinstance(column[0], Tensor) else column[0]
                for column in zip(*(place.inputs for place in waiting), strict=True)
            ]
            value = waiting[0].apply(*operands, **waiting[0].options)
            if (origin := results[0].origin) is None:
                value = value.detach()
            elif origin.hooks and value.origin is not None:
                value.origin.hooks = [*(value.origin.hooks or ()), *origin.hooks]
            self._computed[key] = value
        return self._computed[key]


def evaluated(module: Module, *inputs: Any) -> Any:
    """The results of a model, wrapped or not. Reproducible mode computes a bare one shard by shard too, so that every
    rank computes its own rows. For evaluation: no gradient is synchronised."""
    group = current_group()
    wrapped = any(hasattr(each, "comm") for each in module.modules())
    if not isinstance(group, InOrder) or wrapped or not shards_in(inputs):
        return module(*inputs)
    return ShardedForward(coordinator_of(group.comm)).run(module, inputs, {})


@host
def _must_be(are_rows: Array, captured: list[bool]) -> None:
    """Compares which inputs are rows of the batch with what a captured step was made for."""
    if are_rows.tolist() != captured:
        raise RuntimeError(
            "compile: an input counts as rows of the batch if it is as long as the batch on every rank; now this is "
            "not as when the step was captured: pass it by a DataLoader, or as sx.replicated(x)"
        )


@host
def _part(start: int, stop: int, total: int, group: Group, shard: int) -> Batch:
    return Batch(Rows(start, stop, total), group, shard)


@host
def _repeated_draws() -> RepeatedDraws:
    return RepeatedDraws()


@host
def _draw_again(draws: RepeatedDraws | None, first: bool = False) -> None:
    if draws is not None:
        draws.next(first)
    repeated_draws.set(draws)
