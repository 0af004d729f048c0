"""The graph that operations record for a backward: nodes, and leaves, which accumulate gradients; and whether they
record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ContextDecorator
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any, Protocol, final

import numpy as np

from sorix_dist.core.capture import changed, host
from sorix_dist.core.memory import Array as Array
from sorix_dist.core.memory import read_only
from sorix_dist.core.placement import Group, Partial, Placement, Shard
from sorix_dist.core.sums import sum_in_blocks

if TYPE_CHECKING:
    from sorix_dist.core.flat import Flat
    from sorix_dist.core.op import Op

recording: ContextVar[bool] = ContextVar("recording", default=True)  # whether operations are recorded for a backward


class _Recording(ContextDecorator):
    """Switches recording on or off, for a `with` block or a decorated function."""

    mode: bool

    def __init__(self) -> None:
        self._tokens: list[Token[bool]] = []

    def __enter__(self) -> None:
        self._tokens.append(recording.set(self.mode))

    def __exit__(self, *exception: object) -> None:
        recording.reset(self._tokens.pop())

    def _recreate_cm(self) -> _Recording:
        # A decorated function may run in several threads at once, each in a context of its own.
        return enable_grad() if self.mode else no_grad()


class no_grad(_Recording):  # noqa: N801 (PyTorch's name)
    """A context without recording: results do not require a gradient."""

    mode = False


class inference_mode(_Recording):  # noqa: N801 (PyTorch's name)
    """The same as `no_grad`, for compatibility with PyTorch; with `mode=False` operations are recorded."""

    def __init__(self, mode: bool = True) -> None:
        super().__init__()
        self.mode = not mode


class enable_grad(_Recording):  # noqa: N801 (PyTorch's name)
    """A context with recording, also within `no_grad`."""

    mode = True


class set_grad_enabled(_Recording):  # noqa: N801 (PyTorch's name)
    """Switches recording on or off: from this call on, for a `with` block, or for a decorated function."""

    def __init__(self, mode: bool) -> None:
        super().__init__()
        self.mode = bool(mode)
        super().__enter__()

    def __enter__(self) -> None:
        recording.set(self.mode)

    def __call__(self, function: Any) -> Any:
        recording.reset(self._tokens.pop())
        return super().__call__(function)


def is_grad_enabled() -> bool:
    """Whether operations are being recorded."""
    return recording.get()


class Edit(Protocol):
    """Copies of the parameters that all ranks share, while a method of a user's optimizer changes them."""

    optimizer: Any

    def settled(self) -> AbstractContextManager[None]:
        """A context in which the parameters are those of all ranks again, with the changes so far."""


editing: ContextVar[Edit | None] = ContextVar("editing", default=None)  # of the method that is running


# A rule takes the gradient of an operation's result to that of one input. It may write into `out` (the
# input's shape and dtype, or None) and return it; it must not change the gradient that it was given.
Rule = Callable[[Any, Array | None], Any]


class Described(Protocol):
    """An object that ranks compare by a digest."""

    def describe(self) -> str:
        """The values behind the digest, for an error message."""


Visitor = Callable[["Node | Leaf", Any], None]


class Sync:
    """The tape's hook around a backward, which combines gradients over the ranks of `group`.

    This base class is for what follows from a sum over ranks without any synchronised leaf. All ranks compute the same
    there, so each starts its backward with an equal share of the seed. `parallel` derives the one of wrapped models.
    """

    pending = False  # whether `grad` of some leaves lacks gradients that are not synchronised yet

    def __init__(self, group: Group) -> None:
        self.group = group

    def before_backward(self, place: Placement) -> tuple[float, Visitor | None]:
        """Prepares the leaves for the backward of a loss with this placement. Returns the factor on the seed and, if
        needed, a function that the walk calls with every node and its gradient, before the node's rules."""
        return (1.0 if isinstance(place, Shard | Partial) else 1 / self.group.parts), None

    def after_backward(self, loss: Any, terms: Sequence[Any] = ()) -> None:
        """Synchronises the gradients that the backward of `loss` has added to `Leaf.local`. With the loss its terms
        get their values of the global batch."""

    def backward_failed(self) -> None:
        """Is called instead of `after_backward` if the backward raised."""

    def before_step(self, digest: int, optimizer: Described) -> None:
        """An optimizer is about to move the leaves. digest: of its options and step counts, which must be the same on
        every rank; `optimizer` describes them."""

    def before_state(self) -> None:
        """The state of an optimizer of the leaves is about to be saved or loaded."""

    def discard(self, leaf: Leaf) -> None:
        """Discards the pending gradient of a leaf."""


def refuse_pending(syncs: list[Sync]) -> None:
    """RuntimeError if there are gradients that are not summed over the ranks yet."""
    for sync in syncs:
        if sync.pending:
            raise RuntimeError(
                "step: the gradients of the last backwards are not synchronised yet: step after the loop over "
                "model.accumulate(...), or after a backward outside of model.no_sync()"
            )


def joined(one: Sync, other: Sync) -> Sync:
    """The Sync of an operation on tensors of both. RuntimeError if they belong to different groups of ranks."""
    if type(one) is Sync:
        one, other = other, one
    if type(other) is Sync and one.group is other.group:
        return one
    raise RuntimeError(
        "a loss follows from sums over two different groups of ranks: compute two losses"
        if type(one) is Sync
        else "one loss can't reach models that are wrapped in different communicators: wrap the second with "
        "comm=first.comm"
    )


class Accumulator:
    """An array in which gradients accumulate.

    shown: the view of it that users get, read-only if `frozen`; written: whether it has a gradient.
    """

    __slots__ = ("array", "shown", "written")

    def __init__(self, array: Array | None = None, frozen: bool = False) -> None:
        self.array = array
        self.shown = array if array is None or not frozen else read_only(array)
        self.written = False

    def allocated(self, leaf: Leaf) -> Array:
        """The array of this accumulator, allocated at first use."""
        if self.array is None:
            self.array = self.shown = np.empty(leaf.shape, leaf.dtype)
        return self.array

    def show(self, leaf: Leaf) -> Array:
        """The view that users get."""
        array = self.allocated(leaf)
        return array if self.shown is None else self.shown


@final
class Leaf:
    """The gradient of a leaf tensor, one that no operation made.

    A backward adds into `local`; `total` is the tensor's `grad`. They are the same accumulator, unless `sync` combines
    the local gradients of several processes into the total.
    """

    __slots__ = ("dtype", "flat", "hooks", "local", "name", "shape", "sharded", "sync", "total", "turn", "view")
    terms = None  # see Node

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape = shape
        self.dtype = dtype
        self.local = self.total = Accumulator()
        self.flat: Flat | None = None
        self.sync: Sync | None = None
        self.sharded = False  # whether it is rows of a batch, whose gradients are not summed over ranks
        self.view: Any = None  # the Tensor of the total, `grad`
        self.hooks: list[Callable[[Any], Any]] | None = None  # called with a gradient before it is added
        self.turn = 0  # numbers the leaves with hooks in the order in which a backward first reaches them
        self.name = ""  # of the parameter in its module

    def deposit(self, part: Array) -> None:
        """Adds a copy of `part`."""
        part, local = fit(part, self), self.local
        array = local.allocated(self)
        if local.written:
            array += part
        else:
            np.copyto(array, part)
            local.written = True


def zero(leaves: Iterable[Leaf]) -> None:
    """Marks gradients as absent. The next ones overwrite their memory, so nothing is cleared."""
    for leaf in leaves:
        leaf.total.written = False
        sync, view = leaf.sync, leaf.view
        if sync is not None and sync.pending:  # gradients of earlier backwards that `sync` has not added to `grad` yet
            sync.discard(leaf)
        if view is not None and view.origin is not None:
            leaf.view = None


def syncs_of(leaves: Iterable[Leaf]) -> list[Sync]:
    """The `Sync` of leaves, without duplicates."""
    return list({id(leaf.sync): leaf.sync for leaf in leaves if leaf.sync is not None}.values())


class Node:
    """One recorded operation: its gradient rules, one per input, and the nodes or leaves of the inputs (`edges`).

    terms: of a sum over ranks, the sums that it was computed from. last: of an assignment in a loop, the axis and the
    largest index that was assigned to so far; unset for others.
    """

    __slots__ = (
        "dtype", "edges", "hooks", "last", "number", "op", "result", "rules", "saved", "shape", "shard", "sync",
        "terms",
    )  # fmt: skip
    last: tuple[int, int] | None

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
        self.rules: Sequence[Rule | None] | None = rules  # None after a backward, which frees them
        self.edges = edges
        self.sync = sync
        self.shape: tuple[int, ...] = array.shape
        self.dtype = array.dtype
        self.result = result  # id of what the operation's function returned
        self.saved = saved  # inputs and options, only where the operation has a composite
        self.terms: list[Any] | None = None
        self.hooks: list[Callable[[Any], Any]] | None = None
        self.shard: int | None = None  # the virtual shard that it computes, in reproducible mode


def summing_group(origin: Node | Leaf | None) -> Group | None:
    """The ranks whose sum the gradient of a computed tensor is, if every rank holds the tensor alike."""
    return origin.sync.group if isinstance(origin, Node) and origin.sync is not None else None


class Hook:
    """A function that is registered with a tensor."""

    def __init__(self, hooks: list[Any], function: Callable[[Any], Any]) -> None:
        self._hooks = hooks
        self._function = function

    def remove(self) -> None:
        """Stops the calls; a second time does nothing."""
        changed()
        if self._function in self._hooks:
            self._hooks.remove(self._function)


def through(hooks: list[Callable[[Any], Any]], gradient: Any) -> Any:
    """Applies hooks to a gradient in order; a hook that returns None does not change it."""
    for hook in list(hooks):
        answer = hook(gradient)
        gradient = gradient if answer is None else answer
    return gradient


def fit(gradient: Any, like: Node | Leaf) -> Any:
    """The gradient in the shape and dtype of its input: it is summed over the axes of a broadcast."""
    fits = gradient.shape == like.shape and gradient.dtype == like.dtype
    return gradient if fits else fitted(gradient, like.shape, like.dtype)


@host
def fitted(gradient: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """Sums a gradient down to `shape`, which was broadcast to the gradient's own, and casts it to `dtype`."""
    if gradient.shape != shape:
        extra = gradient.ndim - len(shape)
        trailing = gradient.shape[extra:]
        stretched = tuple(i + extra for i, (a, b) in enumerate(zip(trailing, shape, strict=True)) if a != b)
        axes = (*range(extra), *stretched)
        total = sum_in_blocks(gradient, axes) if isinstance(gradient, np.ndarray) else gradient.sum(axis=axes)
        gradient = total.reshape(shape)
    return gradient if gradient.dtype == dtype else gradient.astype(dtype)
