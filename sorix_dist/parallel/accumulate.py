"""Accumulation: one step from several pieces, as if they were one batch."""

from __future__ import annotations

from typing import NamedTuple

from sorix_dist.core.tensor import Rows

NO_ROWS = Rows(0, 0, 0)
"""Where a backward says nothing of the batch that it is of."""

KINDS = {
    "rows": "a mean over rows",
    "own": "a mean over a denominator of its own (class weights or ignored labels)",
    "sum": "a sum",
}


class Denominator(NamedTuple):
    """What a loss is divided by in the whole global batch: a kind of KINDS, and the number."""

    kind: str
    value: float

    def joined(self, other: Denominator | None) -> Denominator:
        """That of a sum of two losses of one piece; RuntimeError if they have two."""
        if other is not None and other.kind != self.kind:
            raise mixed(self.kind, other.kind)
        if other is not None and other.value != self.value:
            raise RuntimeError(
                f"accumulate: all losses of a piece must have one denominator, got {KINDS[self.kind]} of "
                f"{self.value:g} and of {other.value:g}: their sum over the pieces has no common denominator"
            )
        return self


def mixed(first: str, second: str) -> RuntimeError:
    """The error for losses that can't be accumulated together."""
    return RuntimeError(
        f"accumulate: all losses must be divided by the same kind of denominator, got {KINDS[first]} and "
        f"{KINDS[second]}: their sum over the pieces has no common denominator"
    )


# What a piece in which nothing counts is taken for: too little to be seen beside others, but where all pieces are so, a
# penalty on the weights still counts once.
_NOTHING = 2.0**-60


class Accumulation:
    """The denominators of the pieces so far; a piece may have several backwards.

    Each piece's gradient is multiplied by its denominator, and in the end the sum is divided by the sum of the
    denominators: that is the gradient of the mean over all pieces.
    """

    def __init__(self) -> None:
        self.kind: str | None = None
        self.denominator = 0.0
        self.rows = NO_ROWS  # of the latest batch
        self.failed = False
        self._piece: Denominator | None = None

    def next_piece(self) -> None:
        """Is told that the backwards from here on are those of another piece."""
        self._piece = None

    def add(self, loss: Denominator) -> float:
        """Counts the loss of a backward; returns the factor on its gradient."""
        self.check()
        if self.kind is not None and self.kind != loss.kind:
            raise mixed(self.kind, loss.kind)
        loss.joined(self._piece)
        value = loss.value or _NOTHING
        if self._piece is None:
            self.denominator += value
        self.kind, self._piece = loss.kind, loss
        return 1.0 if loss.kind == "sum" else value

    def check(self) -> None:
        """RuntimeError if a backward has failed, which took the gradients of all pieces before with it."""
        if self.failed:
            raise RuntimeError("accumulate: a backward has failed in this loop, so that its sum lacks pieces: leave it")

    @property
    def scale(self) -> float:
        """What the sum of the pieces' gradients is to be multiplied by."""
        return 1 / self.denominator if self.denominator and self.kind != "sum" else 1.0
