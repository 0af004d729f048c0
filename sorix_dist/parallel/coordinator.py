"""The coordinator of a step: it owns agreement, reduction and memory for all models that one communicator trains."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isfinite
from typing import Any, NoReturn
from weakref import ReferenceType, ref

from sorix_dist.comm import Comm
from sorix_dist.core.capture import host, outside
from sorix_dist.core.fingerprint import Criteria, collect_criteria
from sorix_dist.core.flat import Flat, synchronise
from sorix_dist.core.graph import Described, Leaf, Node, Sync, Visitor
from sorix_dist.core.memory import PRIVATE, ParameterMemory
from sorix_dist.core.placement import Partial, Placement, Rows, Shard
from sorix_dist.core.tensor import Tensor
from sorix_dist.parallel.accumulation import Accumulation
from sorix_dist.parallel.agreement import BACKWARD, StepFingerprint, consensus_of
from sorix_dist.parallel.comm_hooks import Hook, HookReducer, fp16_compress, is_exchanged
from sorix_dist.parallel.differences import History, describe_difference, not_finite, unequal_number, unequal_reduction
from sorix_dist.parallel.groups import InOrder, Ranks, group_of
from sorix_dist.parallel.hosts_reducer import HostsReducer, peers_of
from sorix_dist.parallel.reducers import OVERWRITE, Bucket, LocalReducer, Reducer
from sorix_dist.parallel.shared_memory import SharedMemory, SharedMemoryReducer
from sorix_dist.parallel.tree_reducers import DelayedTreeReducer, MessageTreeReducer, SharedTreeReducer
from sorix_dist.parallel.world import virtual_shards
from sorix_dist.watchdog import watch
from sorix_dist.watchdog.call_site import call_site

NO_ROWS = Rows(0, 0, 0)
_PRIME = (1 << 61) - 1
_TOLERANCE = 1e-8  # of the squares of numbers that must be the same: four digits
_MODE_BITS = 33
_MODE = (1 << _MODE_BITS) - 1
_LOCAL = Partial, Shard


def coordinator_of(comm: Comm) -> Coordinator:
    """The coordinator of a communicator. All models wrapped in it share it, so one backward may reach several."""
    found: Coordinator | None = comm.cache.get(Coordinator)
    if found is None:
        found = comm.cache[Coordinator] = Coordinator(comm)
    return found


class Coordinator(Sync):
    """Takes the gradients of a backward from the tape, makes the ranks agree, reduces, and commits.

    group: the ranks; shards: the virtual shards in reproducible mode, else None; pending: whether there are gradients
    that are not summed over the ranks yet; rows: of the latest batch; accumulation: a running `accumulate`.
    """

    def __init__(self, comm: Comm) -> None:
        self.comm = comm
        self.group: Ranks = group_of(comm, virtual_shards(comm))
        self.shards = self.group.shards if isinstance(self.group, InOrder) else None
        self.consensus = consensus_of(comm)
        self._shared_memory = SharedMemory(comm, self.fence)
        self._peers = peers_of(comm)
        self._numbers = itertools.count()
        self._buckets: list[ReferenceType[Bucket]] = []
        self._follows = self.shards is not None  # whether there is something to do at each node of a walk
        self._current: list[Bucket] | None = None  # of the backwards since the last agreement
        self.synchronising = True
        self.pending = False
        self.accumulation: Accumulation | None = None
        self.rows = NO_ROWS
        self._losses: list[Tensor] = []  # whose global values come with the next sum
        self._walks = 0  # backwards that are running; more than one if a hook calls backward
        self._steps = 0  # that have been synchronised
        self._updates = 0  # of parameters by optimizers
        # Since the last agreement:
        self._backwards = 0
        self._options = 0  # a digest of the options of optimizers that have stepped
        self._optimizers: dict[int, Described] = {}  # those optimizers
        self._criteria: Criteria = {}  # that backwards have walked through

    # -- the models

    def add(self, bucket: Bucket, shared: bool, hook: Hook | None = None, delayed: bool = False) -> None:
        """Starts to synchronise the gradients of a bucket, by `hook` if there is one, `delayed` by a
        `DelayedTreeReducer`. If `shared`, its parameters move to one read-only copy per host. A call of all ranks, for
        the same parameters."""
        flat = bucket.flat
        if shared:
            flat.freeze(self.memory)
        flat.keeper = bucket
        bucket.number = next(self._numbers)
        self._buckets = [known for known in self._buckets if known() is not None] + [ref(bucket)]
        self._current = None
        self.use_hook(bucket, hook, delayed)
        synchronise(flat, self)

    def remove(self, bucket: Bucket) -> None:
        """Forgets a bucket."""
        self._buckets = [known for known in self._buckets if known() not in (None, bucket)]
        self._current = None

    @property
    def memory(self) -> ParameterMemory:
        """The memory of what the ranks of a host share; private memory if there is one rank per host."""
        return self._shared_memory if self.comm.size > self.comm.hosts else PRIVATE

    @property
    def buckets(self) -> list[Bucket]:
        """The buckets of the models that still exist. Ranks may notice at different times that a model is gone."""
        return [bucket for known in self._buckets if (bucket := known()) is not None]

    def use_hook(self, bucket: Bucket, hook: Hook | None, delayed: bool = False) -> None:
        """Reduces a bucket by `hook`, or by the default reducer for these ranks. A call of all ranks."""
        bucket.reducer = self._reducer(bucket.flat, hook, delayed)
        self._follows = self._follows or bucket.reducer.overlaps

    def _reducer(self, flat: Flat, hook: Hook | None, delayed: bool) -> Reducer:
        comm, memory, shards, peers = self.comm, self._shared_memory, self.shards, self._peers
        if shards is not None and delayed:
            return DelayedTreeReducer(flat, shards, hook is fp16_compress)
        if shards is not None and comm.hosts == 1:
            return SharedTreeReducer(flat, shards, memory)
        if shards is not None:
            return MessageTreeReducer(flat, shards, hook is fp16_compress)  # the only hook that there is here
        if peers is not None and (is_exchanged(hook) or peers.slices * comm.hosts == comm.size):
            return HostsReducer(flat, memory, peers, hook)
        if hook is not None:
            return HookReducer(flat, comm, hook)
        return LocalReducer(flat) if comm.size == 1 else SharedMemoryReducer(flat, memory)

    # -- around a backward

    def before_backward(self, place: Placement) -> tuple[float, Visitor | None]:
        local = isinstance(place, _LOCAL)
        if local and place.group is not self.group:  # type: ignore[union-attr]
            raise RuntimeError(
                "the loss follows from rows of other ranks than those of the wrapped model, or from an attribute that "
                "a model has set for a single virtual shard: compute it from what the model returns"
            )
        if self._walks and self.shards is not None:
            raise RuntimeError("reproducible mode: a hook of a backward must not call backward itself")
        factor = 1.0 if self.accumulation is None else self.accumulation.add(place)
        if not self._walks:
            watch.begins("backward", self._steps + 1)
            collect_criteria(self._criteria)
            if not self.pending:
                self._begin()
            self._backwards += 1
        self._walks += 1
        return factor if local else factor / self.group.parts, self._visitor() if self._follows else None

    def _begin(self) -> None:
        self._criteria.clear()
        last = self.synchronising and self.accumulation is None
        self._current = self.buckets
        for bucket in self._current:
            bucket.reducer.begin_backward(last)
            if bucket.nonfinite == "skip":
                bucket.reducer.stage()  # so that it can be left out

    def _visitor(self) -> Visitor:
        """The visitor that selects the buffer of a node's virtual shard, or starts to send complete gradients."""
        if self.shards is not None:
            return self._shard_visitor()
        send = self._sender()

        def visit(edge: Node | Leaf, gradient: Any) -> None:
            send()

        return visit

    def _sender(self) -> Callable[[], None]:
        overlapping = [bucket.reducer for bucket in self.buckets if bucket.reducer.overlaps]

        def send() -> None:
            for reducer in overlapping:
                reducer.send_complete()

        return send

    def _shard_visitor(self) -> Visitor:
        current: int | None = None
        self._select(None)

        def visit(edge: Node | Leaf, gradient: Any) -> None:
            nonlocal current
            shard = edge.shard if isinstance(edge, Node) else None
            if shard != current:
                current = shard
                self._select(shard)

        return visit

    def _select(self, shard: int | None) -> None:
        for bucket in self.buckets:
            bucket.reducer.select(shard)

    def after_backward(self, loss: Tensor) -> None:
        if self.shards is not None:
            self._select(None)
        place, group = loss.place, self.group
        if isinstance(place, Partial):
            if loss.array.size == 1 and not group.single:
                if place.group.ordered:
                    group.expect(loss.array.item())
                else:
                    self._losses.append(loss)
            for number in place.alike:
                group.expect(number)
        elif loss.array.size == 1 and not group.single and not isinstance(place, Shard):
            group.expect(loss.array.item())
        self._walks -= 1
        if self._walks:  # a hook has called this backward: the outer one sums its gradients
            return
        if self.synchronising and self.accumulation is None:
            self.synchronise(1.0)
        else:
            self.pending = True

    def backward_failed(self) -> None:
        if self.shards is not None:
            self._select(None)
        self._losses, self.group.expected, self._walks, self._current = [], [], 0, None
        if self.accumulation is not None:
            self.accumulation.failed = True
        for bucket in self.buckets:
            bucket.reducer.reset()
        self.pending = False
        self._backwards = 0

    def discard(self, leaf: Leaf) -> None:
        for bucket in self.buckets:
            bucket.reducer.discard(leaf)

    def before_step(self, digest: int, optimizer: Described) -> None:
        self._optimizers[id(optimizer)] = optimizer
        self._updates += 1
        self._options = (31 * self._options + digest) % _PRIME  # other orders of two optimizers give other digests
        watch.begins("optimizer.step", self._steps)

    # -- agree, reduce, commit

    def synchronise(self, scale: float) -> None:
        """Adds to `grad` the sum over the ranks, times `scale`, of all buckets that the backward of any rank has
        reached. A call of all ranks, which agree on their fingerprints before anything is added."""
        losses, expected, values = self._losses, self.group.expected, []
        if losses:
            self._losses, values = [], [loss.array.item() for loss in losses]
        if expected:
            self.group.expected = []
            values += expected + [number * number for number in expected]
        by_key, reached, used, meanwhile = {}, [], 0, None  # a key holds a bucket's number and its reduce mode
        buckets, self._current = self._current or self.buckets, None
        several_hosts = self.comm.hosts > 1
        for bucket in buckets:
            key = bucket.number << _MODE_BITS | bucket.reduce_mode()
            by_key[key] = bucket
            if bucket.reducer.end_backward():
                reached.append(key)
                if several_hosts:
                    used = (31 * used + bucket.reducer.used_digest()) % _PRIME
        if several_hosts:
            values.append(any([bucket.reducer.withdrawn for bucket in buckets]))  # noqa: C419 (faster)
            meanwhile = self._sender()
        rows, digest = self.rows, self._options + sum(self._criteria) + len(expected)
        fingerprint = BACKWARD, self._backwards, digest, rows.epoch, rows.batch, rows.order, self._updates
        differing, keys, sums, same_used = self.consensus.agree(fingerprint, reached, values, used, meanwhile)
        self.pending, self._backwards, self._options = False, 0, 0
        self._steps += 1
        if differing is not None:
            self._refuse(differing, self._steps)
        self._optimizers.clear()
        if expected:
            self._compare(expected, sums[len(losses) :])
        summed = []
        for key in keys:
            if key not in by_key:
                number = key >> _MODE_BITS
                known = number in {bucket.number for bucket in by_key.values()}
                raise unequal_reduction(self.comm.rank, number, known)
            summed.append((by_key[key], key & _MODE == OVERWRITE and scale == 1))
        start_over = several_hosts and sums[-1] > 0
        # The ranks agree: from here on gradients are mixed.
        fine = True
        for bucket, overwrite in summed:
            bucket.reducer.reduce(overwrite, same_used, start_over)
            fine = (bucket.nonfinite == "allow" or bucket.reducer.is_finite()) and fine
        if not self.consensus.commit(fine):
            self._leave_out([bucket for bucket, _ in summed])
            return
        written = False
        for bucket, _ in summed:
            written = bucket.reducer.commit(scale) or written
        if written:
            self.fence("backward")
        for i, loss in enumerate(losses):
            loss.shown = sums[i]

    def fence(self, action: str, digest: int = 0, everywhere: bool = False) -> None:
        """Waits for the ranks of this host; see `ParameterMemory.fence`. It also compares the options of optimizers
        that have stepped since the last agreement."""
        differing = self.consensus.fence(action, self._options + digest, everywhere)
        if differing is not None:
            self._options = 0  # reported once
            self._refuse(differing, self._steps + 1)

    def _compare(self, numbers: list[float], sums: list[float]) -> None:
        """RuntimeError on every rank if one of the numbers differs between ranks; sums: the sums over the ranks of the
        numbers, then of their squares."""
        for number, total, squares in zip(numbers, sums, sums[len(numbers) :], strict=False):
            if squares * self.comm.size - total * total <= _TOLERANCE * squares * self.comm.size:
                continue
            everywhere = self.comm.gather_objects(number)
            if any(map(isfinite, everywhere)):
                raise unequal_number(everywhere, call_site().where)

    def _refuse(self, fingerprints: list[StepFingerprint], step: int) -> NoReturn:
        history = History(
            [optimizer.describe() for optimizer in self._optimizers.values()],
            [criterion.describe() for criterion in self._criteria.values()],
        )
        self._optimizers.clear()
        lines, histories = zip(*self.comm.gather_objects((call_site().where, history)), strict=True)
        raise RuntimeError(describe_difference(fingerprints, lines, histories, step))

    def _leave_out(self, reached: list[Bucket]) -> None:
        """Discards the gradients of a backward because some are not finite. FloatingPointError, which names them,
        unless all watched buckets say "skip"."""
        watched = [bucket for bucket in reached if bucket.nonfinite != "allow"]
        own = [(bucket.names[found[0]], found[1]) for bucket in watched if (found := bucket.reducer.first_not_finite())]
        for bucket in reached:
            bucket.reducer.reset()
        everywhere = self.comm.gather_objects(own[0] if own else None)
        if all(bucket.nonfinite == "skip" for bucket in watched):
            return
        raise not_finite(everywhere, self._steps, call_site().where)

    # -- several backwards for one sum

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backwards inside the block accumulate on this rank; the next backward outside sums them over the ranks."""
        outside("no_sync can't be captured; accumulate can")
        before, self.synchronising = self.synchronising, False
        try:
            yield
        finally:
            self.synchronising = before

    @host
    def accumulate(self) -> Accumulation:
        """Begins an accumulation."""
        if self.accumulation is not None or self.pending:
            raise RuntimeError(
                "accumulate: the gradients of earlier backwards are not synchronised yet: end the loop over "
                "accumulate, or call backward outside of no_sync, before the next accumulate"
            )
        for bucket in self.buckets:
            bucket.reducer.begin_backward(False)
            bucket.reducer.stage()
        self.accumulation = Accumulation()
        return self.accumulation

    @host
    def finish(self) -> None:
        """Ends an accumulation: sums its gradients over the ranks."""
        accumulation, self.accumulation = self.accumulation, None
        assert accumulation is not None
        accumulation.check()
        self.synchronise(accumulation.scale)

    def abandon(self) -> None:
        """Ends an accumulation whose loop was left early, and discards its gradients."""
        self.accumulation = None
        self.backward_failed()
