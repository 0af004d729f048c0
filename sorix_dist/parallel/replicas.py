"""The copies of a model on the ranks of one communicator: where their gradients meet."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isfinite
from typing import Any, NoReturn
from weakref import ReferenceType, ref

import numpy as np

from sorix_dist.comm import Comm
from sorix_dist.core.agreement import Criteria, collect_criteria
from sorix_dist.core.flat import Flat, synchronise
from sorix_dist.core.graph import Described, Leaf, Node
from sorix_dist.core.home import PRIVATE, Home
from sorix_dist.core.placement import Partial, Placement, Rows, Shard
from sorix_dist.core.tensor import Tensor
from sorix_dist.parallel.accumulate import Accumulation
from sorix_dist.parallel.between_hosts import BetweenHosts
from sorix_dist.parallel.board import BACKWARD, Place, board
from sorix_dist.parallel.by_exchange import ByExchange
from sorix_dist.parallel.by_window import ByWindow
from sorix_dist.parallel.check import Behind, describe_places
from sorix_dist.parallel.comm_hooks import ByHook, Hook, exchange_like
from sorix_dist.parallel.fixed_order import ByTree, ByTreeMessages
from sorix_dist.parallel.groups import InOrder, group_of
from sorix_dist.parallel.host_memory import HostMemory
from sorix_dist.parallel.reduce import Alone, ByMessage, Reducer
from sorix_dist.parallel.sync import PLAIN, Member
from sorix_dist.parallel.world import virtual_shards
from sorix_dist.watchdog import watch
from sorix_dist.watchdog.call_site import call_site

NO_ROWS = Rows(0, 0, 0)
_PRIME = (1 << 61) - 1
_TOLERANCE = 1e-8  # of the squares of numbers that must be the same: four digits
_WAY_BITS = 33
_WAY = (1 << _WAY_BITS) - 1


def replicas(comm: Comm) -> Replicas:
    """The replicas that work in `comm`: the same object for all models wrapped in it, so that one backward
    may reach several of them."""
    found: Replicas | None = comm.cache.get(Replicas)
    if found is None:
        found = comm.cache[Replicas] = Replicas(comm)
    return found


def _peers(comm: Comm) -> Comm | None:
    """The ranks of the same place on the other hosts, if there are several on each and equally many. Called by all."""
    if comm.hosts == 1 or comm.size == comm.hosts or len({*comm.gather_objects(comm.local_size)}) > 1:
        return None
    return comm.split(comm.local_rank, comm.rank)


class Replicas:
    """What all models wrapped in one communicator have in common, the `core.graph.Sync` of their gradients.

    group: the ranks; shards: the virtual shards in reproducible mode, else None; pending: whether backwards have left
    gradients that are not summed over the ranks yet; losses: those whose global values come with the next sum;
    accumulation: the pieces of a running `accumulate`; rows: of the latest batch.
    """

    def __init__(self, comm: Comm) -> None:
        self.comm = comm
        self.group = group_of(comm, virtual_shards(comm))
        self.shards = self.group.shards if isinstance(self.group, InOrder) else None
        self.board = board(comm)
        self.memory = HostMemory(comm, self.meet)
        self.peers = _peers(comm)
        self.numbers = itertools.count()
        self._members: list[ReferenceType[Member]] = []
        self.synchronising = True
        self.pending = False
        self.accumulation: Accumulation | None = None
        self.losses: list[Tensor] = []
        self.rows = NO_ROWS
        self.walks = 0  # that are under way, more than one where a hook calls backward
        self.backwards = 0  # since the last meeting
        self.updates = 0  # of parameters by optimizers
        self.options = 0  # a digest of those that optimizers have had since the last meeting
        self.optimized: dict[int, Described] = {}  # what the digest is of
        self.criteria: Criteria = {}  # that the backwards since the last meeting have come through
        self.meetings = 0

    # -- the models

    def add(self, flat: Flat, member: Member, shared: bool) -> None:
        """Takes over the gradients of a flat storage and, if `shared`, the storage itself: of which there is one copy
        on each host then, so that the parameters show it read-only. Called by every rank, for the same parameters."""
        if shared:
            flat.freeze(self.home)
        flat.keeper = member  # which lives as long as the parameters
        member.number = next(self.numbers)
        self._members = [known for known in self._members if known() is not None] + [ref(member)]
        self.use(member, None)
        synchronise(flat, self)

    def remove(self, member: Member) -> None:
        """Forgets a member, whose parameters nobody synchronises any more."""
        self._members = [known for known in self._members if known() not in (None, member)]

    @property
    def home(self) -> Home:
        """Where the ranks of a host keep what they share."""
        return self.memory if self.comm.size > self.comm.hosts else PRIVATE

    def use(self, member: Member, hook: Hook | None) -> None:
        """Makes the gradients of a member meet in the way that fits, or as `hook` says. Called by every rank."""
        member.reducer = self._reducer(member.flat, hook)

    def _reducer(self, flat: Flat, hook: Hook | None) -> Reducer:
        exchange = exchange_like(hook, self.comm) if self.shards is None else None
        if exchange is not None:
            return ByExchange(flat, self.comm, exchange)
        if hook is not None and self.peers is None:
            return ByHook(flat, self.comm, hook)
        if self.shards is not None:  # in which no hook is taken
            return ByTree(flat, self.shards, self.memory) if self.comm.hosts == 1 else ByTreeMessages(flat, self.shards)
        if self.comm.size == 1:
            return Alone(flat, self.comm)
        if self.comm.hosts == 1:
            return ByWindow(flat, self.memory)
        return ByMessage(flat, self.comm) if self.peers is None else BetweenHosts(flat, self.memory, self.peers, hook)

    @property
    def members(self) -> list[Member]:
        """The storages of the models that somebody holds; ranks may notice at different times that nobody does."""
        return [member for known in self._members if (member := known()) is not None]

    def _reducers(self) -> list[Reducer]:
        return [member.reducer for member in self.members]

    # -- their backwards

    def conflict(self) -> Exception:
        return RuntimeError(
            "one loss can't reach models that are wrapped in different communicators: wrap the second with "
            "comm=first.comm"
        )

    def begin(self, place: Placement) -> float:
        """Gets all models ready for the backward of a loss with this placement; returns the factor on its gradient."""
        if isinstance(place, Partial | Shard) and place.group is not self.group:
            raise RuntimeError(
                "the loss follows from rows of other ranks than those of the wrapped model, or from what a model has "
                "kept of a single virtual shard: compute it from what the model returns"
            )
        if self.walks and self.shards is not None:
            raise RuntimeError("reproducible mode: a hook of a backward must not call backward itself")
        weight = 1.0 if self.accumulation is None else self.accumulation.add(place)
        if not self.walks:
            self._prepare()
        self.walks += 1
        return weight if isinstance(place, Partial | Shard) else weight / self.group.parts

    def _prepare(self) -> None:
        watch.begins("backward", self.meetings + 1)
        collect_criteria(self.criteria)
        if not self.pending:
            self.criteria.clear()
            last = self.synchronising and self.accumulation is None
            for member in self.members:
                member.reducer.begin(last)
                if member.nonfinite == "skip":
                    member.reducer.hold()  # so that it can be left out
        self.backwards += 1

    def visitor(self) -> Callable[[Node | Leaf, Any], None] | None:
        """In reproducible mode what follows the walk and sends gradients to where those of a shard are collected."""
        if self.shards is None:
            return None
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
        for reducer in self._reducers():
            reducer.select(shard)

    def end(self, loss: Tensor) -> None:
        """Sums the gradients of the backward of a loss, unless that is to be done later."""
        if self.shards is not None:
            self._select(None)
        place = loss.place
        if loss.array.size == 1 and not self.group.single:
            if isinstance(place, Partial) and not place.group.ordered:
                self.losses.append(loss)
            elif not isinstance(place, Shard):
                self.group.expect(loss.array.item())
        for number in place.alike if isinstance(place, Partial) else ():
            self.group.expect(number)
        self.walks -= 1
        if self.walks:  # a hook has called this backward: what it leaves is summed at the end of the outer one
            return
        if self.synchronising and self.accumulation is None:
            self.synchronise(1.0)
            return
        self.pending = True

    def failed(self) -> None:
        """Forgets what backwards have left since the last meeting."""
        if self.shards is not None:
            self._select(None)
        self.losses, self.group.expected, self.walks = [], [], 0
        if self.accumulation is not None:
            self.accumulation.failed = True
        for reducer in self._reducers():
            reducer.failed()
        self.pending = False
        self.backwards = 0

    def forget(self, leaf: Leaf) -> None:
        """Forgets what backwards have left for one leaf since the last meeting."""
        for reducer in self._reducers():
            reducer.forget(leaf)

    def stepped(self, alike: int, group: Described) -> None:
        self.optimized[id(group)] = group
        self.updates += 1
        self.options = (31 * self.options + alike) % _PRIME  # two optimizers in another order give another one
        watch.begins("optimizer.step", self.meetings)

    def synchronise(self, scale: float) -> None:
        """Adds to `grad` the sum over the ranks, times `scale`, for all models that the backward of any rank has
        reached. Called by every rank at the same place, which is checked before anything is added."""
        rows, losses, self.losses = self.rows, self.losses, []
        expected, self.group.expected = self.group.expected, []
        # Who reached a model says its number, and how its sum is to be added.
        ways = {member.number << _WAY_BITS | member.way(): member for member in self.members}
        reached = [way for way, member in ways.items() if member.reducer.prepare()]
        alike = self.options + sum(self.criteria) + len(expected)
        place = Place(BACKWARD, alike, rows.epoch, rows.batch, rows.order, self.updates, self.backwards)
        values = [loss.array.item() for loss in losses]
        if expected:
            values += expected + [number * number for number in expected]
        said = self.board.meet(place, reached, values)
        self.pending, self.backwards, self.options = False, 0, 0
        self.meetings += 1
        if said.places is not None:
            self._raise_for(said.places, self.meetings)
        self.optimized.clear()
        if expected:
            self._compare(expected, said.values[len(losses) :])
        try:
            summed = [(ways[way], way & _WAY == PLAIN and scale == 1) for way in said.numbers]
        except KeyError as error:
            self._raise_for_way(error.args[0], {member.number for member in ways.values()})
        # When every rank has found that all is as it should be.
        fine = True
        for member, plain in summed:
            member.reducer.sum(plain)
            fine = (member.nonfinite == "allow" or member.reducer.finite()) and fine
        if self.board.part(fine):
            written = False
            for member, _ in summed:
                written = member.reducer.hand_over(scale) or written
            if written:
                self.meet("backward")
            for loss, value in zip(losses, said.values, strict=False):  # which shows the global batch's from now on
                loss.shown = np.full(loss.array.shape, value, loss.array.dtype)
        else:
            self._leave_out([member for member, _ in summed])

    def _compare(self, numbers: list[float], sums: list[float]) -> None:
        """RuntimeError on every rank if one of the numbers is not the same on all; sums: over the ranks, of the numbers
        and of their squares."""
        for number, total, squares in zip(numbers, sums, sums[len(numbers) :], strict=False):
            if squares * self.comm.size - total * total <= _TOLERANCE * squares * self.comm.size:
                continue
            everywhere = self.comm.gather_objects(number)
            if any(map(isfinite, everywhere)):
                raise RuntimeError(
                    "a loss, or a number that it was multiplied with or divided by, must be the same on every rank, "
                    f"and is {', '.join(f'{n:.6g}' for n in everywhere)} on ranks 0 to {self.comm.size - 1} (in the "
                    f"backward at {call_site().where}): it is a rank's own, such as len(xb), or follows from rows that "
                    "no loader has tagged. Take the rows from a DataLoader, call the wrapped model instead of its "
                    "module, or use sx.global_value(x) or sx.global_rows(xb); no gradient was added"
                )

    def meet(self, doing: str, alike: int = 0, everywhere: bool = False) -> None:
        """Waits for all ranks of this host to come here, each of which sees afterwards what the others wrote before;
        RuntimeError if another one does something else, or with other numbers, or has moved parameters with other
        options; see `core.home.Home.meet`."""
        places = self.board.agree(doing, self.options + alike, everywhere)
        if places is not None:
            self.options = 0  # it is said once
            self._raise_for(places, self.meetings + 1)

    def _raise_for(self, places: list[Place], meeting: int) -> NoReturn:
        behind = Behind(
            [group.describe() for group in self.optimized.values()],
            [criterion.describe() for criterion in self.criteria.values()],
        )
        self.optimized.clear()
        lines, everywhere = zip(*self.comm.gather_objects((call_site().where, behind)), strict=True)
        raise RuntimeError(describe_places(places, lines, everywhere, meeting))

    def _raise_for_way(self, way: int, numbers: set[int]) -> NoReturn:
        """Says why what another rank has said of a model with one of its own numbers, or none, can't be done."""
        if way >> _WAY_BITS not in numbers:
            raise RuntimeError(
                f"a backward of another rank reached the wrapped model number {way >> _WAY_BITS}, which rank "
                f"{self.comm.rank} does not have any more: every rank must train the same models"
            )
        raise RuntimeError(
            f"the gradients of rank {self.comm.rank} and of another one are not to be summed in the same way: only one "
            "has called zero_grad before this backward, forgotten a parameter's gradient, or registered a hook with a "
            "parameter"
        )

    def _leave_out(self, reached: list[Member]) -> None:
        """Drops the gradients of a backward of which some that are watched are not finite, and says whose these are if
        anybody wants to know."""
        watched = [member for member in reached if member.nonfinite != "allow"]
        own = [(member.names[found[0]], found[1]) for member in watched if (found := member.reducer.first_not_finite())]
        for member in reached:
            member.reducer.failed()
        everywhere = self.comm.gather_objects(own[0] if own else None)
        if all(member.nonfinite == "skip" for member in watched):
            return
        said = [f"that of '{f[0]}' on rank {r} is {f[1]}" for r, f in enumerate(everywhere) if f is not None]
        raise FloatingPointError(
            f"gradients are not finite in backward number {self.meetings}, at {call_site().where}: "
            f"{'; '.join(said) or 'the sum over the ranks overflows'}. They were not added; with nonfinite='skip' a "
            "wrapped model leaves such a step out on all ranks, with 'allow' it goes on"
        )

    # -- later

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Leaves what backwards inside the block compute on this rank, for the next backward outside to sum."""
        before, self.synchronising = self.synchronising, False
        try:
            yield
        finally:
            self.synchronising = before

    def accumulate(self) -> Accumulation:
        """Begins an accumulation."""
        if self.accumulation is not None or self.pending:
            raise RuntimeError(
                "accumulate: the gradients of earlier backwards are not synchronised yet: end the loop over "
                "accumulate, or call backward once outside of no_sync, before the next accumulate"
            )
        for reducer in self._reducers():
            reducer.begin(False)
            reducer.hold()
        self.accumulation = Accumulation()
        return self.accumulation

    def finish(self) -> None:
        """Ends an accumulation: sums its gradients over the ranks."""
        accumulation, self.accumulation = self.accumulation, None
        assert accumulation is not None
        accumulation.check()
        self.synchronise(accumulation.scale)

    def abandon(self) -> None:
        """Ends an accumulation that was left early: nothing of it counts."""
        self.accumulation = None
        self.failed()
