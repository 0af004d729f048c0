"""Where the ranks meet at the end of a backward: a row of numbers of each, which all of them read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from sorix_dist.comm import Comm
from sorix_dist.core.tensor import Array

ROOM = 63  # numbers that a rank can say at one meeting, behind their count


class Board(Protocol):
    """Says numbers to the other ranks."""

    def meet(self, numbers: list[int]) -> list[int]:
        """All numbers that any rank says, sorted; afterwards every rank sees what the others of its host wrote to
        shared memory before. Called by every rank."""

    def part(self) -> None:
        """Ends what the meeting began: afterwards the ranks of this host may write to shared memory again."""


def board(comm: Comm) -> Board:
    """The board that fits the communicator: none alone, memory on one host, else messages."""
    if comm.size == 1:
        return Alone()
    return Memory(comm) if comm.hosts == 1 else Messages(comm)


class Alone:
    """The board of one rank."""

    def meet(self, numbers: list[int]) -> list[int]:
        return numbers

    def part(self) -> None:
        return None


class Memory:
    """The board of the ranks of one host: rows in a shared window."""

    def __init__(self, comm: Comm) -> None:
        self.window = comm.window((1 + ROOM) * 8)
        self.rows = [part.view(np.int64) for part in self.window.parts]

    def meet(self, numbers: list[int]) -> list[int]:
        _write(self.rows[self.window.local_rank], numbers)
        self.window.barrier()
        return _said(self.rows)

    def part(self) -> None:
        self.window.barrier()


class Messages:
    """The board of ranks on several hosts."""

    def __init__(self, comm: Comm) -> None:
        self.comm = comm
        self.row = np.zeros(1 + ROOM, np.int64)

    def meet(self, numbers: list[int]) -> list[int]:
        _write(self.row, numbers)
        return _said(self.comm.all_gather(self.row))

    def part(self) -> None:
        return None


def _write(row: Array, numbers: list[int]) -> None:
    if len(numbers) > ROOM:
        raise RuntimeError(f"a backward can reach at most {ROOM} wrapped models, this one reached {len(numbers)}")
    row[0] = len(numbers)
    row[1 : 1 + len(numbers)] = numbers


def _said(rows: Iterable[Array]) -> list[int]:
    return sorted({int(number) for row in rows for number in row[1 : 1 + row[0]]})
