"""The sum of an array over two ranks that a wire joins: both send it in pieces, and add those that come meanwhile."""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from typing import Protocol

import numpy as np

from sorix_dist.comm.protocol import Array, Comm, Wire, Work

PIECE = 60 << 10
"""Bytes per message: up to 64 KB, Open MPI gives one to the kernel at once, which sends it while this rank computes;
the first bytes of a longer one have to be answered before the others go."""

HEAD = 64
"""Bytes that a wire format may put before the numbers of a piece."""

AHEAD = 64
"""Messages that a rank has sent more than it has received: what the other one may have to keep."""


class Link(Protocol):
    """Messages between two ranks, beside all collectives; each way they arrive in the order in which they were sent."""

    def send(self, message: Array) -> Work:
        """Starts to send bytes, which stay as they are until `wait()`."""

    def receive(self, place: Array) -> Work:
        """Gives the next message, of at most so many bytes, its place, where it is after `wait()`."""


class Plain:
    """Numbers travel as they are."""

    itemsize: int | None = None

    def packed(self, numbers: Array) -> Array:
        return numbers.view(np.uint8)

    def add(self, first: Array, second: Array, out: Array) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            np.add(first.view(out.dtype), second.view(out.dtype), out=out)


class PairExchange:
    """An `Exchange` over a link between the ranks of `comm`.

    Pieces go from the end of the array to its start, always cut in the same way: whatever either rank has sent ahead,
    the other knows what comes, once it is told how many messages come before that were sent in vain.
    """

    def __init__(self, comm: Comm, link: Link, wire: Wire | None = None) -> None:
        self.comm = comm
        self.link = link
        self.wire = Plain() if wire is None else wire
        self._under_way: deque[tuple[Array, Work]] = deque()
        self._withdrawn = 0  # of those under way, the first so many
        self._places: list[Array] = []

    def send(self, array: Array, start: int) -> None:
        first, most = len(self._under_way) - self._withdrawn, AHEAD - self._withdrawn
        self._send(array, [piece for piece in self._pieces(array)[first:most] if piece.start >= start])

    def withdraw(self) -> None:
        self._withdrawn = len(self._under_way)

    def sum(self, array: Array, out: Array) -> None:
        pieces = self._pieces(array)
        in_vain = int(self.comm.all_gather(np.array([self._withdrawn]))[1 - self.comm.rank, 0])
        count = in_vain + len(pieces)
        while len(self._places) < min(count, AHEAD):
            self._places.append(np.empty(HEAD + PIECE, np.uint8))
        places = self._places
        coming = deque(self.link.receive(place) for place in places[:count])
        withdrawn = [self._under_way.popleft() for _ in range(self._withdrawn)]
        self._send(array, pieces[len(self._under_way) : AHEAD])
        for number in range(count):
            coming.popleft().wait()
            arrived = places[number % AHEAD]
            at = number - in_vain
            if at >= 0:
                self._send(array, pieces[at + len(self._under_way) : at + 1 + AHEAD])
                own, sent = self._under_way.popleft()
                sent.wait()  # it may be part of `out`
                arrived = arrived[: own.nbytes]
                self.wire.add(*((own, arrived) if self.comm.rank == 0 else (arrived, own)), out=out[pieces[at]])
            if number + AHEAD < count:
                coming.append(self.link.receive(places[number % AHEAD]))
        for _, sent in withdrawn:
            sent.wait()
        self._withdrawn = 0

    def _send(self, array: Array, pieces: list[slice]) -> None:
        for piece in pieces:
            message = (self.wire.packed(array[piece]),)
            # Python calls the handlers of signals, which may raise, between its own instructions. This is one, if the
            # link's `send` is not written in Python: no message goes unrecorded, that the other takes for another one.
            self._under_way.extend(zip(message, map(self.link.send, message), strict=True))

    def _pieces(self, array: Array) -> list[slice]:
        return _cut(array.size, PIECE // (self.wire.itemsize or array.itemsize))


@lru_cache(maxsize=64)
def _cut(size: int, step: int) -> list[slice]:
    return [slice(max(0, end - step), end) for end in range(size, 0, -step)]
