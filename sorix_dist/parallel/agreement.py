"""The agreement of the ranks at the end of a backward: each sends the fingerprint of its step, and all compare them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sorix_dist.comm import Comm

ACTIONS = (
    "backward", "optimizer.step", "optimizer.load_state_dict", "clip_grad_norm_", "clip_grad_value_", "zero_grad",
    "edit", "DistributedDataParallel", "unwrap",
)  # fmt: skip
"""The collective operations, by the names of the user's calls."""
BACKWARD = 0
_NUMBER = {action: number for number, action in enumerate(ACTIONS)}


class StepFingerprint(NamedTuple):
    """The values that must be the same on every rank before gradients are mixed.

    action: index into ACTIONS; backwards: since the last agreement; digest: of the numbers used, and of the optimizers'
    options since the last agreement; epoch, batch: of the loader's batch, -1 if no loader made it; order: a digest of
    what decides the loader's order; updates: how often optimizers have moved parameters. A fence sends only action and
    digest.
    """

    action: int
    backwards: int = 0
    digest: int = 0
    epoch: int = -1
    batch: int = -1
    order: int = 0
    updates: int = 0


# A rank's row: the first value, the bytes to compare, and further values backwards from the end. Each cache line that
# one rank writes and another reads takes time, so a row of one model and one loss fits into a single line.
MOST_NUMBERS = 57  # in a row, beside the fingerprint
MOST_VALUES = 64  # in a row
ROW = 1024  # bytes
COMPARED = 8  # offset of the bytes to compare
# The count of numbers, the fingerprint, the digest of used parameters, the numbers.
_PACK = [struct.Struct(f"hhiqiiqqq{count}q") for count in range(MOST_NUMBERS + 1)]
_HEAD = _PACK[0]
_FENCE = struct.Struct("hhiq")


Fields = tuple[int, ...]  # those of a StepFingerprint: a plain tuple, which takes a third of the time to make
Meanwhile = Callable[[], None] | None  # see `Comm.all_gather`
Agreement = tuple[list[StepFingerprint] | None, list[int], list[float], bool]
"""What the ranks have sent: their fingerprints if these differ, else None; the union of their numbers, sorted; the sums
of their values; whether all have sent the same numbers and the same digest of used parameters."""


class Consensus:
    """Compares fingerprints between ranks. This base class is for one rank, which agrees with itself."""

    def agree(
        self, fingerprint: Fields, numbers: list[int], values: list[float], used: int = 0, meanwhile: Meanwhile = None
    ) -> Agreement:
        """Compares fingerprints, collects numbers and sums values. Afterwards every rank sees what the others of its
        host wrote to shared memory before. A call of all ranks."""
        return None, numbers, values, True

    def commit(self, fine: bool) -> bool:
        """Whether `fine` is true on every rank that shares memory; each rank has checked its slice of the sum.
        Afterwards these ranks may write to shared memory again."""
        return fine

    def fence(self, action: str, digest: int, everywhere: bool = False) -> list[StepFingerprint] | None:
        """A barrier of the ranks of this host, or of all hosts if `everywhere`, and a memory fence. Returns their
        fingerprints if one differs in action or digest."""
        return None


class _Rows(dict[int, tuple[memoryview, list[memoryview]]]):
    """The rows of the ranks of the host. By a number of bytes to compare: this rank's, and those of the others.

    all: the bytes; floats: the same rows as floats; next: the other set of rows.
    """

    next: _Rows

    def __init__(self, rows: list[memoryview], own: int) -> None:
        self.all = [row[COMPARED:] for row in rows]
        self.floats = [row.cast("d") for row in rows]
        self._own = own

    def __missing__(self, length: int) -> tuple[memoryview, list[memoryview]]:
        others = [row[:length] for row in self.all]
        found = self[length] = others.pop(self._own), others
        return found


class SharedMemoryConsensus(Consensus):
    """Ranks of one host write rows into a shared window."""

    def __init__(self, comm: Comm) -> None:
        self.comm = comm
        self.window = comm.window(2 * ROW)
        # A slow rank may still read while another one writes for the next barrier: two sets of rows alternate.
        self._own = self.window.local_rank
        parts = [part.data for part in self.window.parts]
        first, second = (_Rows([part[at : at + ROW] for part in parts], self._own) for at in (0, ROW))
        first.next, second.next = second, first
        self._next = first

    def agree(
        self, fingerprint: Fields, numbers: list[int], values: list[float], used: int = 0, meanwhile: Meanwhile = None
    ) -> Agreement:
        rows, floats, sums = self._next.all, self._next.floats, []
        carried = values if len(values) <= MOST_VALUES else []
        own = floats[self._own]
        for i, value in enumerate(carried):
            own[-i] = value
        same = self._compare(packed(fingerprint, numbers, used))
        for i in range(len(carried)):
            total = 0.0
            for row in floats:
                total += row[-i]
            sums.append(total)
        found = (None, numbers, sums, True) if same else merged(rows, sums)
        return found if carried is values else with_many_values(found, values, self.comm)

    def commit(self, fine: bool) -> bool:
        return self._compare(b"\0" if fine else b"\1") and fine

    def fence(self, action: str, digest: int, everywhere: bool = False) -> list[StepFingerprint] | None:
        now = self._next
        return None if self._compare(_FENCE.pack(0, _NUMBER[action], 0, digest)) else _fingerprints(now.all)

    def _compare(self, sent: bytes) -> bool:
        """Whether all ranks have sent the same bytes."""
        now = self._next
        self._next = now.next
        own, others = now[len(sent)]
        own[:] = sent
        self.window.barrier()
        for other in others:  # noqa: SIM110 (faster)
            if other.tobytes() != sent:  # bytes compare faster than a memoryview
                return False
        return True


def packed(fingerprint: Fields, numbers: list[int], used: int) -> bytes:
    count = len(numbers)
    if count > MOST_NUMBERS:
        raise RuntimeError(f"a backward can reach at most {MOST_NUMBERS} wrapped models, this one reached {count}")
    return _PACK[count].pack(count, *fingerprint, used, *numbers)


def _fingerprints(rows: Sequence[memoryview]) -> list[StepFingerprint]:
    return [StepFingerprint(*_HEAD.unpack_from(row)[1:-1]) for row in rows]


def merged(rows: Sequence[memoryview], sums: list[float]) -> Agreement:
    """The agreement of rows that may differ."""
    fingerprints = _fingerprints(rows)
    if any(each != fingerprints[0] for each in fingerprints):
        return fingerprints, [], [], True
    counts = [_HEAD.unpack_from(row)[0] for row in rows]
    sent = [_PACK[count].unpack_from(row)[len(fingerprints[0]) + 1 :] for row, count in zip(rows, counts, strict=True)]
    numbers = sorted({number for _, *own in sent for number in own})
    return None, numbers, sums, all(each == sent[0] for each in sent)


def with_many_values(found: Agreement, values: list[float], comm: Comm) -> Agreement:
    """The agreement with the sums of more values than fit into a row, by a message of their own."""
    differing, numbers, _, same_used = found
    if differing is not None:
        return found
    total = np.array(values)
    comm.all_reduce(total)
    return None, numbers, total.tolist(), same_used
