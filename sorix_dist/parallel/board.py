"""Where the ranks meet at the end of a backward: each says at which place it is, and all read what all say."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from sorix_dist.comm import Comm

DOINGS = (
    "backward",
    "optimizer.step",
    "optimizer.load_state_dict",
    "clip_grad_norm_",
    "clip_grad_value_",
    "zero_grad",
    "edit",
    "DistributedDataParallel",
    "unwrap",
)
"""What ranks do together when they meet, in a user's words."""
BACKWARD = 0
_NUMBER = {doing: number for number, doing in enumerate(DOINGS)}
_AGREED = struct.Struct("2q")


class Place(NamedTuple):
    """Where a rank is when its backward ends; all ranks must be at the same place.

    doing: the number of what it does; alike: a digest of the numbers that it does it with, and of the options that
    optimizers have had since the last meeting; epoch, batch: of the loader's batch, -1 if it came from no loader;
    order: a digest of what the loader's batches follow from; updates: how often optimizers have moved parameters;
    pieces: backwards since the last meeting. Only a backward says more than the first two.
    """

    doing: int
    alike: int = 0
    epoch: int = -1
    batch: int = -1
    order: int = 0
    updates: int = 0
    pieces: int = 0


ROOM = 58  # numbers that a rank can say at one meeting, behind its place and their count
VALUES = 64  # numbers that are summed over the ranks on the way
_HEAD = len(Place._fields)
_SAME = 8 * (_HEAD + 1 + ROOM)  # bytes that are compared
_ROW = _SAME + 8 * VALUES
_SAID = [struct.Struct(f"{_HEAD + 1 + count}q") for count in range(ROOM + 1)]


class Said(NamedTuple):
    """What the ranks said at one meeting: their places, all numbers that any of them said, sorted, and the sums of
    their values.

    places: None where all are the same.
    """

    places: list[Place] | None
    numbers: list[int]
    values: list[float]


class Board(Protocol):
    """Says numbers to the other ranks."""

    def meet(self, place: Place, numbers: list[int], values: list[float]) -> Said:
        """What all ranks say, and the sums of their values; afterwards every rank sees what the others of its host
        wrote to shared memory before. Called by every rank."""

    def part(self, fine: bool) -> bool:
        """Ends what the meeting began: afterwards the ranks of this host may write to shared memory again.

        fine: what this rank has found of the sums that it made; returned is whether all ranks found theirs fine.
        """

    def agree(self, doing: str, alike: int, everywhere: bool = False) -> list[Place] | None:
        """Lets the ranks of this host go on when all of them have come here, each seeing what the others wrote before;
        `everywhere`: when those of all hosts have.

        Returned are their places if another one does something else, or says another number `alike`.
        """


def board(comm: Comm) -> Board:
    """The board that fits the communicator: none alone, memory on one host, else messages."""
    if comm.size == 1:
        return Alone()
    return Memory(comm) if comm.hosts == 1 else Messages(comm)


class Alone:
    """The board of one rank."""

    def meet(self, place: Place, numbers: list[int], values: list[float]) -> Said:
        return Said(None, numbers, values)

    def part(self, fine: bool) -> bool:
        return fine

    def agree(self, doing: str, alike: int, everywhere: bool = False) -> list[Place] | None:
        return None


class Memory:
    """The board of the ranks of one host: rows of bytes in a shared window."""

    def __init__(self, comm: Comm) -> None:
        self.comm = comm
        self.window = comm.window(2 * _ROW)
        # What is read after one barrier may still be read when the others write for the next: two places in turn.
        both = [[part.data[at : at + _ROW] for part in self.window.parts] for at in (0, _ROW)]
        own = self.window.local_rank
        self.turns = itertools.cycle([(rows, rows[own], rows[:own] + rows[own + 1 :]) for rows in both])
        self.next = next(self.turns)
        self.barrier = self.window.barrier

    def meet(self, place: Place, numbers: list[int], values: list[float]) -> Said:
        said = _packed(place, numbers)
        if not values:
            rows = self._unlike(said)
            return Said(None, numbers, []) if rows is None else _differing(rows, values)
        whole, own, _ = self.next
        _write_values(own, values)
        rows = self._unlike(said)
        found = Said(None, numbers, _summed(whole, len(values))) if rows is None else _differing(rows, values)
        if len(values) > VALUES and found.places is None:
            found = found._replace(values=_by_message(self.comm, values))
        return found

    def part(self, fine: bool) -> bool:
        rows = self._unlike(b"\0" if fine else b"\1")
        return fine and rows is None

    def agree(self, doing: str, alike: int, everywhere: bool = False) -> list[Place] | None:
        rows = self._unlike(_AGREED.pack(_NUMBER[doing], alike))
        return None if rows is None else _places(rows)

    def _unlike(self, said: bytes) -> list[memoryview] | None:
        """Lets the others see what this rank says; when all have said something, None if they say the same, as they
        mostly do, or else the rows of all."""
        rows, own, others = self.next
        self.next = next(self.turns)
        length = len(said)
        own[:length] = said
        self.barrier()
        for other in others:
            if other[:length] != said:
                return rows
        return None


class Messages:
    """The board of ranks on several hosts, some of which may have one host in common."""

    def __init__(self, comm: Comm) -> None:
        self.comm = comm
        self.neighbours = Memory(comm)

    def meet(self, place: Place, numbers: list[int], values: list[float]) -> Said:
        # Or else some of them find out there, and come here too.
        self.neighbours.agree(DOINGS[place.doing], place.alike)
        return self._say(place, numbers, values)

    def part(self, fine: bool) -> bool:
        return fine  # every rank has the whole sums

    def agree(self, doing: str, alike: int, everywhere: bool = False) -> list[Place] | None:
        places = self.neighbours.agree(doing, alike)
        return None if places is None and not everywhere else self._say(Place(_NUMBER[doing], alike), [], []).places

    def _say(self, place: Place, numbers: list[int], values: list[float]) -> Said:
        row = np.zeros(_ROW, np.uint8)
        said = _packed(place, numbers)
        row[: len(said)] = np.frombuffer(said, np.uint8)
        _write_values(row.data, values)
        rows = [row.data for row in self.comm.all_gather(row)]
        found = _differing(rows, values)
        if len(values) > VALUES and found.places is None:
            found = found._replace(values=_by_message(self.comm, values))
        return found


def _packed(place: Place, numbers: list[int]) -> bytes:
    count = len(numbers)
    if count > ROOM:
        raise RuntimeError(f"a backward can reach at most {ROOM} wrapped models, this one reached {count}")
    return _SAID[count].pack(*place, count, *numbers)


def _places(rows: Sequence[memoryview]) -> list[Place]:
    return [Place(*struct.unpack_from(f"{_HEAD}q", row)) for row in rows]


def _write_values(row: memoryview, values: list[float]) -> None:
    count = min(len(values), VALUES)
    struct.pack_into(f"{count}d", row, _SAME, *values[:count])


def _summed(rows: Sequence[memoryview], count: int) -> list[float]:
    """The sums of what rows hold as values, in the order of the ranks."""
    each = [struct.unpack_from(f"{min(count, VALUES)}d", row, _SAME) for row in rows]
    return [sum(values) for values in zip(*each, strict=True)]


def _by_message(comm: Comm, values: list[float]) -> list[float]:
    """The sums of more values than fit into a row. Called by all ranks."""
    total = np.array(values)
    comm.all_reduce(total)
    return [float(value) for value in total]


def _differing(rows: Sequence[memoryview], values: list[float]) -> Said:
    """What rows say that need not be the same."""
    places = _places(rows)
    if any(place != places[0] for place in places):
        return Said(places, [], [])
    numbers: set[int] = set()
    for row in rows:
        (count,) = struct.unpack_from("q", row, 8 * _HEAD)
        numbers.update(struct.unpack_from(f"{count}q", row, 8 * (_HEAD + 1)))
    return Said(None, sorted(numbers), _summed(rows, len(values)))
