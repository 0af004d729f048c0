"""Numbers and arrays that stand beside a batch: gradients follow from them, so every rank must have the same."""

from __future__ import annotations

from math import nan
from typing import Any

import numpy as np

from sorix_dist.core.capture import host
from sorix_dist.core.graph import recording
from sorix_dist.core.placement import REPLICATE, Group, Partial, Shard
from sorix_dist.core.tensor import Tensor, ndarray_of

_WEIGHTS = np.arange(1.0, 1025.0)  # of the elements of an array that are compared
_SPELLED = 8  # characters of a number that a program spells out, at most


def beside_sum(place: Partial, constant: Any) -> Partial:
    """The placement of a sum over ranks times a Replicate, divided by one, or plus one. Beside what was computed from
    rows, such as the root of their mean, a sum has no denominator: pieces of the batch have other ones."""
    group = place.group
    if getattr(constant, "place", None) is REPLICATE and constant.origin is not None:
        place = Partial(group, nan, place.factor, place.held, place.constants)
    if group.parts == 1 or group.isolated:
        return place
    if constant.__class__ in (float, int):
        return place.beside(float(constant))
    if getattr(constant, "origin", None) is not None:
        _compare(group, constant.array)
        return place
    return place.beside(_checksum(ndarray_of(constant)))


def beside_rows(rows: Shard, constant: Any) -> None:
    """Has the ranks compare a Replicate beside rows: an array, a tensor that is no parameter, or a number that was
    computed. What NumPy makes of this rank's rows alone, such as their mean, differs."""
    group = rows.group
    if group.single or group.isolated or is_parameter(constant) or not rows.of_loader or not recording.get():
        return
    if isinstance(constant, Tensor):
        if constant.place is None:
            _compare(group, constant.array, *_sizes(rows, constant.array))
    elif isinstance(constant, np.ndarray | np.generic) or (constant.__class__ is float and _is_computed(constant)):
        _compare(group, constant, *_sizes(rows, constant))


def _sizes(rows: Shard, constant: Any) -> tuple[Any, ...]:
    """The shape of a constant and the lengths of the batch, for `Group.compare`, if a function of the user's made the
    batch."""
    lengths = rows.batch.whole.lengths
    return (np.shape(constant), lengths, rows.held) if lengths else ()


def _is_computed(number: float) -> bool:
    """Whether a number is likely to be computed, and not spelled out in the program: nan, as a mean of no rows is, or
    one of many digits."""
    if number * 256 % 1 == 0:  # as 0.5, and soon known
        return False
    return number != number or len(repr(number)) > _SPELLED


def is_parameter(x: Any) -> bool:
    """Whether an operand is a Replicate that collects a gradient. The ranks have compared it when it was wrapped."""
    origin = getattr(x, "origin", None)
    return origin is not None and origin is x.leaf and x.place is None


@host
def _compare(group: Group, constant: Any, *sizes: Any) -> None:
    if ndarray_of(constant).dtype.kind in "fiub":
        group.compare(_checksum(constant), *sizes)


@host
def _checksum(array: Any) -> float:
    """A number that depends on those of an array, and on their order."""
    numbers = np.ravel(array, order="K")
    numbers = numbers[:: 1 + len(numbers) // len(_WEIGHTS)]
    return float(numbers @ _WEIGHTS[: len(numbers)])
