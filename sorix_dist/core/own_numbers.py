"""Numbers that Python gets of this rank's rows alone, though the program means all rows: warnings, and a refusal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from sorix_dist.core.batch_numbers import DRAWING, BatchNumber, of_batch, others_draw
from sorix_dist.core.calling_code import is_argument, is_kept_in_a_list, is_operand, is_shown
from sorix_dist.core.placement import SUM, Deferred, Partial, Shard, current_group, refuse_value


def warn_of_own_length(place: Any) -> None:
    """Warns of the length of what a mask has selected of this rank's rows, and of arithmetic with that of its rows."""
    if not isinstance(place, Shard) or place.axis or place.group.single:
        return
    if place.batch.parent is not None:
        place.group.warn(
            "len() of what a mask has selected counts this rank's rows: mask.sum() is the number in the global batch "
            "[docs: own-numbers]"
        )
        return
    place.group.measured = place.held, place.total
    if place.held == place.total:
        return
    caller = sys._getframe(2)  # len() has no frame
    if is_argument(caller, DRAWING):
        place.group.warn(f"len(): {others_draw(place.held, place.total)}")
    if is_operand(caller):
        place.group.warn(
            f"len() counts this rank's rows, {place.held} of the {place.total} of the global batch: x.size(0) counts "
            "all of them beside losses and tensors of the batch, and sx.global_rows(x) everywhere [docs: own-numbers]"
        )


def warn_of_own_positions(shape: tuple[int, ...], parts: Iterable[Any]) -> None:
    """Warns of positions in what has the rows of all ranks, if they may follow from this rank's number of rows."""
    group = current_group()
    if group.measured is None or group.single:
        return
    own, total = group.measured
    if own != total and any(n == total and _may_follow(part, own) for n, part in zip(shape, parts, strict=False)):
        group.warn(
            f"positions among the {total} rows of all ranks, after len(x) or range(x.shape[0]) has given this rank's "
            f"number of rows, {own}: if they follow from it, use sx.global_rows(x) [docs: own-numbers]"
        )


def _may_follow(part: Any, own: int) -> bool:
    """Whether a part of an index is that of the first rows, or of the last ones of a loop over this rank's rows."""
    if not isinstance(part, slice):
        return isinstance(part, int) and own > 1 and part == own - 1
    start, stop = part.start or 0, part.stop
    if not isinstance(start, int) or not isinstance(stop, int):
        return stop is None and start == own - 1 > 0
    return start == 0 or start < own <= stop


def warn_of_own_divisor(place: Partial, divisor: Any) -> None:
    """Warns of a sum over rows that is divided by the number of rows of this rank, unless that is x.shape[0]."""
    own = place.denominator == SUM and isinstance(divisor, int | float) and divisor == place.held
    if own and not place.group.single and not of_batch.get():
        place.group.warn(
            f"a sum over the rows of all ranks is divided by {divisor}, the number of rows of this rank. The mean over "
            "the global batch is .mean(); its number of rows is sx.global_rows(xb) [docs: own-numbers]"
        )


def refuse_one_of_many(tensor: Any) -> None:
    """ValueError for the only row of this rank if there are others."""
    place = tensor.place
    if isinstance(place, Deferred):
        refuse_value(place, tensor.array, "the number of a tensor")
    if isinstance(place, Shard):
        one = tensor.array.size == 1 and not place.group.single and place.batch.known is not None
        if one and place.total != 1:
            raise ValueError(
                f"this rank has one of the {place.total} rows of the batch, so its number differs on every number of "
                "ranks: sx.global_value(x) gives all rows [docs: own-numbers]"
            )


def is_of_part(x: Any) -> bool:
    """Whether a number, or a sum or a mean over rows, is known of this rank's rows alone."""
    if isinstance(x, BatchNumber):
        return x.everywhere is None
    place = getattr(x, "place", None)
    partial = isinstance(place, Partial) and place.group.parts > 1 and not place.group.isolated
    return partial and not hasattr(x, "complete")


def warn_of_given(name: str, value: Any, rows: bool = False) -> None:
    """Warns of what this package shows or saves, if it is of this rank's rows alone; rows: or if it is these."""
    place = getattr(value, "place", None) if rows else None
    if is_of_part(value) or (isinstance(place, Shard) and not place.group.single):
        current_group().warn(
            f"{name} is that of this rank's rows alone, as a mean over rows is before its backward(): "
            "sx.global_value(x) is that over the global batch [docs: own-numbers]"
        )


def warn_of_part(tensor: Any, what: str) -> None:
    """Warns that what Python gets of a sum over rows, or of a mean without a gradient such as a statistic, is this
    rank's."""
    place = tensor.place
    if isinstance(place, Deferred):
        refuse_value(place, tensor.array, what)
    if not isinstance(place, Partial) or place.group.parts == 1 or place.group.isolated or hasattr(tensor, "complete"):
        return
    if place.denominator == SUM:
        found = "a sum over rows is this rank's part of the sum"
    elif what != "item()":
        found = "a mean over rows is that over this rank's rows"
    elif is_kept_in_a_list(caller := sys._getframe(3)) or is_shown(caller):  # beyond _number() and item()
        found = "a mean over rows, kept in a list or shown before its backward(), is that over this rank's rows"
    else:
        return
    place.group.warn(f"{what} of {found}: sx.global_value(x) is that over the global batch [docs: own-numbers]")
