"""Where the ranks meet at the end of a backward: each says at which place it is, and all read what all say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from sorix_dist.comm import Comm
from sorix_dist.core.tensor import Array


class Place(NamedTuple):
    """Where a rank is when its backward ends; all ranks must be at the same place.

    epoch, batch: of the loader's batch, -1 if it came from no loader; updates: how often optimizers have moved
    parameters; pieces: backwards since the last meeting.
    """

    epoch: int
    batch: int
    updates: int
    pieces: int


ROOM = 59  # numbers that a rank can say at one meeting, behind its place and their count
_HEAD = len(Place._fields)


class Said(NamedTuple):
    """What the ranks said at one meeting: their places, and all numbers that any of them said, sorted.

    places: None where all are the same.
    """

    places: list[Place] | None
    numbers: list[int]


class Board(Protocol):
    """Says numbers to the other ranks."""

    def meet(self, place: Place, numbers: list[int]) -> Said:
        """What all ranks say; afterwards every rank sees what the others of its host wrote to shared memory
        before. Called by every rank."""

    def part(self, fine: bool) -> bool:
        """Ends what the meeting began: afterwards the ranks of this host may write to shared memory again.

        fine: what this rank has found of the sums that it made; returned is whether all ranks found theirs fine.
        """


def board(comm: Comm) -> Board:
    """The board that fits the communicator: none alone, memory on one host, else messages."""
    if comm.size == 1:
        return Alone()
    return Memory(comm) if comm.hosts == 1 else Messages(comm)


class Alone:
    """The board of one rank."""

    def meet(self, place: Place, numbers: list[int]) -> Said:
        return Said(None, numbers)

    def part(self, fine: bool) -> bool:
        return fine


class Memory:
    """The board of the ranks of one host: rows in a shared window."""

    def __init__(self, comm: Comm) -> None:
        self.window = comm.window((_HEAD + 1 + ROOM + 2) * 8)
        self.rows = [part.view(np.int64) for part in self.window.parts]
        self.own = self.rows[self.window.local_rank]
        # What is read after the last barrier of a meeting may be written again after the first one of the next: the
        # ranks take turns between two places.
        self.turn = 1

    def meet(self, place: Place, numbers: list[int]) -> Said:
        _write(self.own, place, numbers)
        self.window.barrier()
        return _read(self.rows)

    def part(self, fine: bool) -> bool:
        self.turn = 3 - self.turn
        self.own[-self.turn] = not fine
        self.window.barrier()
        return not any(row[-self.turn] for row in self.rows)


class Messages:
    """The board of ranks on several hosts."""

    def __init__(self, comm: Comm) -> None:
        self.comm = comm
        self.row = np.zeros(_HEAD + 1 + ROOM, np.int64)

    def meet(self, place: Place, numbers: list[int]) -> Said:
        _write(self.row, place, numbers)
        return _read(list(self.comm.all_gather(self.row)))

    def part(self, fine: bool) -> bool:
        return fine  # every rank has the whole sums


def _write(row: Array, place: Place, numbers: list[int]) -> None:
    if len(numbers) > ROOM:
        raise RuntimeError(f"a backward can reach at most {ROOM} wrapped models, this one reached {len(numbers)}")
    row[: _HEAD + 1 + len(numbers)] = (*place, len(numbers), *numbers)


def _read(rows: Sequence[Array]) -> Said:
    # Mostly all say the same, which one comparison of bytes finds out.
    first = rows[0][: _HEAD + 1 + int(rows[0][_HEAD])]
    said = first.tobytes()
    if all(row[: len(first)].tobytes() == said for row in rows):
        return Said(None, first[_HEAD + 1 :].tolist())
    places = [Place(*row[:_HEAD].tolist()) for row in rows]
    numbers = sorted({int(n) for row in rows for n in row[_HEAD + 1 : _HEAD + 1 + row[_HEAD]]})
    return Said(places if any(place != places[0] for place in places) else None, numbers)
