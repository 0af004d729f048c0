"""The sum of an array over two ranks on two hosts: both send it in pieces and add those that arrive meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

import numpy as np

from sorix_dist.comm.protocol import Array, Comm, Wire

PIECE = 60 << 10
"""Bytes per message. Open MPI gives a message of up to 64 KB to the kernel at once, which sends it while this rank
computes; of a longer one, the first bytes must be answered before the others go."""

HEAD = 64
"""Bytes that a wire format may put before the numbers of a piece."""

AHEAD = 64
"""Messages by which a rank may be ahead of what it received: what the other one may have to store."""


class Request(Protocol):
    """A message that is being sent or received."""

    def wait(self) -> object:
        """Return when the message's memory may be used again."""


Transfer = Callable[[Array], Request]
"""Starts to send, or to receive, a message. Messages arrive in the order in which they were sent."""


class Plain:
    """The wire format without an encoding."""

    itemsize: int | None = None

    def packed(self, numbers: Array) -> Array:
        return numbers.view(np.uint8)

    def add(self, first: Array, second: Array, out: Array) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            np.add(first.view(out.dtype), second.view(out.dtype), out=out)


class PairExchange:
    """An `Exchange` between the two ranks of `comm`, over a channel of its own: `send` and `receive`.

    Pieces go from the end of the array to its start, always cut at the same places. So a rank knows what arrives as
    soon as it knows how many messages the other rank has withdrawn.
    """

    def __init__(self, comm: Comm, send: Transfer, receive: Transfer, wire: Wire | None = None) -> None:
        self.comm = comm
        self.wire = Plain() if wire is None else wire
        self._transmit, self._receive = send, receive
        self._under_way: deque[tuple[Array, Request]] = deque()
        self._withdrawn = 0  # the first ones of those under way
        self._buffers: list[Array] = []

    def send(self, array: Array, start: int) -> None:
        first, most = len(self._under_way) - self._withdrawn, AHEAD - self._withdrawn
        self._send(array, [piece for piece in self._pieces(array)[first:most] if piece.start >= start])

    def withdraw(self) -> None:
        self._withdrawn = len(self._under_way)

    def sum(self, array: Array, out: Array) -> None:
        pieces = self._pieces(array)
        skipped = int(self.comm.all_gather(np.array([self._withdrawn]))[1 - self.comm.rank, 0])
        count = skipped + len(pieces)
        while len(self._buffers) < min(count, AHEAD):
            self._buffers.append(np.empty(HEAD + PIECE, np.uint8))
        buffers = self._buffers
        arriving = deque(self._receive(buffer) for buffer in buffers[:count])
        withdrawn = [self._under_way.popleft() for _ in range(self._withdrawn)]
        self._send(array, pieces[len(self._under_way) : AHEAD])
        for number in range(count):
            arriving.popleft().wait()
            arrived = buffers[number % AHEAD]
            at = number - skipped
            if at >= 0:
                self._send(array, pieces[at + len(self._under_way) : at + 1 + AHEAD])
                own, sent = self._under_way.popleft()
                sent.wait()  # it may be part of `out`
                arrived = arrived[: own.nbytes]
                self.wire.add(*((own, arrived) if self.comm.rank == 0 else (arrived, own)), out=out[pieces[at]])
            if number + AHEAD < count:
                arriving.append(self._receive(buffers[number % AHEAD]))
        for _, sent in withdrawn:
            sent.wait()
        self._withdrawn = 0

    def _send(self, array: Array, pieces: list[slice]) -> None:
        for piece in pieces:
            message = (self.wire.packed(array[piece]),)
            # Python runs signal handlers, which may raise, only between its own instructions. This is a single one if
            # the function that sends is not written in Python: no message goes out without being recorded.
            self._under_way.extend(zip(message, map(self._transmit, message), strict=True))

    def _pieces(self, array: Array) -> list[slice]:
        return _cut(array.size, PIECE // (self.wire.itemsize or array.itemsize))


@lru_cache(maxsize=64)
def _cut(size: int, step: int) -> list[slice]:
    return [slice(max(0, end - step), end) for end in range(size, 0, -step)]
