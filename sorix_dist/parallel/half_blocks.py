"""float16 in blocks of fixed places, each with a scale of its own, so that bits do not depend on who sends them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sorix_dist.core.tensor import Array
from sorix_dist.parallel.comm_hooks import Half, scale_of, size_of

SIZE = 8192
"""Numbers of a block."""

BITS, SMALLEST = 11, 2.0**-24
"""The significant bits of a float16, and its smallest number."""


def whole_blocks(count: int) -> int:
    """The least number of numbers, `count` or more, that are whole blocks."""
    return -(-count // SIZE) * SIZE


class HalfBlocks:
    """Rounds numbers to float16 and makes messages of them: the scale of each block, then all numbers."""

    def __init__(self) -> None:
        self._half = Half()

    def round(self, numbers: Array) -> None:
        """Rounds to what float16 has at half the scale that a message would take. Rounding up to a power of two halves
        the message's scale at most, so a message of these numbers, or of whole blocks of them, is exact."""
        info = np.finfo(numbers.dtype)
        many = 2.0 ** (info.nmant - BITS + 1)
        one, other = np.empty((2, min(numbers.size, SIZE)), numbers.dtype)
        for block in _blocks(numbers.size):
            x = numbers[block]
            largest = size_of(x)
            if many == 1 or not 0 < largest < info.max / (2 * many):
                body = np.empty(2 * x.size, np.uint8)
                self._half.unpack(body, self._half.pack(x, body, spare=2.0), x)
                continue
            # Adding 1.5 * 2**nmant units leaves no bits below the unit, which is that of float16's subnormal numbers.
            x += (shift := numbers.dtype.type(1.5 * 2.0**info.nmant * SMALLEST / scale_of(2 * largest)))
            x -= shift
            # The first bits of each number (Dekker 1971, A floating-point technique for extending the available
            # precision, section 5).
            product = np.multiply(x, numbers.dtype.type(many + 1), out=one[: x.size])
            np.subtract(product, np.subtract(product, x, out=other[: x.size]), out=x)

    def encode(self, numbers: Array) -> Array:
        """A message of rounded numbers."""
        head = 8 * -(-numbers.size // SIZE)
        message = np.empty(head + 2 * numbers.size, np.uint8)
        scales, body = message[:head].view(np.float64), message[head:]
        for i, block in enumerate(_blocks(numbers.size)):
            scales[i] = self._half.pack(numbers[block], body[2 * block.start : 2 * block.stop])
        return message

    def decode(self, message: Array, out: Array) -> None:
        """Writes the numbers of a message."""
        scales, body = message[: -2 * out.size].view(np.float64), message[-2 * out.size :]
        for i, block in enumerate(_blocks(out.size)):
            self._half.unpack(body[2 * block.start : 2 * block.stop], scales[i], out[block])


def _blocks(count: int) -> Iterator[slice]:
    return (slice(at, min(at + SIZE, count)) for at in range(0, count, SIZE))
