"""Whether the ranks' status pages and processes show a fault, and whose: a pure function."""

from __future__ import annotations

import math
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sorix_dist.watchdog.page_folder import directory
from sorix_dist.watchdog.status_page import STARTUP, State, Status

PATIENCE = 0.3
"""Seconds that a rank must have waited for one that ended, or in a different collective: one of them may just be
about to leave it."""
OTHERS_FIRST = 2.0  # seconds more in which another host, or the rank at fault itself, may report a better reason
LAST_SECONDS = 5.0
"""Seconds beyond the time-out that ranks may take to end together: each uses up a core in the end of MPI."""
FROZEN = 1.5  # seconds that a rank must have been stopped while others were not
_FROM_OUTSIDE = ("SIGTERM", "SIGINT", "SIGHUP")  # signals by which a user, mpirun or a scheduler ends a job


@dataclass
class Observations:
    """The guard's observations beside the status pages; seconds count only while the guard itself was running."""

    gone: dict[int, int | None] = field(default_factory=dict)
    """Ranks whose processes ended, the first one first, and their wait status, None if unknown."""
    gone_for: float = 0.0  # seconds since the first rank was gone
    waited: dict[int, float] = field(default_factory=dict)
    """Seconds that each rank has been in its present collective, or in the start of MPI."""
    idle: float = math.inf
    """Seconds since a rank has gone on with long work of the package."""
    stopped: dict[int, float] = field(default_factory=dict)
    """Seconds that a rank's process was in the state T while not all were."""
    over: dict[int, float] = field(default_factory=dict)  # seconds since each rank's script was over
    may_come: frozenset[int] = frozenset()
    """Ranks whose program ran in a shell that still lives and may start another one."""
    absent: frozenset[int] = frozenset()  # ranks of this host whose processes ended before they imported the package
    ends_by_kill: bool = False
    """Whether the launcher ends ranks by SIGKILL after a fault, so that other signals came from outside."""


@dataclass(frozen=True)
class Fault:
    """A sentence that says what is wrong, and the ranks whose stacks belong to it."""

    what: str
    ranks: tuple[int, ...] = ()


def diagnose(
    statuses: Mapping[int, Status],
    observed: Observations,
    timeout: float,
    world_size: int = 0,
    single_host: bool = True,
) -> Fault | None:
    """The fault of this host's ranks, if there is one.

    timeout: seconds that a rank may be late; 0: not known yet. world_size: the number of all ranks if all are on this
    host, else 0. single_host: False if some are known to be on other hosts.

    A rank that raised (State.FAILED) reports itself, and is not diagnosed here.
    """
    waiting = [status for status in statuses.values() if is_waiting(status) and status.rank not in observed.gone]
    return (
        _died(statuses, observed, waiting, world_size, single_host)
        or _different(waiting, observed)
        or _ended(statuses, observed, waiting)
        or _never_imported(observed, waiting)
        or _refused(statuses, observed, waiting)
        or _stopped(observed)
        or _late(statuses, observed, waiting, timeout, world_size)
        or _stays(statuses, observed, timeout, world_size)
    )


def is_waiting(status: Status) -> bool:
    """Whether a rank waits for others."""
    return status.state == State.STARTING or (status.state == State.RUNNING and status.waits)


def activity(status: Status) -> str:
    """A description of the current or last operation of a rank."""
    what, where = status.text
    if not what:
        return "before its first collective"
    return f"{'in' if is_waiting(status) else 'last seen in'} {what}{f' at {where}' if where else ''}"


def step_of(status: Status) -> str:
    """'step 3, ', or '' if it is unknown."""
    return f"step {status.step}, " if status.step >= 0 else ""


def ending(wait_status: int | None) -> str:
    """A description of the end of a process."""
    if wait_status is None:
        return "died without a word (killed, crashed, or os._exit)"
    if name := _signal_name(wait_status):
        hint = f" (mostly: {directory()} is full)" if name == "SIGBUS" else ""
        return f"was ended from outside by {name}" if name in _FROM_OUTSIDE else f"was killed by {name}{hint}"
    return f"left with os._exit({wait_status >> 8}) or the like"


def _signal_name(wait_status: int | None) -> str:
    """The signal that ended a process, '' if none did or it is unknown."""
    number = (wait_status or 0) & 0x7F
    return next((each.name for each in signal.Signals if each == number), f"signal {number}" * bool(number))


def _died(
    statuses: Mapping[int, Status],
    observed: Observations,
    waiting: Sequence[Status],
    world_size: int,
    single_host: bool,
) -> Fault | None:
    for rank, wait_status in observed.gone.items():
        status = statuses.get(rank)
        if status is None or status.state in (State.ENDED, State.FAILED):
            continue
        # A rank may leave before MPI starts if no other rank waits for it. After a signal, launchers end all ranks.
        harmless = not waiting or _another_may_come(status, observed)
        signals = map(_signal_name, observed.gone.values() if wait_status is None else [wait_status])
        if status.state == State.IMPORTED and harmless and not any(signals):
            continue
        unknown = wait_status is None and observed.ends_by_kill
        if unknown or _signal_name(wait_status) in _FROM_OUTSIDE:
            if signalled := _signalled(rank, observed.gone):
                return Fault(f"{signalled}, as by mpirun, a user or a scheduler")
            if observed.gone_for < PATIENCE and len(observed.gone) < len(statuses):
                return None  # how others end may show what ended this one
        # A launcher ends ranks because one of another host failed, or one without a page.
        other = "another host" * (not single_host) or "a rank without a status page" * (world_size > len(statuses))
        blame = f", or its launcher has ended it for {other}" if other and wait_status in (None, signal.SIGKILL) else ""
        what = f"rank {rank} (pid {status.pid}) {ending(wait_status)}{blame}: {step_of(status)}{activity(status)}"
        return Fault(what, (rank,))
    return None


def _signalled(rank: int, gone: Mapping[int, int | None]) -> str:
    """A description of the signal from outside that ended `rank`, which was the first, and others; '' if none did.

    Its own wait status is unknown if its parent was faster than the guard.
    """
    others = [wait_status for other, wait_status in gone.items() if other != rank]
    names = [_signal_name(wait_status) for wait_status in (gone[rank], *others)]
    name = next((name for name in names if name in _FROM_OUTSIDE), "")
    more = sum(wait_status is None or _signal_name(wait_status) == name for wait_status in others)
    if not name or not more:
        return ""
    unknown = gone[rank] is None
    return f"rank {rank}{' ended first, how is not known;' if unknown else ' and'} {more} more were ended by {name}"


def _another_may_come(gone: Status, observed: Observations) -> bool:
    """Whether a rank's program ended without MPI, and another one may follow it: `python prepare.py && ...`."""
    return gone.rank in observed.may_come and gone.entered == 0 and not gone.counts


def _different(waiting: Sequence[Status], observed: Observations) -> Fault | None:
    first: dict[tuple[int, int], Status] = {}
    for status in waiting:
        if status.key == 0 or observed.waited.get(status.rank, 0.0) < PATIENCE:
            continue
        other = first.setdefault((status.key, status.count), status)
        if other.signature != status.signature:
            return Fault(
                f"rank {status.rank} waits in another collective than rank {other.rank}: every rank must make the "
                "same calls in the same order",
                (other.rank, status.rank),
            )
    return None


def _ended(statuses: Mapping[int, Status], observed: Observations, waiting: Sequence[Status]) -> Fault | None:
    for gone in statuses.values():
        if gone.state != State.ENDED or _another_may_come(gone, observed):
            continue
        for status in waiting:
            if observed.waited.get(status.rank, 0.0) >= PATIENCE and _missed(gone, status):
                failed = " after a collective had failed on it" * (status.key in gone.refused)
                return Fault(
                    f"rank {gone.rank} (pid {gone.pid}) has ended (its script came to its end, or sys.exit){failed} "
                    f"while rank {status.rank} waits for it {activity(status)}",
                    (gone.rank,),
                )
    return None


def _missed(gone: Status, status: Status) -> bool:
    """Whether a rank that ended never made the call in which another one waits."""
    if status.state == State.STARTING:
        return not gone.counts and gone.entered == 0
    belongs = status.key in gone.counts or status.key == STARTUP
    if belongs and gone.counts.get(status.key, 0) < status.count:
        return True
    # Or it made another call there, and went on after the error that it got.
    return (gone.key, gone.count) == (status.key, status.count) and gone.signature != status.signature


def _refused(statuses: Mapping[int, Status], observed: Observations, waiting: Sequence[Status]) -> Fault | None:
    """A rank whose collective failed, and which went on without the others. It may be about to report that itself."""
    for left in statuses.values():
        for status in waiting:
            if status.key in left.refused and observed.waited.get(status.rank, 0.0) >= OTHERS_FIRST:
                return Fault(
                    f"rank {left.rank} makes no further calls in the communicator where rank {status.rank} waits for "
                    f"it {activity(status)}: a collective has failed on rank {left.rank}, and its program went on",
                    (left.rank,),
                )
    return None


def _stopped(observed: Observations) -> Fault | None:
    for rank, seconds in observed.stopped.items():
        if seconds >= FROZEN:
            return Fault(f"rank {rank} is frozen: its process is stopped (state T), others are not", (rank,))
    return None


def _never_imported(observed: Observations, waiting: Sequence[Status]) -> Fault | None:
    for status in waiting:
        if observed.absent and observed.waited.get(status.rank, 0.0) >= OTHERS_FIRST:
            rank = min(observed.absent)
            return Fault(
                f"rank {rank} has ended before it imported sorix_dist, while rank {status.rank} waits for it "
                f"{activity(status)}",
                (rank,),
            )
    return None


def _stays(statuses: Mapping[int, Status], observed: Observations, timeout: float, world_size: int) -> Fault | None:
    """A rank whose script is over and whose process stays, so that the others wait for it in the end of MPI."""
    over = {rank: min(observed.over.get(rank, 0.0), observed.idle) for rank in statuses}
    stay = [status for rank, status in statuses.items() if timeout and over[rank] >= timeout]
    late = [status for status in stay if status.state != State.ENDED]
    if not late and world_size == len(stay) + len(observed.gone):  # all scripts ended, and some processes stay
        late = [status for status in stay if over[status.rank] >= timeout + LAST_SECONDS]
    if not late:
        return None
    status = late[0]
    return Fault(
        f"the script of rank {status.rank} (pid {status.pid}) ended {timeout:g} s ago (init(timeout=)), but its "
        "process stays: an atexit function has not returned, or a thread that is no daemon",
        (status.rank,),
    )


def _late(
    statuses: Mapping[int, Status],
    observed: Observations,
    waiting: Sequence[Status],
    timeout: float,
    world_size: int,
) -> Fault | None:
    waited = {status.rank: min(observed.waited.get(status.rank, 0.0), observed.idle) for status in waiting}
    late = [status for status in waiting if timeout and waited[status.rank] >= timeout]
    if not late:
        return None
    status = min(late, key=lambda each: (each.state == State.STARTING, each.rank))
    missing = [
        rank
        for rank, each in sorted(statuses.items())
        if each not in waiting and (each.state != State.ENDED or _another_may_come(each, observed))
    ]
    missing += [rank for rank in range(world_size) if rank not in statuses]
    if not missing and status.state == State.RUNNING:  # a rank that is in another collective, further behind
        starting = State.STARTING  # such as one that has replaced its program, by os.execv
        behind = [each for each in waiting if each.counts.get(status.key, status.count) < status.count]
        missing = sorted({each.rank for each in waiting if each.state == starting or each in behind})
    if missing:
        whom = " and ".join(f"rank {rank}" for rank in missing)
        whom = f"{whom} {'has' if len(missing) == 1 else 'have'} not arrived"
    elif waited[status.rank] < timeout + OTHERS_FIRST:
        return None
    elif world_size == len(statuses):
        whom = "no rank is missing: the machine is too busy for them, or messages are lost"
    else:
        whom = "of the ranks here that have imported sorix_dist none is missing: one never came, or is on another host"
    what = f"rank {status.rank} has waited {timeout:g} s (init(timeout=)) {activity(status)}; {whom}"
    return Fault(what, tuple(missing))
