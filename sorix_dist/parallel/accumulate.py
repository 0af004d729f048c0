"""Accumulation: one step from several pieces, as if they were one batch."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = {
    "rows": "a mean over rows",
    "own": "a mean over a denominator of its own (class weights or ignored labels)",
    "sum": "a sum",
}


@dataclass(frozen=True, slots=True)
class Denominator:
    """What a loss is divided by in the whole global batch: a kind of KINDS, and the number."""

    kind: str
    value: float

    def joined(self, other: Denominator | None) -> Denominator:
        """That of a sum of two losses; RuntimeError for losses of two kinds."""
        if other is not None and other.kind != self.kind:
            raise mixed(self.kind, other.kind)
        return self


def mixed(first: str, second: str) -> RuntimeError:
    """The error for losses that can't be accumulated together."""
    return RuntimeError(
        f"accumulate: all losses must be divided by the same kind of denominator, got {KINDS[first]} and "
        f"{KINDS[second]}: their sum over the pieces has no common denominator"
    )


class Accumulation:
    """The denominators of the pieces so far.

    Each piece's gradient is multiplied by its denominator, and in the end the sum is divided by the sum of the
    denominators: that is the gradient of the mean over all pieces.
    """

    def __init__(self) -> None:
        self.pieces = 0
        self.kind: str | None = None
        self.denominator = 0.0

    def add(self, piece: Denominator) -> float:
        """Counts a piece; returns the factor on its gradient."""
        if self.kind is not None and self.kind != piece.kind:
            raise mixed(self.kind, piece.kind)
        self.kind = piece.kind
        self.pieces += 1
        self.denominator += piece.value
        return 1.0 if piece.kind == "sum" else piece.value

    @property
    def scale(self) -> float:
        """What the sum of the pieces' gradients is to be multiplied by."""
        if self.kind == "sum":
            return 1.0
        return 1 / self.denominator if self.denominator else 0.0
