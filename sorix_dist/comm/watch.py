"""This rank's side of the watch: its page of the table, kept true by a few stores around every collective.

The other side is a guard process per host (`sorix_dist.comm.guard`), which sees ranks that died, ended, froze or never
came, and ends the others. It is a process of its own because a rank can't watch while MPI holds Python's lock, and
because MPICH kills all ranks within milliseconds of the first one's end, before any of them could say whose it was.
"""

from __future__ import annotations

import atexit
import faulthandler
import os
import signal
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sorix_dist.comm import leftovers
from sorix_dist.comm import table as layout
from sorix_dist.comm.errors import CollectiveMismatch
from sorix_dist.comm.launcher import Launch
from sorix_dist.comm.process import Process, launcher_pid, lives
from sorix_dist.comm.site import call_site
from sorix_dist.comm.table import DEPTH, State, Table, pack_text, path_for, remove_stale
from sorix_dist.comm.watchdog import Watchdog

MOST_RANKS = 4096
"""Pages of the table where the launcher does not say how many ranks there are; untouched ones take no memory."""

TIMEOUT = 300.0
"""Seconds that a rank may be late where the program does not say."""


class Row:
    """The page of this rank in the table of its host."""

    def __init__(self, table: Table, rank: int) -> None:
        self.table = table
        self.rank = rank
        self.words = table.words
        self.at = table.at(rank)
        self.pid = os.getpid()
        self.entered = 0
        self.counts_steps = True
        """Whether the package counts the steps, because the program does not say them."""
        self.free = list(range(layout.CHANNELS))
        table.claim(rank, self.pid)

    @property
    def waits(self) -> bool:
        """Whether this rank is in a collective."""
        return self.entered > self.words[self.at + layout.LEFT]

    def set(self, state: State) -> None:
        """Say how far this rank has come."""
        if os.getpid() == self.pid and self.table.owner(self.rank)[0] == self.pid:  # not in a child process
            self.words[self.at + layout.STATE] = state

    @property
    def leaves(self) -> bool:
        """Whether this rank's script is over, and its threads and atexit functions are still to end."""
        over = bool(self.words[self.at + layout.OVER])
        if not over and not threading.main_thread().is_alive():
            self.words[self.at + layout.OVER] = over = True
        return over and self.words[self.at + layout.STATE] == State.RUNNING

    def say(self, what: str, where: str) -> None:
        """Say what this rank does, and where the user called it."""
        self.table.put_text(self.rank, pack_text(what, where))

    def ready_to_show_its_stack(self) -> None:
        """Make SIGUSR2 write the stack of the main thread to a file in memory, also while it is inside MPI."""
        if not hasattr(os, "memfd_create") or signal.getsignal(signal.SIGUSR2) is not signal.SIG_DFL:
            return
        with suppress(OSError):
            file = os.memfd_create("sorix_dist-stack")
            faulthandler.register(signal.SIGUSR2, file=file, all_threads=False)
            self.words[self.at + layout.STACK] = file


_channels: weakref.WeakSet[Channel] = weakref.WeakSet()


class Channel:
    """The collectives of one communicator, counted in this rank's page. Without a page, or with too many
    communicators, only counted."""

    def __init__(self, row: Row | None, key: int) -> None:
        self.row = row
        self.count = 0
        self.at = -1
        """The number of its first word in the table, -1 if it has none."""
        self.refused: str | None = None
        """Why this rank makes no further calls in this communicator."""
        _channels.add(self)
        if row is None:
            return
        self._words = row.words
        if row.free:
            number = row.free.pop()
            self.at = row.table.channel(row.rank, number)
            for word in range(self.at, self.at + 2 + 2 * DEPTH):
                self._words[word] = 0
            self._words[self.at + layout.KEY] = key
            weakref.finalize(self, _release, row, number).atexit = False

    def enter(self, signature: int, name: int = 0) -> int:
        """This rank enters the next collective, which is what `signature` says; returns its number from 1.

        CollectiveMismatch if an earlier one has failed here: other ranks would take this one for that.
        """
        if self.refused is not None:
            raise CollectiveMismatch(f"this rank makes no further calls in this communicator: {self.refused}")
        self.count = count = self.count + 1
        row = self.row
        if row is None:
            return count
        words, at, page = self._words, self.at, row.at
        if at >= 0:
            slot = at + count % DEPTH
            words[slot + layout.SIGNATURES] = signature
            words[slot + layout.CALLS] = name
            words[at + layout.COUNT] = count
        words[page + layout.CURRENT] = max(at, 0)
        row.entered = words[page + layout.ENTERED] = row.entered + 1
        return count

    def leave(self) -> None:
        """The collective is complete on this rank, or has failed."""
        row = self.row
        if row is not None:
            self._words[row.at + layout.LEFT] = row.entered

    def refuse(self, error: BaseException) -> None:
        """A collective has failed on this rank, with `error`: the others may be inside it, or have gone on."""
        if self.refused is None:
            self.refused = f"an earlier one ended with {type(error).__name__}: {error}"
            if self.at >= 0:
                self._words[self.at + layout.KEY] *= -1


def _release(row: Row, number: int) -> None:
    row.words[row.table.channel(row.rank, number) + layout.KEY] = 0
    row.free.append(number)


_row: Row | None = None
_everybody: Channel | None = None
_parent: tuple[Table, int] | None = None
"""Table and page of the rank that has started this process."""


def row() -> Row | None:
    """This rank's page, None where nothing is watched."""
    return _row


def join(launch: Launch) -> bool:
    """Take the page of this rank in the table of its launch and host, and see that there is a guard; returns whether
    this process is the rank.

    It is not where a rank has started it, with its variables: the page is another living process's. Where there can
    be no table, or no guard, a RuntimeWarning says why; then this rank ends itself when it is late.
    """
    global _row, _parent
    if _row is not None or sys.platform != "linux":
        return True
    if _parent is not None:
        return False
    ranks = launch.size or MOST_RANKS
    try:
        remove_stale()
        table = Table.join(path_for(launcher_pid(launch)), ranks)
        with table.locked():
            pid, start = table.owner(launch.rank)
            if pid and pid != os.getpid() and lives(pid, start):
                _parent = table, launch.rank
                return False
            _row = Row(table, launch.rank)
            if launch.size is not None and launch.local_size == launch.size:
                table.all_here = launch.size
            elif launch.size is not None and launch.local_size is not None:
                table.set_elsewhere()
    except Exception as error:  # noqa: BLE001 - what watches does not end what is watched
        _row = Row(Table.private(ranks), launch.rank)
        _warn(error)
    watchdog = Watchdog(_row)
    if _row.table.shared:
        try:
            watchdog.see_to_the_guard()
        except (OSError, subprocess.SubprocessError) as error:
            _warn(error)
    watchdog.start()
    _row.ready_to_show_its_stack()
    if not faulthandler.is_enabled():
        with suppress(ValueError, OSError, AttributeError):  # a sys.stderr that is no file
            faulthandler.enable()
    atexit.register(_ended, _row)
    os.register_at_fork(after_in_child=_forget)
    return True


def _ended(row: Row) -> None:
    """Say that this rank has come to its end. A guard that somebody has stopped would keep the launcher for ever, which
    waits for the end of all output."""
    row.set(State.ENDED)
    if os.getpid() == row.pid and row.table.shared and row.table.guarded():
        Process(*row.table.guard).send(signal.SIGCONT)


def rank_process() -> tuple[int, bool]:
    """The process that is the rank whose variables this one has inherited, and whether it has started MPI; (0, False)
    if that rank is this process."""
    if _parent is None:
        return 0, False
    table, rank = _parent
    seen = table.see(rank)
    return table.owner(rank)[0], seen is not None and seen.state >= State.STARTING


def _warn(error: Exception) -> None:
    warnings.warn(f"ranks that die will be noticed late, by init(timeout=): {error}", RuntimeWarning, stacklevel=3)


def starting(timeout: float) -> None:
    """This rank is about to wait for all ranks in the start of MPI."""
    if _row is not None:
        _row.table.timeout = timeout
        _row.say("the start of MPI", call_site().where)
        _row.set(State.STARTING)


def running(timeout: float) -> None:
    """MPI has started; a rank may be late for a collective by `timeout` seconds."""
    if _row is not None:
        _row.table.timeout = timeout
        _row.set(State.RUNNING)


@contextmanager
def wrapping(size: int) -> Iterator[None]:
    """This rank makes a communicator of `size` ranks, with calls of MPI that no communicator of ours counts yet."""
    global _everybody
    row = _row
    if row is None or row.waits:  # the latter in a split, which is counted
        yield
        return
    if size != row.table.ranks:
        channel = Channel(row, 0)
    else:
        channel = _everybody = _everybody or Channel(row, layout.EVERYBODY)
    if row.words[row.at + layout.STATE] < State.RUNNING:  # the program has started MPI itself, and has not called init
        running(row.table.timeout or TIMEOUT)
    row.say("the start of a communicator", call_site().where)
    channel.enter(1)
    try:
        yield
        if row.table.shared:
            leftovers.note(row.table.noted)
    finally:
        channel.leave()


def note(step: int | None = None, doing: str | None = None) -> None:
    """Say which step this rank is in, and what it does there (such as 'backward'), for the report of a fault.

    About 2 microseconds; 0.2 for a step alone. A program that says its steps is not told them by the package.
    """
    if _row is not None:
        if step is not None:
            _row.counts_steps = False
            _row.words[_row.at + layout.STEP] = step
        if doing is not None:
            _row.say(doing, call_site().where)


_INSIDE = 4  # calls from the user's, such as loss.backward(), to `begins`


def begins(doing: str, number: int) -> None:
    """The package begins something with this number, which is the step's unless the program says its own."""
    if _row is not None:
        if _row.counts_steps:
            _row.words[_row.at + layout.STEP] = number
        _row.say(doing, call_site(_INSIDE).where)


def all_is_said() -> None:
    """What ends the job now has been told: whatever becomes of the ranks is no further news."""
    if _row is not None:
        _row.table.set_said()


def _forget() -> None:
    """This process was forked from a rank: it makes no calls in the rank's place."""
    global _row, _everybody, _parent
    if _row is not None:
        _parent = _row.table, _row.rank
    _row = _everybody = None
    for channel in _channels:
        channel.refused = "this process was forked from a rank, and is none itself"
