"""The virtual workers of a rank: each one's weights, buffers and optimizer state, and the turns in which the model and
the optimizer have them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from sorix_dist.core import random as rng
from sorix_dist.core.flat import Flat, flatten, synchronise
from sorix_dist.core.graph import Described, Sync, Visitor, zero
from sorix_dist.core.memory import read_only
from sorix_dist.core.placement import Partial, Placement, Shard
from sorix_dist.core.random import Draws, functional_draws, row_draws
from sorix_dist.core.tensor import Array
from sorix_dist.nn import Module
from sorix_dist.optim.optimizer import Optimizer
from sorix_dist.optim.saved_state import Snapshot
from sorix_dist.parallel.comm_hooks import fp16_compress
from sorix_dist.parallel.coordinator import Coordinator
from sorix_dist.parallel.float16 import HalfBlocks
from sorix_dist.parallel.groups import OfWorker
from sorix_dist.parallel.module_state import owned_buffers
from sorix_dist.parallel.reducers import Bucket, GradientBuffer
from sorix_dist.parallel.tree_reducers import DelayedTreeReducer, ShardReducer
from sorix_dist.parallel.virtual_shards import VirtualShards
from sorix_dist.watchdog import watch

_STREAM = 0x10CA1  # of the workers' random numbers
_MASKS = 1 << 20  # dropout masks of one layer that a worker may draw in a batch


class WorkerSync(Sync):
    """Lets backwards and steps happen only while the model is that of a worker.

    owner: the LocalSGD, which lives as long as the model: its `unwrap` alone knows the weights of the last sum.
    worker: its number, else None; batch: that of its batch; stepped: whether the optimizer has stepped in this turn;
    summing: whether LocalSGD itself uses the optimizers; advance: passes on the messages of sums that are under way.
    """

    def __init__(self, owner: object, advance: Callable[[], None]) -> None:
        super().__init__(OfWorker())
        self.owner, self.advance = owner, advance
        self.worker: int | None = None
        self.batch = 0
        self.stepped = self.summing = False

    @contextmanager
    def sum(self) -> Iterator[None]:
        """A context in which LocalSGD uses the optimizers."""
        self.summing = True
        try:
            yield
        finally:
            self.summing = False

    def before_backward(self, place: Placement) -> tuple[float, Visitor | None]:
        self._refuse_outside("backward()")
        watch.begins("backward", self.batch)
        self.advance()
        if isinstance(place, Shard | Partial) and place.group is not self.group:
            raise RuntimeError(
                "backward: in a turn of LocalSGD the loss follows from rows of the global batch: compute it from the "
                "rows that local.workers() yields"
            )
        return 1.0, None

    def before_step(self, digest: int, optimizer: Described) -> None:
        if not self.summing:
            self._refuse_outside("optimizer.step()")
            watch.begins("optimizer.step", self.batch)
            self.advance()
        self.stepped = True

    def before_state(self) -> None:
        if not self.summing:
            raise RuntimeError(
                "state_dict: with LocalSGD each worker has an optimizer state of its own: save and load local=local "
                "instead of the optimizer"
            )

    def _refuse_outside(self, what: str) -> None:
        if self.worker is None:
            raise RuntimeError(
                f"{what} outside of `for x, y in local.workers(xb, yb):` would train no worker of LocalSGD: make the "
                "step inside of that loop, or local.unwrap() the model [docs: fewer-sums]"
            )


class Workers:
    """The virtual workers of this rank, as states of one model and one optimizer.

    The flat storages have the weights of the worker with the latest turn, and the reducers' buffers those of the
    others. Outside of turns the parameters are views of the weights of the last sum.

    half: whether what workers have moved is rounded to float16; overlap: whether sums travel while workers train on;
    under_way: whether one does.
    moved: the workers with weights of their own, which have trained since the last sum; with overlap all of them;
    anchors: the weights of the last sum that is complete, from the first turn on.
    """

    under_way = False

    def __init__(
        self, owner: object, model: Module, optimizer: Optimizer, coordinator: Coordinator, half: bool, overlap: bool
    ) -> None:
        assert coordinator.shards is not None
        self.shards: VirtualShards = coordinator.shards
        self.optimizer, self.coordinator, self.sync = optimizer, coordinator, WorkerSync(owner, self.advance)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.half, self.overlap = half, overlap
        self.buckets = [self._bucket(owner, flat, names) for flat in flatten(model.parameters())]
        self._rounding = HalfBlocks()
        # What rounding has taken from each worker's share, by bucket: it is added to the next one.
        rounded = self.buckets if half else []
        self._missing = {w: [np.zeros_like(bucket.flat.data) for bucket in rounded] for w in self.shards.owned}
        # With overlap, by bucket: during a sum, what each worker has moved; then the weights from which it goes on.
        late = self.buckets if overlap else []
        self._starts = {w: [np.zeros_like(bucket.flat.data) for bucket in late] for w in self.shards.owned}
        self._owned_buffers = owned_buffers(model)
        self._show([coordinator.comm.broadcast_object(value) for value in self.values()])
        self._draws = [x for module in model.modules() for x in vars(module).values() if isinstance(x, Draws)]
        self.initial = optimizer.snapshot()
        self._snapshots: dict[int, Snapshot] = {}  # optimizer states of workers other than `_loaded`
        self._loaded: int | None = None  # the worker of the latest turn
        self._views = [[parameter.array for parameter in bucket.flat.parameters] for bucket in self.buckets]
        self.anchors: list[Array] = []

    def _bucket(self, owner: object, flat: Flat, names: Mapping[int, str]) -> Bucket:
        coordinator = self.coordinator
        coordinator.comm.broadcast(flat.data)
        bucket = Bucket(owner, coordinator, flat, [names[id(p)] for p in flat.parameters], "raise")
        coordinator.add(bucket, shared=False, hook=fp16_compress if self.half else None, delayed=self.overlap)
        synchronise(flat, self.sync)
        return bucket

    def begin_round(self) -> None:
        """Makes all workers start from the model's present weights and buffers."""
        self.moved: set[int] = set()
        self.anchors = []
        self.under_way = False
        for start in itertools.chain(*self._starts.values()):
            start.fill(0)
        self._buffers: dict[int, list[Array]] = {}
        self.forget_gradients()
        self._show_weights(self._views)

    def rewind(self) -> None:
        """Returns the flat storages to the weights of the last sum."""
        for bucket, anchor in zip(self.buckets, self.anchors, strict=False):
            np.copyto(bucket.flat.data, anchor)

    # -- turns

    def values(self) -> list[Array]:
        """Copies of the model's buffers, such as batch norm's running statistics."""
        return [getattr(module, name).array.copy() for module, name in self._owned_buffers]

    def begin_batch(self) -> list[Array]:
        """Remembers the weights of the last sum, and returns the buffers that the model shows outside of turns."""
        self._remember()
        return self.values()

    def _remember(self) -> None:
        if self.anchors:
            return
        self.anchors = [bucket.flat.data.copy() for bucket in self.buckets]
        if self.overlap and not self.moved:
            self._set_out()
        frozen = [bucket.flat.views(read_only(a)) for bucket, a in zip(self.buckets, self.anchors, strict=True)]
        self._last_sum = frozen

    def end_batch(self, buffers: list[Array], batches: int) -> None:
        """Shows the weights of the last sum, read-only because a change would be lost, and the buffers that
        `begin_batch` returned."""
        self._show(buffers)
        self._show_weights(self._last_sum)
        self._number_masks(batches, 0)

    @contextmanager
    def turn(self, worker: int, batches: int, buffers: list[Array]) -> Iterator[None]:
        """A context in which the model and the optimizer are those of a worker.

        batches: the number of batches so far, from which the worker's random numbers follow; buffers: those of a worker
        that has not moved yet.
        """
        seed = rng.seed()
        stream = seed.generator
        self._load(worker)
        self._show_weights(self._views)
        self._show(self._buffers.get(worker, buffers))
        self.forget_gradients()
        self._number_masks(batches, worker)
        seed.generator = partial(rng.stream, _STREAM, batches, worker)
        self.sync.worker, self.sync.batch, self.sync.stepped = worker, batches + 1, False
        try:
            yield
        finally:
            self.sync.worker, seed.generator = None, stream
            self.forget_gradients()
        self._buffers[worker] = self.values()
        self.moved.add(worker)
        self.advance()

    def has_gradients(self) -> bool:
        """Whether a parameter has a gradient."""
        return any(leaf.total.written for bucket in self.buckets for leaf in bucket.leaves)

    def forget_gradients(self) -> None:
        """Marks all gradients as absent, and makes backwards write to `grad` itself."""
        for bucket in self.buckets:
            for leaf in bucket.leaves:
                leaf.local = leaf.total
            zero(bucket.leaves)

    def _load(self, worker: int) -> None:
        """Puts the weights and the optimizer state of a worker in the place of those of the latest one."""
        before = self._loaded
        if before == worker:
            return
        if before is not None:
            self._snapshots[before] = self.optimizer.snapshot()
        self.optimizer.restore(self._snapshots.pop(worker, self.initial))
        for bucket, anchor in zip(self.buckets, self.anchors, strict=True):
            if before in self.moved:
                np.copyto(self._buffer(bucket, before).array, bucket.flat.data)
            np.copyto(bucket.flat.data, self._buffer(bucket, worker).array if worker in self.moved else anchor)
        self._loaded = worker

    def _weights(self, bucket: Bucket, worker: int) -> Array:
        """The weights of a worker that has moved."""
        return bucket.flat.data if worker == self._loaded else self._buffer(bucket, worker).array

    def _show_weights(self, views: list[list[Array]]) -> None:
        for bucket, of_bucket in zip(self.buckets, views, strict=True):
            for parameter, view in zip(bucket.flat.parameters, of_bucket, strict=True):
                parameter.array = view

    def _buffer(self, bucket: Bucket, worker: int) -> GradientBuffer:
        assert isinstance(bucket.reducer, ShardReducer)
        return bucket.reducer.of_shard(worker)

    def _show(self, values: list[Array]) -> None:
        for (module, name), value in zip(self._owned_buffers, values, strict=True):
            np.copyto(getattr(module, name).array, value)

    def _number_masks(self, batches: int, worker: int) -> None:
        """Numbers the next masks by the batch and the worker, whatever this rank has drawn so far."""
        for draws in (*self._draws, functional_draws(), row_draws()):
            draws.calls = (batches * self.shards.count + worker) * _MASKS

    # -- the sum

    def write_drifts(self, shares: Array) -> None:
        """Makes the reducers' buffers what each worker's weights have moved, times its share of the rows; returns the
        flat storages to the weights of the last sum. Without any rows the buffers are written already."""
        self._remember()
        for i, bucket in enumerate(self.buckets):
            bucket.reducer.begin_backward(True)
            for worker in self.moved:
                buffer = self._buffer(bucket, worker)
                if shares.any():
                    self._write_drift(buffer.array, i, worker, bucket.flat.dtype.type(shares[worker]))
                for accumulator in buffer.accumulators:
                    accumulator.written = True
        self.rewind()

    def _write_drift(self, drift: Array, i: int, worker: int, share: np.floating[Any]) -> None:
        start = self._starts[worker][i] if self.overlap else self.anchors[i]
        moved = np.subtract(start, self._weights(self.buckets[i], worker), out=start if self.overlap else drift)
        np.multiply(moved, share, out=drift)
        if self.half:
            drift += (missing := self._missing[worker][i])
            np.copyto(missing, drift)
            self._rounding.round(drift)
            missing -= drift

    def start_sums(self) -> None:
        """Starts the sums of what `write_drifts` has written, which are complete at the next sum."""
        for bucket in self.buckets:
            self._late(bucket).start()
        self.under_way = True

    def train_on(self) -> None:
        """Makes every worker go on from the flat storages' weights less what it has moved, which is in the sum that is
        under way."""
        for bucket, anchor in zip(self.buckets, self.anchors, strict=True):
            np.copyto(anchor, bucket.flat.data)
        self._set_out()
        self._buffers = {}
        self.forget_gradients()
        self.advance()

    def _set_out(self) -> None:
        for worker, starts in self._starts.items():
            for bucket, anchor, start in zip(self.buckets, self.anchors, starts, strict=True):
                np.subtract(anchor, start, out=start)
                np.copyto(self._weights(bucket, worker), start)
            self.moved.add(worker)

    def advance(self) -> None:
        """Passes on the messages of sums that are under way, as far as that needs no waiting."""
        for bucket in self.buckets:
            bucket.reducer.send_complete()

    def complete(self) -> list[Array]:
        """Waits for the sums that are under way, if there are any, and returns them. A call of all ranks."""
        for bucket in self.buckets if self.under_way else []:
            self._late(bucket).complete()
        return [bucket.reducer.total.copy() for bucket in self.buckets if self.under_way]

    def _late(self, bucket: Bucket) -> DelayedTreeReducer:
        assert isinstance(bucket.reducer, DelayedTreeReducer)
        return bucket.reducer

    def round_sums(self) -> None:
        """Rounds the sums, where no message has done that already."""
        if self.half and not self.overlap and self.coordinator.comm.hosts == 1:
            for bucket in self.buckets:
                self._rounding.round(bucket.flat.grad)

    def average_buffers(self, shares: Array) -> None:
        """Makes the model's buffers the means over all workers; integers, which count batches, the largest."""
        if not self._owned_buffers:
            return
        shown = self.values()
        parts = [self._buffers.get(worker, shown) for worker in self.shards.owned]
        weights = shares[self.shards.owned.start : self.shards.owned.stop]
        found = []
        for i, like in enumerate(shown):
            of_workers = np.array([part[i].reshape(-1) for part in parts])
            if like.dtype.kind == "f":
                value = self.shards.sum(of_workers.astype(np.float64) * weights[:, None])
            else:
                value = self.shards.table(of_workers).max(axis=0)
            found.append(value.reshape(like.shape).astype(like.dtype))
        self._show(found)

    # -- state

    def arrays(self, between: bool) -> dict[str, list[Array]]:
        """The state of each worker of this rank, by name. between: two sums, so that weights and buffers belong to
        it."""
        found: dict[str, list[Array]] = {}
        shown, last = self.values(), self.anchors or [bucket.flat.data for bucket in self.buckets]
        for worker in self.shards.owned:
            own = self.optimizer.snapshot() if worker == self._loaded else self._snapshots.get(worker, self.initial)
            state = {f"optimizer.{name}": array for name, array in own.items()}
            state.update({f"missing.{i}": array for i, array in enumerate(self._missing[worker])})
            if between:
                moved = worker in self.moved
                for i, bucket in enumerate(self.buckets):
                    state[f"weights.{i}"] = self._weights(bucket, worker) if moved else last[i]
                state.update({f"starts.{i}": start for i, start in enumerate(self._starts[worker])})
                buffers = self._buffers.get(worker, shown)
                state.update({f"buffers.{i}": value for i, value in enumerate(buffers)})
            for name, array in state.items():
                found.setdefault(name, []).append(array)
        return found

    def state_dict(self, between: bool) -> dict[str, Array]:
        """The states of the workers of all ranks, by name, one row each. A call of all ranks."""
        found = {}
        for name, arrays in self.arrays(between).items():
            rows = np.array([np.frombuffer(array.tobytes(), np.uint8) for array in arrays])  # whose sums are exact
            like, table = arrays[0], np.ascontiguousarray(self.shards.table(rows))
            found[name] = np.frombuffer(table.tobytes(), like.dtype).reshape(self.shards.count, *like.shape)
        return found

    def load_state_dict(self, states: Mapping[str, Array], between: bool, sums: Sequence[Array]) -> None:
        """Loads what fits the names and shapes of `arrays`, at the beginning of a round, and the sums that were under
        way."""
        self._loaded = None
        self.under_way = len(sums) > 0
        for bucket, total in zip(self.buckets, sums, strict=False):
            np.copyto(bucket.reducer.total, total)
        for worker in self.shards.owned:
            own = {name: np.array(states[name][worker]) for name in states}
            self._snapshots[worker] = {
                name.removeprefix("optimizer."): a for name, a in own.items() if name.startswith("optimizer.")
            }
            self._missing[worker] = [own[f"missing.{i}"] for i in range(len(self._missing[worker]))]
            if between:
                for i, bucket in enumerate(self.buckets):
                    np.copyto(self._buffer(bucket, worker).array, own[f"weights.{i}"])
                for i, start in enumerate(self._starts[worker]):
                    np.copyto(start, own[f"starts.{i}"])
                self._buffers[worker] = [own[f"buffers.{i}"] for i in range(len(self._owned_buffers))]
                self.moved.add(worker)
