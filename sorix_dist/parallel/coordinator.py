"""The coordinator of a step: it owns agreement, reduction and memory for all models that one communicator trains."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from weakref import ReferenceType, ref

from sorix_dist.comm import Comm
from sorix_dist.core.fingerprint import Criteria, collect_criteria
from sorix_dist.core.flat import synchronise
from sorix_dist.core.graph import Described, Leaf, Sync, Visitor
from sorix_dist.core.memory import PRIVATE, ParameterMemory
from sorix_dist.core.placement import Partial, Placement, Rows, Shard
from sorix_dist.core.tensor import Tensor
from sorix_dist.parallel import differences
from sorix_dist.parallel.accumulation import Accumulation
from sorix_dist.parallel.agreement import BACKWARD, MOST_VALUES, StepFingerprint
from sorix_dist.parallel.comm_hooks import Hook
from sorix_dist.parallel.groups import InOrder, Ranks, group_of
from sorix_dist.parallel.hosts import peers_of, sender
from sorix_dist.parallel.reducers import OVERWRITE, Bucket
from sorix_dist.parallel.selection import consensus_of, reducer_of
from sorix_dist.parallel.shared_memory import SharedMemory
from sorix_dist.parallel.tree_reducers import shard_visitor
from sorix_dist.parallel.world import virtual_shards
from sorix_dist.watchdog import watch

NO_ROWS = Rows(0, 0, 0)
_PRIME = (1 << 61) - 1
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
    that are not summed over the ranks yet; rows: of the latest batch; accumulation: a running `accumulate`; steps: how
    many have been synchronised.
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
        self._losses: list[Tensor] = []  # their global values come with the next sum
        self._terms: list[Tensor] = []  # of these losses
        self._walks = 0  # backwards that are running; more than one if a hook calls backward
        self.steps = 0
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
        bucket.reducer = reducer_of(bucket.flat, hook, self._shared_memory, self.shards, self._peers, delayed)
        self._follows = self._follows or bucket.reducer.overlaps

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
            watch.begins("backward", self.steps + 1)
            collect_criteria(self._criteria)
            if not self.pending:
                self._criteria.clear()
                last = self.synchronising and self.accumulation is None
                self._current = self.buckets
                for bucket in self._current:
                    bucket.reducer.begin_backward(last)
                    if bucket.nonfinite == "skip":
                        bucket.reducer.stage()  # so that it can be left out
            self._backwards += 1
        self._walks += 1
        return factor if local else factor / self.group.parts, self._visitor() if self._follows else None

    def _visitor(self) -> Visitor:
        """The visitor that selects the buffer of a node's virtual shard, or starts to send complete gradients."""
        if self.shards is not None:
            return shard_visitor(self._select)
        send = sender(self.buckets)
        return lambda edge, gradient: send()

    def _select(self, shard: int | None) -> None:
        for bucket in self.buckets:
            bucket.reducer.select(shard)

    def after_backward(self, loss: Tensor, terms: Sequence[Tensor] = ()) -> None:
        if self.shards is not None:
            self._select(None)
        place, group = loss.place, self.group
        if isinstance(place, Partial):
            if not group.single and loss.array.size == 1:
                if place.group.ordered:
                    group.expect(loss.array.item())
                else:
                    self._losses.append(loss)
                    self._terms += terms
            for number in place.constants:
                group.expect(number)
        elif not group.single and loss.array.size == 1 and not isinstance(place, Shard):
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
        self._losses, self._terms, self._walks, self._current = [], [], 0, None
        self.group.expected, self.group.compared = [], []
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
        watch.begins("optimizer.step", self.steps)

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
        reached, used, meanwhile = dict[int, Bucket](), 0, None
        if compared := self.group.compared:
            self.group.compared = []
            for _, number, *_ in compared:
                used = (31 * used + (hash(number) if number == number else 0)) % _PRIME  # two nan have two hashes
        buckets, self._current = self._current or self.buckets, None
        several_hosts = self.comm.hosts > 1
        for bucket in buckets:
            if bucket.reducer.end_backward():
                reached[bucket.number << _MODE_BITS | bucket.reduce_mode()] = bucket
                if several_hosts:
                    used = (31 * used + bucket.reducer.used_digest()) % _PRIME
        if several_hosts:
            values.append(any([bucket.reducer.withdrawn for bucket in buckets]))  # noqa: C419 (faster)
            meanwhile = sender(buckets)
        terms, count = self._terms, len(values)
        if terms:
            self._terms, terms = [], terms[: max(0, MOST_VALUES - count)]
            values += [term.array.item() for term in terms]
            used = (31 * used + len(terms)) % _PRIME  # a rank whose loss is of fewer models has others
        rows, digest = self.rows, self._options + sum(self._criteria) + len(expected)
        fingerprint = BACKWARD, self._backwards, digest, rows.epoch, rows.batch, rows.order, self._updates
        differing, keys, sums, same_used = self.consensus.agree(fingerprint, [*reached], values, used, meanwhile)
        self.pending, self._backwards, self._options, self.steps = False, 0, 0, self.steps + 1
        if differing is not None:
            raise self._different(differing, self.steps)
        self._optimizers.clear()
        if expected:
            differences.require_equal_numbers(self.comm, expected, sums[len(losses) :])
        if not same_used:
            differences.require_equal_lines(self.comm, compared)
        if len(keys) > len(reached):  # other ranks have reached more
            reached |= {bucket.number << _MODE_BITS | bucket.reduce_mode(): bucket for bucket in buckets}
        summed = []
        for key in keys:
            if key not in reached:
                raise differences.unequal_reduction(self.comm.rank, key >> _MODE_BITS, [b.number for b in buckets])
            summed.append((reached[key], key & _MODE == OVERWRITE and scale == 1))
        if self._reduced(summed, scale, same_used, several_hosts and sums[count - 1] > 0) and values:
            for i, part in (*enumerate(losses), *enumerate(terms if same_used else (), count)):
                part.shown, part.complete = sums[i], True

    def _reduced(self, summed: list[tuple[Bucket, bool]], scale: float, same_used: bool, start_over: bool) -> bool:
        """Sums the gradients of buckets, with whether the sum overwrites `grad`, and commits the sums if all ranks find
        them finite; returns whether they did. The ranks have agreed: from here on gradients are mixed."""
        fine, written = True, False
        for bucket, overwrite in summed:
            bucket.reducer.reduce(overwrite, same_used, start_over)
            fine = (bucket.nonfinite == "allow" or bucket.reducer.is_finite()) and fine
        if not self.consensus.commit(fine):
            differences.leave_out(self.comm, [bucket for bucket, _ in summed], self.steps)
            return False
        for bucket, _ in summed:
            written = bucket.reducer.commit(scale) or written
        if written:
            self.fence("backward")
        return True

    def fence(self, action: str, digest: int = 0, everywhere: bool = False) -> None:
        """Waits for the ranks of this host; see `ParameterMemory.fence`. It also compares the options of optimizers
        that have stepped since the last agreement."""
        differing = self.consensus.fence(action, self._options + digest, everywhere)
        if differing is not None:
            self._options = 0  # reported once
            raise self._different(differing, self.steps + 1)

    def _different(self, fingerprints: list[StepFingerprint], step: int) -> RuntimeError:
        optimizers, self._optimizers = self._optimizers, {}
        return differences.different_steps(self.comm, fingerprints, optimizers.values(), self._criteria.values(), step)
