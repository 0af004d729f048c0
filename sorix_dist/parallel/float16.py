"""float16 with scales: one for a message, or one for each block of fixed places, so that the bits do not depend on the
message."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from sorix_dist.core.tensor import Array

LARGEST = 60_000.0  # the largest sum in float16: a little below the largest float16, because the terms are rounded
ALIGNED = np.float32(2.0**-112)  # shifts the exponents of float32 to those of float16
SIZE = 8192  # numbers of a block
BITS, SMALLEST = 11, 2.0**-24  # the significant bits of a float16, and its smallest number


class Half:
    """Sends float16, scaled per message by a power of two that keeps the maximum from overflowing; the scale is sent
    too. A scale of 0: the numbers are not scaled, because some are not finite.

    It converts by operations on bits, three times as fast as NumPy, with the same result but for the last bit of some
    subnormal numbers: times 2**-112, a float32 has its exponent where the float16 has it, but for a shift by 13 bits.
    """

    itemsize: int | None = 2

    def __init__(self) -> None:
        self._scratch = np.empty((2, 0), np.int32)

    def pack(self, numbers: Array, body: Array, spare: float = 1.0) -> float:
        """See `Wire`. spare: a power of two by which the largest number stays below the largest float16."""
        half, size = body.view(np.float16), size_of(numbers)
        if size == math.inf:
            with np.errstate(over="ignore"):
                np.copyto(half, numbers, casting="same_kind")
            return 0.0
        scale = scale_of(size * spare)
        bits, rounded = self._integers(numbers.size)
        floats = scaled(numbers, scale, bits.view(np.float32))
        floats *= ALIGNED
        # Round to the nearest, or to the even one of two; then the sign, from bit 18 to bit 15.
        np.right_shift(bits, 13, out=rounded)
        rounded &= 1
        rounded += bits
        rounded += 0xFFF
        rounded >>= 13
        np.right_shift(rounded, 3, out=bits)
        bits &= 0x8000
        rounded |= bits
        np.copyto(half.view(np.int16), rounded, casting="unsafe")
        return scale

    def add(self, body: Array, scale: float, numbers: Array) -> float:
        total = np.empty(numbers.size, np.promote_types(numbers.dtype, np.float32))
        self.unpack(body, scale, total)
        with np.errstate(over="ignore", invalid="ignore"):
            total += numbers
        return self.pack(total, body)

    def unpack(self, body: Array, scale: float, out: Array) -> None:
        half = body.view(np.float16)
        if scale == 0:
            np.copyto(out, half, casting="same_kind")
            return
        bits, _ = self._integers(half.size)
        np.left_shift(half.view(np.int16), 13, out=bits, dtype=np.int32)
        bits &= ~(7 << 28)  # copies of the sign
        floats = bits.view(np.float32)
        floats *= 1 / ALIGNED
        with np.errstate(over="ignore"):
            scaled(floats, 1 / scale, out)

    def _integers(self, count: int) -> Array:
        """Two scratch arrays of `count` int32 each."""
        if self._scratch.shape[1] < count:
            self._scratch = np.empty((2, count), np.int32)
        return self._scratch[:, :count]


def size_of(numbers: Array) -> float:
    """The size of the largest number; infinity if one is not a number."""
    largest = float(max(numbers.max(), -numbers.min())) if numbers.size else 0.0
    return math.inf if math.isnan(largest) else largest


def scale_of(size: float) -> float:
    """The largest power of two that scales a number of this size into the range of float16; 1 if it is not finite.
    Unscaled, small numbers would become subnormal: they lose bits, and NumPy converts them 25 times slower."""
    if not 0 < size < math.inf:
        return 1.0
    # Both the factor and its inverse must be normal in float32.
    return 2.0 ** min(max(math.floor(math.log2(LARGEST) - math.log2(size)), -120), 120)


def scaled(numbers: Array, scale: float, result: Array) -> Array:
    """Multiplies in at least float32, since the factor may exceed float16, and writes to an array of any dtype."""
    factor = np.promote_types(result.dtype, np.promote_types(numbers.dtype, np.float32)).type(scale)
    np.multiply(numbers, factor, out=result, casting="same_kind")
    return result


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
