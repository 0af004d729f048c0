"""The agreement of the ranks at the end of a backward: each sends the fingerprint of its step, all compare them, and an
error names the first difference."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import NamedTuple, Protocol

import numpy as np

from sorix_dist.comm import Comm
from sorix_dist.comm.checked import HEAD, MESSAGE

ACTIONS = (
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
_ROW = 1024  # bytes
_SHORT_ROW = MESSAGE - HEAD  # bytes of a row between hosts that one message both compares and carries
_LONGER = 255  # bytes of a short row in place of one that is longer; no row has this many numbers
_COMPARED = 8  # offset of the bytes to compare
# The count of numbers, the fingerprint, the digest of used parameters, the numbers.
_PACK = [struct.Struct(f"hhiqiiqqq{count}q") for count in range(MOST_NUMBERS + 1)]
_HEAD = _PACK[0]
_FENCE = struct.Struct("hhiq")


Fields = tuple[int, ...]
"""Those of a StepFingerprint: a plain tuple, which takes a third of the time to make."""
Agreement = tuple[list[StepFingerprint] | None, list[int], list[float], bool]
"""What the ranks have sent: their fingerprints if these differ, else None; the union of their numbers, sorted; the sums
of their values; whether all have sent the same numbers and the same digest of used parameters."""


class Consensus(Protocol):
    """Compares fingerprints between ranks."""

    def agree(
        self,
        fingerprint: Fields,
        numbers: list[int],
        values: list[float],
        used: int = 0,
        meanwhile: Callable[[], None] | None = None,
    ) -> Agreement:
        """Compares fingerprints, collects numbers and sums values. Afterwards every rank sees what the others of its
        host wrote to shared memory before. A call of all ranks. meanwhile: see `Comm.all_gather`."""

    def commit(self, fine: bool) -> bool:
        """Whether `fine` is true on every rank that shares memory; each rank has checked its slice of the sum.
        Afterwards these ranks may write to shared memory again."""

    def fence(self, action: str, digest: int, everywhere: bool = False) -> list[StepFingerprint] | None:
        """A barrier of the ranks of this host, or of all hosts if `everywhere`, and a memory fence. Returns their
        fingerprints if one differs in action or digest."""


def consensus_of(comm: Comm) -> Consensus:
    """The fastest consensus for the ranks of a communicator. A call of all of them."""
    if comm.size == 1:
        return LocalConsensus()
    return SharedMemoryConsensus(comm) if comm.hosts == 1 else MessageConsensus(comm)


class LocalConsensus:
    """One rank agrees with itself."""

    def agree(
        self,
        fingerprint: Fields,
        numbers: list[int],
        values: list[float],
        used: int = 0,
        meanwhile: Callable[[], None] | None = None,
    ) -> Agreement:
        return None, numbers, values, True

    def commit(self, fine: bool) -> bool:
        return fine

    def fence(self, action: str, digest: int, everywhere: bool = False) -> list[StepFingerprint] | None:
        return None


class _Rows(dict[int, tuple[memoryview, list[memoryview]]]):
    """The rows of the ranks of the host. By a number of bytes to compare: this rank's, and those of the others.

    all: the bytes; floats: the same rows as floats; next: the other set of rows.
    """

    next: _Rows

    def __init__(self, rows: list[memoryview], own: int) -> None:
        self.all = [row[_COMPARED:] for row in rows]
        self.floats = [row.cast("d") for row in rows]
        self._own = own

    def __missing__(self, length: int) -> tuple[memoryview, list[memoryview]]:
        others = [row[:length] for row in self.all]
        found = self[length] = others.pop(self._own), others
        return found


class SharedMemoryConsensus:
    """Ranks of one host write rows into a shared window."""

    def __init__(self, comm: Comm) -> None:
        self.comm = comm
        self.window = comm.window(2 * _ROW)
        # A slow rank may still read while another one writes for the next barrier: two sets of rows alternate.
        self._own = self.window.local_rank
        parts = [part.data for part in self.window.parts]
        first, second = (_Rows([part[at : at + _ROW] for part in parts], self._own) for at in (0, _ROW))
        first.next, second.next = second, first
        self._next = first

    def agree(
        self,
        fingerprint: Fields,
        numbers: list[int],
        values: list[float],
        used: int = 0,
        meanwhile: Callable[[], None] | None = None,
    ) -> Agreement:
        now, sums = self._next, []
        for i, value in enumerate(values[:MOST_VALUES]):
            now.floats[self._own][-i] = value
        same = self._compare(_packed(fingerprint, numbers, used))
        for i in range(min(len(values), MOST_VALUES)):
            total = 0.0
            for row in now.floats:
                total += row[-i]
            sums.append(total)
        found = (None, numbers, sums, True) if same else _merged(now.all, sums)
        return found if len(values) <= MOST_VALUES else _with_many_values(found, values, self.comm)

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
            if other.tobytes() != sent:  # which compares faster than a memoryview
                return False
        return True


class MessageConsensus:
    """Ranks of several hosts gather their rows in one message; those of a host share memory as well."""

    def __init__(self, comm: Comm) -> None:
        self.comm = comm
        self._neighbours = SharedMemoryConsensus(comm)

    def agree(
        self,
        fingerprint: Fields,
        numbers: list[int],
        values: list[float],
        used: int = 0,
        meanwhile: Callable[[], None] | None = None,
    ) -> Agreement:
        # The fence's result is not used: if one host stopped here, the others would wait for it in the gather.
        action, _, digest, *_ = fingerprint
        self._neighbours.fence(ACTIONS[action], digest)
        return self._gather(fingerprint, numbers, values, used, meanwhile)

    def commit(self, fine: bool) -> bool:
        return fine  # every rank has the whole sum

    def fence(self, action: str, digest: int, everywhere: bool = False) -> list[StepFingerprint] | None:
        differing = self._neighbours.fence(action, digest)
        if differing is None and not everywhere:
            return None
        return self._gather(StepFingerprint(_NUMBER[action], 0, digest), [], [], 0)[0]

    def _gather(
        self,
        fingerprint: Fields,
        numbers: list[int],
        values: list[float],
        used: int,
        meanwhile: Callable[[], None] | None = None,
    ) -> Agreement:
        sent, places = _packed(fingerprint, numbers, used), [-i for i in range(min(len(values), MOST_VALUES))]
        for size in (_SHORT_ROW, _ROW):
            row = np.zeros(size, np.uint8)
            if _COMPARED + len(sent) + 8 * max(len(places) - 1, 0) <= size:
                row[_COMPARED : _COMPARED + len(sent)] = np.frombuffer(sent, np.uint8)
                row.view(np.float64)[places] = values[:MOST_VALUES]
            else:
                row[:] = _LONGER
            rows = self.comm.all_gather(row, meanwhile)
            if (rows[:, _COMPARED] != _LONGER).all():
                break
        sums = [sum(column) for column in rows.view(np.float64)[:, places].T.tolist()]
        found = _merged([each.data[_COMPARED:] for each in rows], sums)
        return found if len(values) == len(places) else _with_many_values(found, values, self.comm)


def _packed(fingerprint: Fields, numbers: list[int], used: int) -> bytes:
    count = len(numbers)
    if count > MOST_NUMBERS:
        raise RuntimeError(f"a backward can reach at most {MOST_NUMBERS} wrapped models, this one reached {count}")
    return _PACK[count].pack(count, *fingerprint, used, *numbers)


def _fingerprints(rows: Sequence[memoryview]) -> list[StepFingerprint]:
    return [StepFingerprint(*_HEAD.unpack_from(row)[1:-1]) for row in rows]


def _merged(rows: Sequence[memoryview], sums: list[float]) -> Agreement:
    """The agreement of rows that may differ."""
    fingerprints = _fingerprints(rows)
    if any(each != fingerprints[0] for each in fingerprints):
        return fingerprints, [], [], True
    counts = [_HEAD.unpack_from(row)[0] for row in rows]
    sent = [_PACK[count].unpack_from(row)[len(fingerprints[0]) + 1 :] for row, count in zip(rows, counts, strict=True)]
    numbers = sorted({number for _, *own in sent for number in own})
    return None, numbers, sums, all(each == sent[0] for each in sent)


def _with_many_values(found: Agreement, values: list[float], comm: Comm) -> Agreement:
    """The agreement with the sums of more values than fit into a row, by a message of their own."""
    differing, numbers, _, same_used = found
    if differing is not None:
        return found
    total = np.array(values)
    comm.all_reduce(total)
    return None, numbers, total.tolist(), same_used


# -- what to say when ranks differ


class History(NamedTuple):
    """Descriptions of what a rank did since the last agreement: the steps of its optimizers, and its criteria."""

    steps: list[str]
    criteria: list[str]


def describe_difference(
    fingerprints: Sequence[StepFingerprint], lines: Sequence[str], histories: Sequence[History], step: int
) -> str:
    """The error of ranks whose fingerprints differ; lines: of each rank's program."""
    first, other = _pair(fingerprints)
    ours, theirs = _difference(fingerprints[first], fingerprints[other], histories[first], histories[other])
    return (
        f"the ranks are not at the same place in backward number {step}: rank {first} has {ours} at {lines[first]}, "
        f"rank {other} has {theirs} at {lines[other]}; no gradient was added"
    )


def _pair(fingerprints: Sequence[StepFingerprint]) -> tuple[int, int]:
    """Two ranks that differ. Two that made the same call with other numbers are preferred, because they are the cause;
    the other ranks have only gone on."""
    for rank, each in enumerate(fingerprints):
        first = next(r for r, f in enumerate(fingerprints) if f.action == each.action)
        if each.action != BACKWARD and each != fingerprints[first]:
            return first, rank
    return 0, next(r for r, each in enumerate(fingerprints) if each != fingerprints[0])


def _instead(a: list[str], b: list[str]) -> str | None:
    """The first difference in what two ranks did; None if they did the same."""
    pairs = zip_longest(a, b, fillvalue="nothing")
    return next((f"{theirs} instead of {ours}" for ours, theirs in pairs if ours != theirs), None)


def _difference(a: StepFingerprint, b: StepFingerprint, before_a: History, before_b: History) -> tuple[str, str]:
    """The first thing that differs between two fingerprints, in words."""
    step, criterion = map(_instead, before_a, before_b)
    if a.action != b.action:
        ours, theirs = (f"come to {ACTIONS[f.action]}" for f in (a, b))
    elif a.action != BACKWARD:
        ours = f"come to {ACTIONS[a.action]}"
        theirs = f"{ours} with other numbers ({step or 'a learning rate, say, or another option'})"
    elif (a.epoch, a.batch) != (b.epoch, b.batch):
        ours, theirs = (
            f"batch {f.batch} of epoch {f.epoch}" if f.batch >= 0 else "a batch that no loader made" for f in (a, b)
        )
    elif a.order != b.order:
        ours = "a loader's batch"
        theirs = (
            "that of a loader with another length, batch_size, shuffle, seed or order of its sampler, or over other "
            "data (random without a seed? or each rank's own, which needs shard=False)"
        )
    elif a.updates != b.updates:
        ours, theirs = (f"{f.updates} optimizer updates" for f in (a, b))
    elif a.backwards != b.backwards:
        ours, theirs = (f"{f.backwards} backwards since the last synchronisation" for f in (a, b))
    elif criterion is not None and step is None:
        ours = "come to backward"
        theirs = f"computed its loss by {criterion} before it came to backward"
    else:
        ours = "come to backward"
        theirs = (
            f"stepped optimizers with other options ({step or 'a learning rate, say'}), so that its parameters have "
            "drifted, before it came to backward"
        )
    return ours, theirs


def unequal_number(everywhere: Sequence[float], where: str) -> RuntimeError:
    """The error for a number that is not the same on every rank, in the backward at a line of the program."""
    return RuntimeError(
        "a loss, or a number that it was multiplied with or divided by, must be the same on every rank, and is "
        f"{', '.join(f'{n:.6g}' for n in everywhere)} on ranks 0 to {len(everywhere) - 1} (in the backward at "
        f"{where}): it is a rank's own, such as len(xb), or follows from rows that no loader has tagged. Take the rows "
        "from a DataLoader, call the wrapped model instead of its module, or use sx.global_value(x) or "
        "sx.global_rows(xb); no gradient was added [docs: own-numbers]"
    )


def unequal_reduction(rank: int, number: int, known: bool) -> RuntimeError:
    """The error of a rank that can't reduce bucket `number` as another rank does, or does not even know it."""
    if not known:
        return RuntimeError(
            f"a backward of another rank reached the wrapped model number {number}, which rank {rank} does not have "
            "any more: every rank must train the same models"
        )
    return RuntimeError(
        f"rank {rank} and another one would add this sum to their gradients differently: only one has called zero_grad "
        "before this backward, set a parameter's gradient to None, or registered a hook with a parameter"
    )


def not_finite(found: Sequence[tuple[str, str] | None], step: int, where: str) -> FloatingPointError:
    """The error for gradients that are not finite; found: by each rank, a parameter's name and the value in its
    gradient."""
    named = [f"that of '{f[0]}' on rank {r} is {f[1]}" for r, f in enumerate(found) if f is not None]
    return FloatingPointError(
        f"gradients are not finite in backward number {step}, at {where}: "
        f"{'; '.join(named) or 'the sum over the ranks overflows'}. They were not added; with nonfinite='skip' a "
        "wrapped model leaves such a step out on all ranks, with 'allow' it goes on [docs: not-finite]"
    )
