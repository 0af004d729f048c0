"""Sums of numbers without any rounding, so that neither their order nor who adds which of them matters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# All finite float64 are integers times 2**-1074, and so are their parts of 53 bits that are cut here, times
# 2**-1127. Sums are kept as Python's integers, in units of this size.
BITS = 1127
_BLOCK = 1 << 20  # elements that are added at a time: up to 2**26 the partial sums below are exact


def exact(value: float | int) -> int:
    """A finite number in units of 2**-BITS."""
    numerator, denominator = value.as_integer_ratio()  # the denominator is a power of two
    return numerator << (BITS + 1 - denominator.bit_length())


def exact_sum(values: Array) -> int:
    """The sum of an array of finite numbers or integers, in units of 2**-BITS."""
    flat = values.reshape(-1)
    if flat.dtype.kind in "iub":
        flat = flat.astype(np.int64) if flat.dtype != np.uint64 else flat
        high, low = int((flat >> 32).sum()), int((flat & 0xFFFFFFFF).sum())
        return ((high << 32) + low) << BITS
    return sum(_block_sum(flat[start : start + _BLOCK]) for start in range(0, flat.size, _BLOCK))


def _block_sum(block: Array) -> int:
    """By exponent: the upper and lower halves of 53-bit integers, whose sums float64 still holds exactly."""
    parts, exponents = np.frexp(block.astype(np.float64))
    integers = np.ldexp(parts, 53)
    high = np.floor(np.ldexp(integers, -26))
    low = integers - np.ldexp(high, 26)
    least = int(exponents.min())
    places = exponents - least
    total = 0
    for place, (upper, lower) in enumerate(zip(np.bincount(places, high).tolist(), np.bincount(places, low).tolist())):
        if upper or lower:
            total += ((int(upper) << 26) + int(lower)) << (place + least - 53 + BITS)
    return total


class ExactMean:
    """The mean of weighted numbers, of which any part may have been added anywhere: exact until it is asked for.

    total: the sum of the products of values and weights, in units of 2**(-2 * BITS); weight: that of the weights,
    in units of 2**-BITS; odd: the kinds of infinities and NaN among the values.
    """

    def __init__(self, total: int = 0, weight: int = 0, odd: frozenset[str] = frozenset()) -> None:
        self.total, self.weight, self.odd = total, weight, odd

    def add(self, values: Array, weight: float | int) -> None:
        """Adds values that have the same weight each."""
        share = exact(weight)
        count = values.size
        if values.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
            self.odd |= {str(value) for value in values[~finite].astype(np.float64).tolist()}
            values = values[finite]
        self.total += exact_sum(values) * share
        self.weight += count * share

    def add_one(self, value: float | int, weight: float | int) -> None:
        """Adds one value."""
        share = exact(weight)
        if math.isfinite(value):
            self.total += exact(value) * share
        else:
            self.odd |= {str(float(value))}
        self.weight += share

    def __add__(self, other: ExactMean) -> ExactMean:
        return ExactMean(self.total + other.total, self.weight + other.weight, self.odd | other.odd)

    def value(self) -> float:
        """The mean, rounded once; NaN if there is no weight."""
        if not self.weight or len(self.odd) > 1:
            return math.nan
        if self.odd:
            return float(next(iter(self.odd)))
        return self.total / (self.weight << BITS)
