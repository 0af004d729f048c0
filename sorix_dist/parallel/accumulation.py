"""Several backwards for one sum over the ranks: accumulation, as if its pieces were one batch, and `no_sync`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from sorix_dist.core.capture import changed, host, outside
from sorix_dist.core.placement import SUM, Partial, Placement, current_group

if TYPE_CHECKING:
    from sorix_dist.parallel.coordinator import Coordinator

Piece = TypeVar("Piece")

_NO_DENOMINATOR = (
    "accumulate: the loss of a piece must be a sum or a mean over rows with one denominator, got {}: the sum over the "
    "pieces has no common denominator. Inside `with model.no_sync():` a backward of (loss / number of pieces) adds up "
    "what you decide"
)
_SEVERAL = "the sum of several with different ones, or of one beside a root or a product of others"
# The weight of a piece with no valid targets. Beside other pieces it vanishes; if all pieces are empty, a penalty on
# the weights still counts once.
_NOTHING = 2.0**-60


class Accumulation:
    """The denominators of the pieces so far; a piece may have several backwards.

    Each piece's gradient is multiplied by its denominator, and in the end the sum is divided by the sum of the
    denominators: that is the gradient of the mean over all pieces.
    """

    def __init__(self) -> None:
        self.denominator = 0.0
        self.failed = False
        self._sums: bool | None = None  # whether all losses are sums
        self._piece: float | None = None

    @host
    def next_piece(self) -> None:
        """Begins another piece: the backwards from here on belong to it."""
        self._piece = None

    def add(self, place: Placement) -> float:
        """Counts the loss of a backward, by its placement; returns the factor on its gradient."""
        self.check()
        denominator = place.denominator if isinstance(place, Partial) else None
        if denominator is None:
            raise RuntimeError(_NO_DENOMINATOR.format("one that is the same on every rank"))
        if denominator != denominator:
            raise RuntimeError(_NO_DENOMINATOR.format(_SEVERAL))
        sums = denominator == SUM
        if self._sums not in (None, sums):
            raise RuntimeError(_NO_DENOMINATOR.format("a sum in one piece and a mean in another"))
        value = 1.0 if sums else denominator or _NOTHING
        if self._piece not in (None, value):
            raise RuntimeError(_NO_DENOMINATOR.format(f"{self._piece:g} and {value:g} in one piece"))
        if self._piece is None:
            self.denominator += value
        self._sums, self._piece = sums, value
        return value

    def check(self) -> None:
        """RuntimeError if a backward has failed, since that discards the gradients of all earlier pieces."""
        if self.failed:
            raise RuntimeError("accumulate: a backward has failed in this loop, so that its sum lacks pieces: leave it")

    @property
    def scale(self) -> float:
        """The factor on the sum of the pieces' gradients."""
        return 1 / self.denominator if self.denominator and not self._sums else 1.0


def accumulate(coordinator: Coordinator, pieces: Iterable[Piece]) -> Iterator[Piece]:
    """See `DistributedDataParallel.accumulate`."""
    accumulation = begin_accumulation(coordinator)
    try:
        for piece in pieces:
            accumulation.next_piece()
            yield piece
    except BaseException:
        abandon(coordinator)
        raise
    finish_accumulation(coordinator)


@host
def begin_accumulation(coordinator: Coordinator) -> Accumulation:
    """RuntimeError if gradients of earlier backwards are not summed yet."""
    if coordinator.accumulation is not None or coordinator.pending:
        raise RuntimeError(
            "accumulate: the gradients of earlier backwards are not synchronised yet: end the loop over "
            "accumulate, or call backward outside of no_sync, before the next accumulate"
        )
    for bucket in coordinator.buckets:
        bucket.reducer.begin_backward(False)
        bucket.reducer.stage()
    coordinator.accumulation = Accumulation()
    return coordinator.accumulation


@host
def finish_accumulation(coordinator: Coordinator) -> None:
    """Sums the gradients of all pieces over the ranks."""
    accumulation, coordinator.accumulation = coordinator.accumulation, None
    assert accumulation is not None
    accumulation.check()
    coordinator.synchronise(accumulation.scale)


def abandon(coordinator: Coordinator) -> None:
    """Ends an accumulation before its last piece, and discards its gradients."""
    coordinator.accumulation = None
    coordinator.backward_failed()


@contextmanager
def no_sync(coordinator: Coordinator) -> Iterator[None]:
    """See `DistributedDataParallel.no_sync`."""
    outside("no_sync can't be captured; accumulate can")
    group = current_group()
    if not group.single and any(leaf.hooks for bucket in coordinator.buckets for leaf in bucket.leaves):
        group.warn(
            "no_sync: on several ranks a hook of a parameter gets the sum of these backwards and of the first one "
            "after them at once, where one process calls it for each"
        )
    before, coordinator.synchronising = coordinator.synchronising, False
    changed()
    try:
        yield
    finally:
        coordinator.synchronising = before
        changed()
