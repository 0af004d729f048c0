"""float16 in blocks of fixed places, each with a scale of its own, so that bits do not depend on who sends them."""

from __future__ import annotations

import numpy as np

from sorix_dist.core.tensor import Array
from sorix_dist.parallel.comm_hooks import Half

SIZE = 8192
"""Numbers of a block."""


def whole_blocks(count: int) -> int:
    """The least number of numbers, `count` or more, that are whole blocks."""
    return -(-count // SIZE) * SIZE


class HalfBlocks:
    """Rounds `count` numbers to float16 and makes messages of them: the scale of each block, then all numbers.

    nbytes: of a message.
    """

    def __init__(self, count: int) -> None:
        self._half = Half()
        self._blocks = [slice(at, min(at + SIZE, count)) for at in range(0, count, SIZE)]
        self._head = 8 * len(self._blocks)
        self.nbytes = self._head + 2 * count

    def round(self, numbers: Array) -> None:
        """Rounds to what float16 has at half the scale that a message would take. Rounding up to a power of two halves
        the message's scale at most, so a message of these numbers, or of whole blocks of them, is exact."""
        body = np.empty(2 * SIZE, np.uint8)
        for block in self._blocks:
            own = body[: 2 * (block.stop - block.start)]
            scale = self._half.pack(numbers[block], own, spare=2.0)
            self._half.unpack(own, scale, numbers[block])

    def encode(self, numbers: Array, message: Array) -> None:
        """Writes a message of rounded numbers."""
        scales, body = self._parts(message)
        for i, block in enumerate(self._blocks):
            scales[i] = self._half.pack(numbers[block], body[2 * block.start : 2 * block.stop])

    def decode(self, message: Array, out: Array) -> None:
        """Writes the numbers of a message."""
        scales, body = self._parts(message)
        for i, block in enumerate(self._blocks):
            self._half.unpack(body[2 * block.start : 2 * block.stop], scales[i], out[block])

    def _parts(self, message: Array) -> tuple[Array, Array]:
        return message[: self._head].view(np.float64), message[self._head :]
