"""Placements: what a tensor is across the ranks that train on one batch, in the terms of PyTorch's DTensor.

    Replicate   (None)   every rank has the same: parameters, constants, and what follows from them
    Shard                this rank's rows of the global batch, along one axis
    Partial              the global value is the sum over ranks of their arrays: a sum over rows

Cotangents are dual: that of a Replicate is a Partial, that of a Partial a Replicate, that of a Shard a Shard. So the
sum over ranks of (value x cotangent) is right for all three, and a gradient rule works on this rank's arrays without
placements. `core.rules` decides the placement of a result; `core.ops.collective` converts.
"""

from __future__ import annotations

from collections.abc import Callable
from math import nan
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

if TYPE_CHECKING:
    from sorix_dist.core.tensor import Tensor

Array = np.ndarray[Any, Any]


class Rows(NamedTuple):
    """Rows `start` to `stop` of a global batch of `total` rows: batch `batch` of the epoch `epoch` of a loader (-1:
    unknown). order: a digest of the loader's order of samples, 0 without a loader."""

    start: int
    stop: int
    total: int
    epoch: int = -1
    batch: int = -1
    order: int = 0


class Group:
    """The ranks among which the rows of a batch are sharded, and their collectives. This base class is a single
    process; `parallel` derives the groups of several ranks.

    rank, size: this process's number, and how many there are; virtual_shards: of each batch in reproducible mode, else
        None.
    parts: the number of terms of a Partial.
    single: one process has all rows, so nothing needs to be refused.
    ordered: reproducible mode, outside of a forward. A sum over rows is complete at once, in one order for any number
        of ranks, so a Partial, and a cotangent of a Replicate, is the whole sum.
    isolated: reproducible mode, inside of a forward. Several virtual shards are computed without collectives between
        them.
    measured: this rank's number of rows and that of the batch, if the program has asked for the former as an integer.
    """

    rank = 0
    size = 1
    virtual_shards: int | None = None
    parts = 1
    single = True
    ordered = False
    isolated = False
    measured: tuple[int, float | None] | None = None

    @property
    def has_all(self) -> bool:
        """Whether this process has all rows, and may use them as they are. Reproducible mode takes the same operations
        on one rank as on several."""
        return self.single and not self.ordered

    def reduce(self, array: Array, what: str) -> Array:
        """The sum over all terms of a Partial, a new array, the same on every rank. A call of all ranks."""
        return np.array(array)

    def assemble(self, array: Array) -> Array:
        """This rank's rows, with zeros for those of the others, as a Partial; it may be the same array."""
        return array

    def add_up(self, sums: Callable[[Rows], Array], rows: Rows) -> Array:
        """The sum over all rows in one order; `sums` gives that over some. Only if `ordered`."""
        return sums(rows)

    def counts(self, held: int) -> tuple[int, int]:
        """The number of rows on the ranks before this one, and on all ranks. A call of all ranks."""
        return 0, held

    def expect(self, number: float) -> None:
        """Records a number that must be the same on every rank, because a gradient depends on it."""

    def compare(self, number: float, shape: Any = (), lengths: Any = (), held: int = 0) -> None:
        """Records a number that must be the same on every rank which comes to this line of the program: that of an
        array of this shape, beside `held` rows of a batch with these lengths. Where the lengths differ between ranks,
        arrays of several shapes are not compared, unless they have a row for each of the rank's."""

    def note_copy(self) -> None:
        """Notes the line that makes a plain number of one of the global batch, as float(x.shape[0]) does."""

    def warn(self, message: str) -> None:
        """Warns the user, once for each line of the program."""

    def __reduce__(self) -> Any:
        return _single, ()

    def __copy__(self) -> Group:
        return self

    def __deepcopy__(self, memo: Any) -> Group:
        return self


SINGLE = Group()


def _single() -> Group:
    return SINGLE


class Batch:
    """A global batch: its group, and this rank's rows of it.

    held: their number; shard: the number of their virtual shard, else 0; parent: the batch that they were selected
    from; known: the rows, None while only their number is known; lengths: the shapes of a row of what a user's function
    made of the samples, such as sequences that it pads to the longest of this rank.
    """

    __slots__ = ("_places", "_starts", "group", "held", "known", "lengths", "parent", "shard")

    def __init__(self, rows: Rows | int, group: Group = SINGLE, shard: int = 0, parent: Batch | None = None) -> None:
        self.group, self.shard, self.parent = group, shard, parent
        self._starts: Array | None = None
        self.lengths: tuple[tuple[int, ...], ...] = ()
        self.known = rows if isinstance(rows, Rows) else None
        self.held = rows.stop - rows.start if isinstance(rows, Rows) else rows
        self._places: dict[Any, Any] = {}

    @property
    def rows(self) -> Rows:
        """This rank's rows. For selected rows the first access is a call of all ranks."""
        if self.known is None:
            before, total = self.group.counts(self.held)
            self.known = Rows(before, before + self.held, total)
        return self.known

    def at(self, axis: int, outer: int = 1, inner: int = 1, pairs: bool = False) -> Shard:
        """The placement of these rows along `axis`; see Shard."""
        key = axis, outer, inner, pairs
        found: Shard | None = self._places.get(key)
        if found is None:
            found = self._places[key] = Shard(self, *key)
        return found

    def partial(self, denominator: float | None, factor: float = 1.0) -> Partial:
        """The placement of a sum over these rows; see Partial."""
        key = denominator, factor
        found: Partial | None = self._places.get(key)
        if found is None:
            found = self._places[key] = Partial(self.group, denominator, factor, self.held)
        return found

    def selected(self, counts: Array | int) -> Batch:
        """The batch of elements selected from these rows. counts: their number in each row; or the total, if the
        elements of a row are not contiguous."""
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
        """The batch that these rows were selected from, or this one."""
        return self if self.parent is None else self.parent.whole

    def local(self, start: int, stop: int) -> tuple[int, int]:
        """The local range of the elements selected from rows start to stop - 1 of the whole batch."""
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
        """Whether two batches have the same rows on every rank."""
        if self is other:
            return True
        if self.held != other.held:
            return False
        if self.group.has_all and other.group is self.group:
            return True  # one process has all rows of both, and adds what has one length
        if self.parent is not None or other.parent is not None:
            return self.parent is not None and other.parent is not None and self.parent.like(other.parent)
        assert self.known is not None
        assert other.known is not None
        return self.known[:3] == other.known[:3]


class Shard:
    """This rank's rows of a batch along `axis`, whose length is outer * rows * inner.

    `outer` or `inner` is more than 1 where other axes were merged with that of the rows, or rows were concatenated.
    pairs: whether another axis has the rows of all ranks, as that of the similarities x @ x.T.
    """

    __slots__ = ("axis", "batch", "group", "inner", "outer", "pairs")

    def __init__(self, batch: Batch, axis: int, outer: int, inner: int, pairs: bool) -> None:
        self.batch, self.axis, self.outer, self.inner, self.pairs = batch, axis, outer, inner, pairs
        self.group = batch.group

    @property
    def rows(self) -> Rows:
        """The rows of the batch."""
        return self.batch.rows

    @property
    def held(self) -> int:
        """The length of the axis on this rank."""
        return self.outer * self.batch.held * self.inner

    @property
    def total(self) -> int:
        """The length of the axis over all ranks."""
        batch = self.batch
        return self.outer * (batch.known or batch.rows).total * self.inner

    @property
    def of_loader(self) -> bool:
        """Whether a loader has shared out the rows; else each rank has data of its own, and perhaps numbers too."""
        rows = self.batch.whole.known
        return rows is not None and rows.epoch >= 0

    def like(self, other: Shard) -> bool:
        """Whether both have the same rows, and the same `outer` and `inner`."""
        return (self.outer, self.inner) == (other.outer, other.inner) and self.batch.like(other.batch)

    def moved(self, axis: int) -> Shard:
        """The same rows along another axis."""
        return self if axis == self.axis else self.batch.at(axis, self.outer, self.inner)

    def opened(self, array: Array, rows: int) -> Array:
        """A view in which the axis is three: outer, rows, inner."""
        shape = array.shape
        return array.reshape(*shape[: self.axis], self.outer, rows, self.inner, *shape[self.axis + 1 :])

    def part(self, array: Array, start: int, stop: int, rows: int) -> Array:
        """Rows start to stop - 1 of an array whose axis has `rows` rows."""
        chosen = self.opened(array, rows)[(slice(None),) * (self.axis + 1) + (slice(start, stop),)]
        length = self.outer * (stop - start) * self.inner
        return chosen.reshape(*array.shape[: self.axis], length, *array.shape[self.axis + 1 :])

    def padded(self, array: Array, start: int, stop: int, rows: int) -> Array:
        """The transpose of `part`: an array of `rows` rows, all zeros except rows start to stop - 1."""
        shape = (*array.shape[: self.axis], self.outer * rows * self.inner, *array.shape[self.axis + 1 :])
        full = np.zeros(shape, array.dtype)
        chosen = (slice(None),) * (self.axis + 1) + (slice(start, stop),)
        self.opened(full, rows)[chosen] = self.opened(array, stop - start)
        return full

    def __repr__(self) -> str:
        extra = "" if self.outer == self.inner == 1 else f", outer={self.outer}, inner={self.inner}"
        return f"Shard({self.axis}{extra})"


SUM = -1.0  # the denominator of a Partial that is a plain sum; see Partial


class Partial:
    """The global value is the sum of the arrays of all ranks of a group.

    denominator: of a mean: the number of rows of the global batch, or the sum of their weights, by which `accumulate`
        weights a micro-batch. SUM for a sum, None for a value without rows (a penalty on weights), NaN if there is no
        single one.
    factor: users see the array times this, so that a mean shows the mean over this rank's rows.
    held: this rank's number of rows.
    constants: the factors and divisors so far, which must be the same on every rank.
    """

    __slots__ = ("constants", "denominator", "factor", "group", "held")

    def __init__(
        self, group: Group, denominator: float | None, factor: float, held: int, constants: tuple[float, ...] = ()
    ) -> None:
        self.group, self.denominator, self.factor = group, denominator, factor
        self.held, self.constants = held, constants

    def beside(self, number: float) -> Partial:
        """The placement of a product or quotient with a number that must be the same on every rank."""
        return Partial(self.group, self.denominator, self.factor, self.held, (*self.constants, number))

    def shown_like(self, other: Partial) -> bool:
        """Whether both have the same group, denominator and factor."""
        return (self.group, self.denominator, self.factor) == (other.group, other.denominator, other.factor)

    def joined(self, other: Partial) -> Partial:
        """The placement of the sum of two of one group."""
        if other is self or (other.denominator is None and other.factor == self.factor and not other.constants):
            return self
        one = other.denominator in (None, self.denominator)
        denominator = other.denominator if self.denominator is None else self.denominator if one else nan
        factor = self.factor if self.factor == other.factor else nan
        return Partial(self.group, denominator, factor, max(self.held, other.held), self.constants + other.constants)

    def __repr__(self) -> str:
        return f"Partial(denominator={self.denominator})"


class _Replicate:
    """An explicit Replicate, unlike None: a wrapped model does not take the tensor for untagged rows."""

    def __repr__(self) -> str:
        return "Replicate()"

    def __reduce__(self) -> str:
        return "REPLICATE"


REPLICATE = _Replicate()


class Tally:
    """Numbers that follow from a batch, such as counts that a program keeps by hand; see `core.tally`.

    own: this rank's, which a sum over ranks adds; None if they are unknown, as in reproducible mode.
    known: whether the array has the numbers of the global batch; else it has this rank's.
    """

    __slots__ = ("known", "own")

    def __init__(self, own: Array | None, known: bool) -> None:
        self.own, self.known = own, known

    def __repr__(self) -> str:
        return f"Tally(known={self.known})"


class Deferred:
    """An operation that waits for the end of a forward in reproducible mode; see `core.deferred`.

    batch: the virtual shard's; apply, inputs, options: what is computed then of the operands' sums over all shards.
    """

    __slots__ = ("apply", "batch", "group", "inputs", "options")

    def __init__(self, batch: Batch, apply: Callable[..., Tensor], inputs: tuple[Any, ...], options: Any) -> None:
        self.batch, self.group, self.apply, self.inputs, self.options = batch, batch.group, apply, inputs, options


def refuse_value(place: Deferred | Partial, array: Array, name: str) -> NoReturn:
    """RuntimeError: `name` needs a number in a forward that is known after it."""
    place.group.reduce(array, name)
    raise AssertionError(f"{place} is not that of a virtual shard")


Placement = Shard | Partial | Tally | Deferred | _Replicate | None


def shard_of(x: Any) -> Shard | None:
    """The placement of a tensor that is rows of a batch, else None."""
    place = getattr(x, "place", None)
    return place if isinstance(place, Shard) else None


def tagged(tensor: Tensor, place: Placement) -> Tensor:
    """Sets the placement of a tensor, and returns it."""
    if tensor.place.__class__ is Deferred:
        refuse_value(tensor.place, tensor.array, "this operation")
    tensor.place = place
    if tensor.leaf is not None and tensor.origin is tensor.leaf:
        tensor.leaf.sharded = isinstance(place, Shard)
    return tensor


def cotangent_of(place: Placement, group: Group | None) -> Placement:
    """The placement of the gradient of a tensor; group: the ranks whose sum the gradient of a Replicate is."""
    if isinstance(place, Shard):
        return place
    parted = group is not None and group.parts > 1 and not isinstance(place, Partial)
    return Partial(group, None, 1.0, 0) if group is not None and parted else None


computing: dict[int, Batch | None] = {}  # by thread, the batch that a wrapped model is computing

_current: Callable[[], Group] = lambda: SINGLE  # noqa: E731


def current_group() -> Group:
    """The group among which loaders shard their batches."""
    return _current()


def set_current_group(function: Callable[[], Group]) -> None:
    """Makes `current_group` return what `function` returns."""
    global _current
    _current = function
