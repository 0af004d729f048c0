"""Whether what the ranks of a host are seen doing is a fault, and whose: no process is touched here."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sorix_dist.comm.table import EVERYBODY, Seen, State, directory

PATIENCE = 0.3
"""Seconds that a rank must have waited for one that has ended, or at a different collective: one of them may
just be about to leave it."""
ELSEWHERE = 2.0
"""Seconds more that a host gives another one to name the rank that is late, if it is none of its own."""
FROZEN = 1.5
"""Seconds that a rank must have been stopped while others were not."""

_FROM_OUTSIDE = ("SIGTERM", "SIGINT", "SIGHUP")
"""Signals by which a user, mpirun or a scheduler ends a job."""


@dataclass
class Observed:
    """What the guard knows besides the table; seconds are of the guard's own time, in which it was running."""

    gone: dict[int, int | None] = field(default_factory=dict)
    """Ranks whose processes are gone, the first one first, and how they ended as `os.wait` says it, None if unknown."""
    waited: dict[int, float] = field(default_factory=dict)
    """Seconds that each rank is in its present collective, or in the start of MPI."""
    stopped: dict[int, float] = field(default_factory=dict)
    """Seconds that a rank's process was in the state T while not all were."""
    over: dict[int, float] = field(default_factory=dict)
    """Seconds since each rank's script was over."""
    may_come: frozenset[int] = frozenset()
    """Ranks around whose last program a shell lives, which may start another one."""
    absent: frozenset[int] = frozenset()
    """Ranks of this host that have not imported the package, and whose processes are gone."""


@dataclass(frozen=True)
class Fault:
    """What is wrong: a sentence, and the ranks whose stacks tell more."""

    what: str
    ranks: tuple[int, ...]


def judge(
    table: Mapping[int, Seen], observed: Observed, timeout: float, all_here: int = 0, here: bool = True
) -> Fault | None:
    """The fault of this host's ranks, if there is one; `timeout` 0 means none was said yet, and `all_here` is the
    number of all ranks if they are on this host; `here` is False if some are known to be on other hosts.

    A rank that raised (State.FAILED) speaks for itself and is not judged here.
    """
    waiting = [seen for seen in table.values() if is_waiting(seen) and seen.rank not in observed.gone]
    return (
        _died(table, observed, waiting, here)
        or _different(waiting, observed)
        or _ended(table, observed, waiting)
        or _never_came(observed, waiting)
        or _left(table, observed, waiting)
        or _stopped(observed)
        or _late(table, observed, waiting, timeout, all_here)
        or _stays(table, observed, timeout, all_here)
    )


def is_waiting(seen: Seen) -> bool:
    """Whether a rank can't go on without others."""
    return seen.state == State.STARTING or (seen.state == State.RUNNING and seen.waits)


def activity(seen: Seen) -> str:
    """What a rank does or did last, in words."""
    what, where = seen.text
    if not what:
        return "before its first collective"
    return f"{'in' if is_waiting(seen) else 'last seen in'} {what}{f' at {where}' if where else ''}"


def step_of(seen: Seen) -> str:
    """'step 3, ', or nothing if the program has not said."""
    return f"step {seen.step}, " if seen.step >= 0 else ""


def ending(status: int | None) -> str:
    """How a process has ended, in words."""
    if status is None:
        return "died without a word (killed, crashed, or os._exit)"
    if number := status & 0x7F:
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        hint = f" (mostly: {directory()} is full)" if number == signal.SIGBUS else ""
        return f"was ended from outside by {name}" if name in _FROM_OUTSIDE else f"was killed by {name}{hint}"
    return f"left with os._exit({status >> 8}) or the like"


def _died(table: Mapping[int, Seen], observed: Observed, waiting: Sequence[Seen], all_here: bool) -> Fault | None:
    for rank, status in observed.gone.items():
        seen = table.get(rank)
        if seen is None or seen.state in (State.ENDED, State.FAILED):
            continue
        # Before MPI is there, leaving matters to nobody who does not wait for it; for a signal, launchers end all.
        harmless = not waiting or _another_may_come(seen, observed)
        if seen.state == State.IMPORTED and harmless and not (status and status & 0x7F):
            continue
        # Of several hosts, one ends its ranks because a rank of another one has failed.
        blame = (
            ""
            if all_here or status not in (None, signal.SIGKILL)
            else ", or its launcher has ended it for another host"
        )
        return Fault(f"rank {rank} (pid {seen.pid}) {ending(status)}{blame}: {step_of(seen)}{activity(seen)}", (rank,))
    return None


def _another_may_come(gone: Seen, observed: Observed) -> bool:
    """Whether a rank's program has ended without MPI, and another one may follow it: `python prepare.py && ...`."""
    return gone.rank in observed.may_come and gone.entered == 0 and not gone.counts


def _different(waiting: Sequence[Seen], observed: Observed) -> Fault | None:
    first: dict[tuple[int, int], Seen] = {}
    for seen in waiting:
        if seen.key == 0 or observed.waited.get(seen.rank, 0.0) < PATIENCE:
            continue
        other = first.setdefault((seen.key, seen.count), seen)
        if other.signature != seen.signature:
            return Fault(
                f"rank {seen.rank} waits in another collective than rank {other.rank}: every rank must make the "
                "same calls in the same order",
                (other.rank, seen.rank),
            )
    return None


def _ended(table: Mapping[int, Seen], observed: Observed, waiting: Sequence[Seen]) -> Fault | None:
    for gone in table.values():
        if gone.state != State.ENDED or _another_may_come(gone, observed):
            continue
        for seen in waiting:
            if observed.waited.get(seen.rank, 0.0) < PATIENCE:
                continue
            if seen.state == State.STARTING:
                missed = not gone.counts and gone.entered == 0
            else:
                concerned = seen.key in gone.counts or seen.key == EVERYBODY
                missed = concerned and gone.counts.get(seen.key, 0) < seen.count
                # Or it called something else there, and went on after the error that it got.
                last, here = (gone.key, gone.count), (seen.key, seen.count)
                missed = missed or (last == here and gone.signature != seen.signature)
            if missed:
                return Fault(
                    f"rank {gone.rank} (pid {gone.pid}) has ended (its script came to its end, or sys.exit) while "
                    f"rank {seen.rank} waits for it {activity(seen)}",
                    (gone.rank,),
                )
    return None


def _left(table: Mapping[int, Seen], observed: Observed, waiting: Sequence[Seen]) -> Fault | None:
    """A rank whose collective has failed, and which went on without the others. It may be about to say so itself."""
    for left in table.values():
        for seen in waiting:
            if seen.key in left.refused and observed.waited.get(seen.rank, 0.0) >= ELSEWHERE:
                return Fault(
                    f"rank {left.rank} makes no further calls in the communicator where rank {seen.rank} waits for it "
                    f"{activity(seen)}: a collective has failed on rank {left.rank}, and its program went on",
                    (left.rank,),
                )
    return None


def _stopped(observed: Observed) -> Fault | None:
    for rank, seconds in observed.stopped.items():
        if seconds >= FROZEN:
            return Fault(f"rank {rank} is frozen: its process is stopped (state T), those of other ranks run", (rank,))
    return None


def _never_came(observed: Observed, waiting: Sequence[Seen]) -> Fault | None:
    for seen in waiting:
        if observed.absent and observed.waited.get(seen.rank, 0.0) >= ELSEWHERE:
            rank = min(observed.absent)
            return Fault(
                f"rank {rank} has ended before it imported sorix_dist, while rank {seen.rank} waits for it "
                f"{activity(seen)}",
                (rank,),
            )
    return None


def _stays(table: Mapping[int, Seen], observed: Observed, timeout: float, all_here: int) -> Fault | None:
    """A rank whose script is over and whose process stays, so that the others wait for it in the end of MPI."""
    stay = [seen for rank, seen in table.items() if timeout and observed.over.get(rank, 0.0) >= timeout]
    late = [seen for seen in stay if seen.state != State.ENDED]
    if not late and all_here == len(stay) + len(observed.gone):  # all have ended, and yet they are there
        late = stay
    if not late:
        return None
    seen = late[0]
    return Fault(
        f"the script of rank {seen.rank} (pid {seen.pid}) ended {timeout:g} s ago (init(timeout=)), but its "
        "process stays: an atexit function has not returned, or a thread that is no daemon",
        (seen.rank,),
    )


def _late(
    table: Mapping[int, Seen], observed: Observed, waiting: Sequence[Seen], timeout: float, all_here: int
) -> Fault | None:
    late = [seen for seen in waiting if timeout and observed.waited.get(seen.rank, 0.0) >= timeout]
    if not late:
        return None
    seen = min(late, key=lambda each: each.rank)
    missing = [
        rank
        for rank, each in sorted(table.items())
        if each not in waiting and (each.state != State.ENDED or _another_may_come(each, observed))
    ]
    missing += [rank for rank in range(all_here) if rank not in table]
    if not missing and seen.state == State.RUNNING:  # a rank that is in another collective, further behind
        missing = [each.rank for each in waiting if seen.key in each.counts and each.counts[seen.key] < seen.count]
    if missing:
        whom = " and ".join(f"rank {rank}" for rank in missing)
        whom = f"{whom} {'has' if len(missing) == 1 else 'have'} not arrived"
    elif observed.waited[seen.rank] < timeout + ELSEWHERE:
        return None
    else:
        whom = "of the ranks here that have imported sorix_dist none is missing: one never came, or is on another host"
    return Fault(f"rank {seen.rank} has waited {timeout:g} s (init(timeout=)) {activity(seen)}; {whom}", tuple(missing))
