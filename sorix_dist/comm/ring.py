"""The sum of an array over ranks on different hosts: its pieces travel around a ring of ranks, many at once."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

import numpy as np

from sorix_dist.comm.protocol import Array, Comm, Wire

PIECE = 60 << 10
"""Bytes of numbers per message. Open MPI gives a message of up to 64 KB to the kernel at once, which sends it while
this rank computes; of a longer one, the first bytes must be answered before the others go."""

SHORTEST, SHORT = 2 << 10, 16 << 10
"""Bytes of numbers in a message of a short array: at least, and up to where each rank starts only one. A message costs
a rank some 30 us, the time of 4 KB at 1 Gbit/s."""

UNDER_WAY = 64  # pieces that are in the ring at once: this many messages may be stored at a rank that does not receive
RECEIVES = 16  # messages for which a rank provides memory in advance
HEAD = 64  # bytes before the numbers of a message: the attempt, the piece, the scale of the wire format


class Request(Protocol):
    """A message that is being sent or received; the methods are those of mpi4py."""

    def Wait(self) -> object: ...

    def Test(self) -> bool: ...


Transfer = Callable[[Array], Request]
"""Starts to send, or to receive, a message. Messages arrive in the order in which they were sent."""


class Plain:
    """The wire format without an encoding."""

    itemsize: int | None = None

    def pack(self, numbers: Array, body: Array) -> float:
        body.view(numbers.dtype)[:] = numbers
        return 1.0

    def add(self, body: Array, scale: float, numbers: Array) -> float:
        total = body.view(numbers.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            total += numbers
        return scale

    def unpack(self, body: Array, scale: float, out: Array) -> None:
        out[:] = body.view(out.dtype)


class RingExchange:
    """An `Exchange` between the ranks of `comm`, over a channel of its own: `send` to the next rank, `receive` from the
    one before.

    Piece k starts at rank k modulo the number of ranks. Every rank adds its numbers, and the last one sends the total
    around once more (ring all-reduce: Patarasuk and Yuan, 2009, but with pieces that move independently). Pieces go
    from the end of the array to its start, because a backward computes the last parameters' gradients first.

    A rank may send before it knows that all ranks want this sum. So every message has the number of the attempt:
    messages of an earlier attempt are dropped, those of the next one wait.
    """

    def __init__(
        self,
        comm: Comm,
        send: Transfer,
        receive: Transfer,
        wire: Wire | None = None,
        wait: Callable[[Request], object] = lambda request: request.Wait(),
    ) -> None:
        self.comm = comm
        self._wait = wait
        self.wire = Plain() if wire is None else wire
        self._transmit, self._receive = send, receive
        self._arriving: deque[tuple[Array, Request]] = deque()
        self._sent: deque[tuple[Array, Request]] = deque()
        self._attempt = 0
        self._ahead: list[Array] = []  # messages of the next attempt, by ranks that know of it already
        self._begin_attempt()

    def _begin_attempt(self) -> None:
        self._attempt += 1
        self._pieces: list[slice] = []
        self._next = self.comm.rank  # the next piece that starts here
        self._around = 0  # pieces that started here and have not come back
        self._received = self._expected = 0
        self._early: dict[int, Array] = {}  # sums that have come before this rank's numbers were ready
        self._totals: dict[int, Array] = {}

    def send(self, array: Array, start: int) -> None:
        self._array, self._ready = array, start
        if not self._pieces:
            self._cut()
            ahead, self._ahead = self._ahead, []
            for message in ahead:
                self._take(message)
        early = [piece for piece in self._early if self._pieces[piece].start >= start]
        for piece in early:
            self._add(piece, self._early.pop(piece))
        self._advance()

    def sum(self, array: Array, out: Array, start_over: bool = False, agreed: bool = False) -> None:
        if start_over:
            self._begin_attempt()
        self.send(array, 0)
        while len(self._totals) < len(self._pieces):
            self._wait(self._arriving[0][1])
            self._advance()
        for piece, message in self._totals.items():
            self.wire.unpack(message[HEAD:], _scale(message)[0], out[self._pieces[piece]])
        for _, request in self._sent:
            self._wait(request)
        self._sent.clear()
        self._begin_attempt()

    def _cut(self) -> None:
        array, rank, size = self._array, self.comm.rank, self.comm.size
        self._itemsize = self.wire.itemsize or array.itemsize
        nbytes = piece_size(array.size * self._itemsize, size)
        self._pieces = pieces = _cut(array.size, max(1, math.ceil(nbytes / self._itemsize)))
        # Every sum but those that start here, and every total but those that are complete here.
        starting, ending = (len(range(first % size, len(pieces), size)) for first in (rank, rank + 1))
        self._expected = 2 * len(pieces) - starting - ending

    def _advance(self) -> None:
        """Sends and receives what is possible without waiting."""
        while True:
            self._start_pieces()
            expected = self._expected - self._received - len(self._ahead)
            missing = min(RECEIVES, expected) - len(self._arriving)
            if missing > 0:
                buffers = [np.empty(HEAD + PIECE, np.uint8) for _ in range(missing)]
                self._arriving.extend(zip(buffers, map(self._receive, buffers), strict=True))
            if not self._arriving or not self._arriving[0][1].Test():
                break
            self._take(self._arriving.popleft()[0])
        while self._sent and self._sent[0][1].Test():
            self._sent.popleft()

    def _start_pieces(self) -> None:
        size = self.comm.size
        while self._next < len(self._pieces) and self._around < max(2, UNDER_WAY // size):
            piece = self._pieces[self._next]
            if piece.start < self._ready:
                break
            numbers = self._array[piece]
            message = np.empty(HEAD + numbers.size * self._itemsize, np.uint8)
            _words(message)[:] = self._attempt, self._next, False
            _scale(message)[0] = self.wire.pack(numbers, message[HEAD:])
            self._next += size
            self._around += 1
            self._pass_on(message)

    def _take(self, message: Array) -> None:
        """Handles a message that has arrived."""
        attempt, piece, is_total = _words(message).tolist()
        if attempt > self._attempt:
            self._ahead.append(message)
        if attempt != self._attempt:
            return
        self._received += 1
        here = self._pieces[piece]
        message = message[: HEAD + (here.stop - here.start) * self._itemsize]
        if is_total:
            position = self._position(piece)
            self._totals[piece] = message
            self._around -= position == 0
            if position < self.comm.size - 2:
                self._pass_on(message)
        elif here.start >= self._ready:
            self._add(piece, message)
        else:
            self._early[piece] = message

    def _add(self, piece: int, message: Array) -> None:
        """Adds this rank's numbers to a sum that has come, and passes it on."""
        scale = _scale(message)
        scale[0] = self.wire.add(message[HEAD:], scale[0], self._array[self._pieces[piece]])
        if self._position(piece) == self.comm.size - 1:
            _words(message)[2] = True
            self._totals[piece] = message
        self._pass_on(message)

    def _position(self, piece: int) -> int:
        """How many ranks have added to the piece before this one does."""
        return (self.comm.rank - piece) % self.comm.size

    def _pass_on(self, message: Array) -> None:
        # Python runs signal handlers, which may raise, only between its own instructions. This is a single one if the
        # function that sends is not written in Python: no message goes out whose memory is not kept.
        self._sent.extend(zip((message,), map(self._transmit, (message,)), strict=True))


def _words(message: Array) -> Array:
    """The number of the attempt, that of the piece, and whether it is a total."""
    return message[:24].view(np.int64)


def _scale(message: Array) -> Array:
    return message[24:32].view(np.float64)


def piece_size(nbytes: float, ranks: int) -> float:
    """Bytes of numbers in a message. Each rank starts one to four, more of `PIECE`, and not every one of `SHORTEST`."""
    each = nbytes / ranks
    return min(max(each / 4, min(SHORT, each), SHORTEST), PIECE)


@lru_cache(maxsize=64)
def _cut(size: int, step: int) -> list[slice]:
    """Pieces of `step` elements, from the end of an array to its start."""
    return [slice(max(0, end - step), end) for end in range(size, 0, -step)]
