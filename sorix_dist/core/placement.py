"""Placements: what a tensor is across the ranks that train on one batch, in the terms of PyTorch's DTensor.

    Replicate   (None)   every rank holds the same: parameters, constants, and what follows from them alone
    Shard                this rank's rows of the global batch, along one axis
    Partial              the global value is the sum over the ranks of what they hold: a sum over rows

Cotangents are dual: that of a Replicate is a Partial, that of a Partial a Replicate, that of a Shard a Shard. So the
sum over ranks of (value x cotangent) is right for each of the three, and the rule of an operation that works on this
rank's arrays alone needs to know nothing of placements. An operation asks `core.rules` which placement its result
has, and for the collectives of `core.ops.collective` where its operands do not go together.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from math import nan
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from sorix_dist.core.tensor import Tensor

Array = np.ndarray[Any, Any]


class Rows(NamedTuple):
    """Rows `start` to `stop` of a global batch of `total` rows, the batch number `batch` of the epoch `epoch` of a
    loader (-1 where none counts).

    order: a digest of what decides which samples these are beside the two numbers, 0 where no loader does.
    """

    start: int
    stop: int
    total: int
    epoch: int = -1
    batch: int = -1
    order: int = 0


class Group:
    """The processes that hold the rows of a batch, and how to sum over them. This one is a process alone; `parallel`
    has those of several ranks.

    parts: of how many values a Partial is the sum; alone: whether this process holds all rows, so that nothing needs
    to be refused; ordered: whether a sum over rows is made at once, in one order for any number of ranks, so that
    a Partial and a cotangent of a Replicate are whole (reproducible mode, outside of a forward); apart: whether these
    are the virtual shards of such a batch, of which each is computed as if it were alone (inside of one).
    """

    parts = 1
    alone = True
    ordered = False
    apart = False

    def reduce(self, array: Array, what: str) -> Array:
        """The sum over all parts of a Partial, a new array: the same on every rank. Called by every rank."""
        return np.array(array)

    def assemble(self, array: Array) -> Array:
        """This rank's rows among zeros in the place of the others', as a Partial; it may be the same array."""
        return array

    def add_up(self, sums: Callable[[Rows], Array], rows: Rows) -> Array:
        """The sum over all rows, of which `sums` gives the sum of some, in one order. Only if `ordered`."""
        return sums(rows)

    def counts(self, held: int) -> tuple[int, int]:
        """Of the rows that the ranks hold, how many come before this rank's, and how many there are. Called by all."""
        return 0, held

    def expect(self, number: float) -> None:
        """Notes a number that a gradient follows from, which must be the same on every rank."""

    def tell(self, message: str) -> None:
        """Says something to the user, once for each line of the program."""

    def __reduce__(self) -> Any:
        return _alone, ()

    def __copy__(self) -> Group:
        return self

    def __deepcopy__(self, memo: Any) -> Group:
        return self


ALONE = Group()


def _alone() -> Group:
    return ALONE


class Batch:
    """A global batch: which rows of it this process holds, and who holds the others.

    shard: the number of the virtual shard that these rows are, 0 where there are none.
    """

    __slots__ = ("_places", "_starts", "group", "held", "known", "parent", "shard")

    def __init__(self, rows: Rows | int, group: Group = ALONE, shard: int = 0, parent: Batch | None = None) -> None:
        self.group, self.shard, self.parent = group, shard, parent
        self._starts: Array | None = None
        self.known = rows if isinstance(rows, Rows) else None
        self.held = rows.stop - rows.start if isinstance(rows, Rows) else rows
        self._places: dict[Any, Any] = {}

    @property
    def rows(self) -> Rows:
        """The rows. Of rows that were selected, every rank asks the others at first need."""
        if self.known is None:
            before, total = self.group.counts(self.held)
            self.known = Rows(before, before + self.held, total)
        return self.known

    def at(self, axis: int, outer: int = 1, inner: int = 1) -> Shard:
        """The placement of these rows along `axis`."""
        key = axis, outer, inner
        found: Shard | None = self._places.get(key)
        if found is None:
            found = self._places[key] = Shard(self, axis, outer, inner)
        return found

    def partial(self, over: float | None, factor: float = 1.0) -> Partial:
        """The placement of a sum over these rows; see Partial."""
        key = over, factor
        found: Partial | None = self._places.get(key)
        if found is None:
            found = self._places[key] = Partial(self.group, over, factor, self.held)
        return found

    def selected(self, counts: Array | int) -> Batch:
        """The batch of what was selected of these rows, so many of each; or a number, where what is selected of a row
        does not lie in one place."""
        batch = Batch(int(np.sum(counts)), self.group, self.shard, self)
        if not isinstance(counts, int) and self.in_order:
            batch._starts = np.concatenate([[0], np.cumsum(counts)])
        return batch

    @property
    def in_order(self) -> bool:
        """Whether the rows of rank 0 come first in the global batch, then those of rank 1, and so on."""
        return self.parent is None or self._starts is not None

    @property
    def whole(self) -> Batch:
        """The batch that these rows were selected of, or this one."""
        return self if self.parent is None else self.parent.whole

    def local(self, start: int, stop: int) -> tuple[int, int]:
        """Where what was selected of the rows start to stop - 1 of the whole batch lies among what is here."""
        if self.parent is None:
            assert self.known is not None
            return start - self.known.start, stop - self.known.start
        if self._starts is None:
            raise RuntimeError(
                "reproducible mode: a mask must select rows along the first axis of a batch, so that sums over what it "
                "selects have one order: use sx.where or masked_fill"
            )
        first, last = self.parent.local(start, stop)
        return int(self._starts[first]), int(self._starts[last])

    def like(self, other: Batch) -> bool:
        """Whether the rows of two batches can be taken one by one together, on every rank."""
        if self is other:
            return True
        if self.held != other.held:
            return False
        if self.parent is not None or other.parent is not None:
            return self.parent is not None and other.parent is not None and self.parent.like(other.parent)
        assert self.known is not None
        assert other.known is not None
        return self.known[:3] == other.known[:3]


class Shard:
    """This process's rows of a batch along `axis`, whose length is outer * rows * inner.

    More than 1 of `outer` or `inner` come from axes that were merged with the rows', or from rows one after the other.
    """

    __slots__ = ("axis", "batch", "group", "inner", "outer")

    def __init__(self, batch: Batch, axis: int, outer: int, inner: int) -> None:
        self.batch, self.axis, self.outer, self.inner = batch, axis, outer, inner
        self.group = batch.group

    @property
    def rows(self) -> Rows:
        """Which rows of the batch these are."""
        return self.batch.rows

    @property
    def held(self) -> int:
        """The length of the axis here."""
        return self.outer * self.batch.held * self.inner

    @property
    def total(self) -> int:
        """The length of the axis over all ranks."""
        batch = self.batch
        return self.outer * (batch.known or batch.rows).total * self.inner

    def like(self, other: Shard) -> bool:
        """Whether the rows of both can be taken one by one together, each merged with as many others."""
        return (self.outer, self.inner) == (other.outer, other.inner) and self.batch.like(other.batch)

    def moved(self, axis: int) -> Shard:
        """The same rows along another axis."""
        return self if axis == self.axis else self.batch.at(axis, self.outer, self.inner)

    def opened(self, array: Array, rows: int) -> Array:
        """A view in which the axis is three: outer, rows, inner."""
        shape = array.shape
        return array.reshape(*shape[: self.axis], self.outer, rows, self.inner, *shape[self.axis + 1 :])

    def part(self, array: Array, start: int, stop: int, rows: int) -> Array:
        """Rows start to stop - 1 of an array whose axis has so many rows."""
        chosen = self.opened(array, rows)[(slice(None),) * (self.axis + 1) + (slice(start, stop),)]
        length = self.outer * (stop - start) * self.inner
        return chosen.reshape(*array.shape[: self.axis], length, *array.shape[self.axis + 1 :])

    def __repr__(self) -> str:
        extra = "" if self.outer == self.inner == 1 else f", outer={self.outer}, inner={self.inner}"
        return f"Shard({self.axis}{extra})"


SUM = -1.0
"""What a Partial that is a plain sum is divided by; see Partial."""


class Partial:
    """The global value is the sum over the processes of a group of what they hold.

    over: the weight of a mean beside those of other batches, which is the number of rows in the whole batch, or the sum
    of their weights if they have some; SUM for a sum; None for what has no rows, such as a penalty on weights; NaN
    where there is no single number. factor: what the number here is multiplied by for the user's eye, so that a mean
    shows that over this rank's rows. held: this rank's number of rows. alike: numbers that it was multiplied with, or
    divided by, which every rank must have alike.
    """

    __slots__ = ("alike", "factor", "group", "held", "over")

    def __init__(
        self, group: Group, over: float | None, factor: float, held: int, alike: tuple[float, ...] = ()
    ) -> None:
        self.group, self.over, self.factor, self.held, self.alike = group, over, factor, held, alike

    def beside(self, constant: Any) -> Partial:
        """The placement of what follows linearly from this and a constant."""
        if self.group.parts == 1 or self.group.apart or getattr(constant, "origin", None) is not None:
            return self
        numbers = np.ravel(getattr(constant, "array", constant))
        number = float(numbers @ np.arange(1.0, len(numbers) + 1))  # one for all of them, which depends on their order
        return Partial(self.group, self.over, self.factor, self.held, (*self.alike, number))

    def shown_like(self, other: Partial) -> bool:
        """Whether the numbers of both are shown alike and are sums over the same processes."""
        return (self.group, self.over, self.factor) == (other.group, other.over, other.factor)

    def joined(self, other: Partial) -> Partial:
        """The placement of the sum of two, where their numbers are shown alike; see `over`."""
        if other is self or (other.over is None and other.factor == self.factor and not other.alike):
            return self
        over = other.over if self.over is None else self.over if other.over in (None, self.over) else nan
        factor = self.factor if self.factor == other.factor else nan
        return Partial(self.group, over, factor, max(self.held, other.held), self.alike + other.alike)

    def __repr__(self) -> str:
        return f"Partial(over={self.over})"


class _Replicate:
    """Every rank holds the same, and says so: a wrapped model need not ask whether these are rows."""

    def __repr__(self) -> str:
        return "Replicate()"


REPLICATE = _Replicate()

Placement = Shard | Partial | _Replicate | None


def shard_of(x: Any) -> Shard | None:
    """The placement of a tensor that is rows of a batch, else None."""
    place = getattr(x, "place", None)
    return place if isinstance(place, Shard) else None


def tagged(tensor: Tensor, place: Placement) -> Tensor:
    """The tensor, which from now on has this placement."""
    tensor.place = place
    if tensor.leaf is not None and tensor.origin is tensor.leaf:
        tensor.leaf.sharded = isinstance(place, Shard)
    return tensor


forward_of: ContextVar[Batch | None] = ContextVar("forward_of", default=None)
"""The batch that a wrapped model is computing."""

_current: Callable[[], Group] = lambda: ALONE  # noqa: E731


def current_group() -> Group:
    """The group that a loader shares the rows of its batches out to."""
    return _current()


def set_current_group(function: Callable[[], Group]) -> None:
    """Makes `function` say which group that is."""
    global _current
    _current = function
