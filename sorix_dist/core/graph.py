"""What operations leave behind for a backward: nodes, and the leaves where gradients end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sorix_dist.core.capture import host
from sorix_dist.core.home import Array as Array
from sorix_dist.core.home import read_only
from sorix_dist.core.placement import Group, Partial, Placement, Shard

if TYPE_CHECKING:
    from sorix_dist.core.flat import Flat
    from sorix_dist.core.op import Op

recording: ContextVar[bool] = ContextVar("recording", default=True)
"""Whether operations are recorded for a backward."""

# A rule takes the gradient of an operation's result to that of one input. It may write into `out` (the
# input's shape and dtype, or None) and return it; it must not change the gradient that it was given.
Rule = Callable[[Any, Array | None], Any]


class Described(Protocol):
    """Something that ranks compare by a digest."""

    def describe(self) -> str:
        """What the digest is of, in words, for an error."""


class Sync(Protocol):
    """Synchronises the gradients of some leaves between ranks: notified when a backward that reaches them begins and
    ends."""

    @property
    def group(self) -> Group:
        """The ranks."""

    @property
    def pending(self) -> bool:
        """Whether there are gradients of these leaves that are not in what they show yet."""

    def conflict(self) -> Exception:
        """The error for a loss that reaches leaves of two communicators."""

    def begin(self, place: Placement) -> float:
        """Gets the leaves ready for the backward of a loss; returns the factor that its gradient is scaled by."""

    def visitor(self) -> Callable[[Node | Leaf, Any], None] | None:
        """What is to be called with every node that the walk comes to, before its rules, and its gradient."""

    def end(self, loss: Any) -> None:
        """Takes the gradients that the backward of a loss has left in `Leaf.local`."""

    def failed(self) -> None:
        """Is told instead of `end` that the backward raised."""

    def stepped(self, alike: int, group: Described) -> None:
        """Is told that an optimizer is about to move these leaves; alike: a digest of the options that it does it with
        and of its step counts, which must be the same everywhere; group: who says them in words."""

    def forget(self, leaf: Leaf) -> None:
        """Is told that what is pending for this leaf shall not count."""


class SumOverRanks:
    """The Sync of what follows from a sum over ranks without any synchronised leaf: every rank computes it alike, so
    that a backward begins with one of equal parts on each."""

    pending = False

    def __init__(self, group: Group) -> None:
        self.group = group

    def conflict(self) -> Exception:
        return RuntimeError("a loss follows from sums over two different groups of ranks: compute two losses")

    def begin(self, place: Placement) -> float:
        return 1.0 if isinstance(place, Shard | Partial) else 1 / self.group.parts

    def visitor(self) -> None:
        return None

    def end(self, loss: Any) -> None:
        pass

    def failed(self) -> None:
        pass

    def stepped(self, alike: int, group: Described) -> None:
        pass

    def forget(self, leaf: Leaf) -> None:
        pass


def joined(one: Sync, other: Sync) -> Sync:
    """The Sync of what follows from tensors of both; raises if these are leaves, or sums, of different ranks."""
    if isinstance(one, SumOverRanks):
        one, other = other, one
    if not isinstance(other, SumOverRanks) or one.group is not other.group:
        raise one.conflict()
    return one


class Accumulator:
    """A place where gradients are added up.

    shown: what users see of the array, read-only if `frozen`.
    """

    __slots__ = ("array", "shown", "written")

    def __init__(self, array: Array | None = None, frozen: bool = False) -> None:
        self.array = array
        self.shown = array if array is None or not frozen else read_only(array)
        self.written = False

    def place(self, leaf: Leaf) -> Array:
        """The array of this accumulator, made at first need."""
        if self.array is None:
            self.array = self.shown = np.empty(leaf.shape, leaf.dtype)
        return self.array

    def show(self, leaf: Leaf) -> Array:
        """The array as users see it."""
        array = self.place(leaf)
        return array if self.shown is None else self.shown


class Leaf:
    """The gradient of a tensor that no operation made.

    A backward adds into `local`; `total` is what the tensor shows as `grad`. They are the same place,
    unless somebody (`sync`) combines the local gradients of several processes into the total.
    """

    __slots__ = ("dtype", "flat", "hooks", "local", "shape", "sharded", "sync", "total", "view")

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape = shape
        self.dtype = dtype
        self.local = self.total = Accumulator()
        self.flat: Flat | None = None
        self.sync: Sync | None = None
        self.sharded = False  # whether it belongs to rows of a batch, so that the gradient is this rank's alone
        self.view: Any = None  # the Tensor that shows the total
        self.hooks: list[Callable[[Any], Any]] | None = None  # see what a backward adds before it is added

    def zero(self) -> None:
        """Forgets the gradient; the memory stays for the next one, and nothing is cleared."""
        self.total.written = False
        self.forget_pending()
        self.view = None if self.view is not None and self.view.origin is not None else self.view

    def forget_pending(self) -> None:
        """Forgets what backwards have left for `sync` to add to the gradient later."""
        if self.sync is not None and self.sync.pending:
            self.sync.forget(self)

    def deposit(self, part: Array) -> None:
        """Adds a copy of `part`."""
        part = fit(part, self)
        local = self.local
        place = local.place(self)
        if local.written:
            place += part
        else:
            np.copyto(place, part)
            local.written = True


class Node:
    """One recorded operation: the rules that take its gradient to its inputs, and where those came from."""

    __slots__ = ("dtype", "edges", "hooks", "number", "op", "result", "rules", "saved", "shape", "shard", "sync")

    def __init__(
        self,
        op: Op,
        number: int,
        rules: Sequence[Rule | None],
        edges: list[Node | Leaf | None],
        sync: Sync | None,
        array: Array,
        result: int,
        saved: tuple[tuple[Any, ...], dict[str, Any]] | None,
    ) -> None:
        self.op = op
        self.number = number  # newer operations have larger numbers
        self.rules: Sequence[Rule | None] | None = rules  # None once a walk has used them up
        self.edges = edges
        self.sync = sync
        self.shape: tuple[int, ...] = array.shape
        self.dtype = array.dtype
        self.result = result  # id of what the operation's function returned
        self.saved = saved  # inputs and options, only where the operation has a composite
        self.hooks: list[Callable[[Any], Any]] | None = None
        self.shard: int | None = None  # the virtual shard that it computes, in reproducible mode


def through(hooks: list[Callable[[Any], Any]], gradient: Any) -> Any:
    """A gradient as hooks leave it; one that returns None leaves it as it is."""
    for hook in list(hooks):
        changed = hook(gradient)
        gradient = gradient if changed is None else changed
    return gradient


def fit(gradient: Any, like: Node | Leaf) -> Any:
    """The gradient in the shape and dtype of the input that it belongs to: broadcasting is undone here."""
    return fitted(gradient, like.shape, like.dtype)


@host
def fitted(gradient: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """A gradient in a shape that was broadcast to its own, and in a dtype."""
    if gradient.shape != shape:
        extra = gradient.ndim - len(shape)
        kept = gradient.shape[extra:]
        stretched = tuple(i + extra for i, (a, b) in enumerate(zip(kept, shape, strict=True)) if a != b)
        gradient = gradient.sum(axis=(*range(extra), *stretched)).reshape(shape)
    return gradient if gradient.dtype == dtype else gradient.astype(dtype)
