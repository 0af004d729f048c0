"""Where the ranks meet at the end of a backward: each says at which place it is, and all read what all say."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from sorix_dist.comm import Comm
from sorix_dist.core.tensor import Array

DOINGS = (
    "backward",
    "optimizer.step",
    "optimizer.load_state_dict",
    "clip_grad_norm_",
    "clip_grad_value_",
    "zero_grad",
    "edit",
    "DistributedDataParallel",
)
"""What ranks do together when they meet, in a user's words."""
BACKWARD = 0
_NUMBER = {doing: number for number, doing in enumerate(DOINGS)}


class Place(NamedTuple):
    """Where a rank is when its backward ends; all ranks must be at the same place.

    doing: the number of what it does; epoch, batch: of the loader's batch, -1 if it came from no loader; updates: how
    often optimizers have moved parameters; pieces: backwards since the last meeting.
    """

    doing: int
    epoch: int = -1
    batch: int = -1
    updates: int = 0
    pieces: int = 0


ROOM = 58  # numbers that a rank can say at one meeting, behind its place and their count
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

    def agree(self, doing: str) -> list[Place] | None:
        """Lets the ranks of this host go on when all of them have come here, each seeing what the others wrote before.

        Returned are their places if another one does something else.
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

    def agree(self, doing: str) -> list[Place] | None:
        return None


class Memory:
    """The board of the ranks of one host: rows in a shared window."""

    def __init__(self, comm: Comm) -> None:
        length = _HEAD + 1 + ROOM
        self.window = comm.window(2 * length * 8)
        # What is read after one barrier may still be read when the others write for the next: two places in turn.
        both = [[part.view(np.int64)[at : at + length] for part in self.window.parts] for at in (0, length)]
        self.turns = itertools.cycle([(rows, rows[self.window.local_rank]) for rows in both])

    def meet(self, place: Place, numbers: list[int]) -> Said:
        rows, own = next(self.turns)
        _write(own, place, numbers)
        self.window.barrier()
        return _read(rows)

    def part(self, fine: bool) -> bool:
        rows, own = next(self.turns)
        own[0] = not fine
        self.window.barrier()
        return not any([row.item(0) for row in rows])  # noqa: C419 (faster)

    def agree(self, doing: str) -> list[Place] | None:
        rows, own = next(self.turns)
        own[0] = number = _NUMBER[doing]
        self.window.barrier()
        if all([row.item(0) == number for row in rows]):  # noqa: C419 (faster)
            return None
        return _places(rows)


class Messages:
    """The board of ranks on several hosts, some of which may have one host in common."""

    def __init__(self, comm: Comm) -> None:
        self.comm = comm
        self.row = np.zeros(_HEAD + 1 + ROOM, np.int64)
        self.neighbours = Memory(comm)

    def meet(self, place: Place, numbers: list[int]) -> Said:
        self.neighbours.agree(DOINGS[place.doing])  # or else some of them find out there, and come here too
        return self._say(place, numbers)

    def part(self, fine: bool) -> bool:
        return fine  # every rank has the whole sums

    def agree(self, doing: str) -> list[Place] | None:
        places = self.neighbours.agree(doing)
        return None if places is None else self._say(Place(_NUMBER[doing]), []).places

    def _say(self, place: Place, numbers: list[int]) -> Said:
        _write(self.row, place, numbers)
        return _read(list(self.comm.all_gather(self.row)))


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
    places = _places(rows)
    numbers = sorted({int(n) for row in rows for n in row[_HEAD + 1 : _HEAD + 1 + row[_HEAD]]})
    return Said(places if any(place != places[0] for place in places) else None, numbers)


def _places(rows: Sequence[Array]) -> list[Place]:
    return [Place(*row[:_HEAD].tolist()) for row in rows]
