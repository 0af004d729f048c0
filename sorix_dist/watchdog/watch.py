"""The rank's side of the watchdog: its status page, kept up to date by a few stores around every collective.

The other side is a guard process per host (`sorix_dist.watchdog.guard`). It is a separate process because a rank
can't watch while MPI has Python's lock, and because MPICH kills all ranks within milliseconds of the first one's end,
before any of them could report it.
"""

from __future__ import annotations

import atexit
import faulthandler
import os
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import perf_counter_ns

from sorix_dist.watchdog import leftovers
from sorix_dist.watchdog import status_page as layout
from sorix_dist.watchdog.call_site import call_site
from sorix_dist.watchdog.launcher import Launch
from sorix_dist.watchdog.monitor import Monitor
from sorix_dist.watchdog.page_folder import path_for, remove_stale
from sorix_dist.watchdog.process import launcher_pid, lives
from sorix_dist.watchdog.status_page import DEPTH, State, StatusPages, pack_text

MOST_RANKS = 4096  # pages where the launcher does not say how many ranks there are; unused ones take no memory
TIMEOUT = 300.0  # seconds that a rank may be late unless the program says otherwise

UNKNOWN = -1  # stands for the rank that was waited for in a message: only a comparison of all ranks' clocks shows it
listeners: dict[int, Callable[[int, int, int], None]] = {}
"""By thread, a function that gets the start and the end of each wait in nanoseconds, and the rank waited for."""


class CollectiveMismatch(RuntimeError):
    """Two ranks made different calls where every rank must make the same."""


class RankPage:
    """This rank's status page."""

    def __init__(self, pages: StatusPages, rank: int) -> None:
        self.pages = pages
        self.rank = rank
        self.words = pages.words
        self.at = pages.at(rank)
        self._texts = [pages.text_at(rank, slot) for slot in range(DEPTH + 1)]
        self.pid = os.getpid()
        self.entered = self.waited = 0
        self.counts_steps = True  # whether the package numbers the steps, because the program does not
        self.free_channels = list(range(layout.CHANNELS))
        pages.claim(rank, self.pid)

    @property
    def waits(self) -> bool:
        """Whether this rank is in a collective."""
        return self.entered > self.words[self.at + layout.EXITED]

    def set(self, state: State) -> None:
        """Publish the state of this rank, unless this is a child process of it."""
        if os.getpid() == self.pid and self.pages.owner(self.rank)[0] == self.pid:
            self.words[self.at + layout.STATE] = state

    @property
    def is_ending(self) -> bool:
        """Whether this rank's script is over, and its threads and atexit functions still run."""
        over = bool(self.words[self.at + layout.SCRIPT_OVER])
        executors_end = getattr(threading, "_SHUTTING_DOWN", False)  # Python waits for their tasks in the main thread
        if not over and (executors_end or not threading.main_thread().is_alive()):
            self.words[self.at + layout.SCRIPT_OVER] = over = True
        return over and self.words[self.at + layout.STATE] == State.RUNNING

    def say(self, what: str, where: str, collective: bool = False) -> None:
        """Publish the operation of this rank, and the user's line that called it.

        The text of the next collective stays while this rank makes the ones that follow.
        """
        slot = (self.entered + 1) % DEPTH if collective else DEPTH
        blob, at = pack_text(what, where), self._texts[slot]
        self.pages.memory[at : at + len(blob)] = blob
        self.words[self.at + layout.TEXT] = slot

    def enable_stack_dump(self) -> None:
        """Make SIGUSR2 write the main thread's stack to a file in memory, even while it is inside MPI."""
        if not hasattr(os, "memfd_create") or signal.getsignal(signal.SIGUSR2) is not signal.SIG_DFL:
            return
        with suppress(OSError):
            file = os.memfd_create("sorix_dist-stack")
            faulthandler.register(signal.SIGUSR2, file=file, all_threads=False)
            self.words[self.at + layout.STACK] = file


_channels: weakref.WeakSet[Channel] = weakref.WeakSet()


class Channel:
    """Counts the collectives of one communicator, in this rank's page if it has one with a free channel."""

    def __init__(self, page: RankPage | None, key: int) -> None:
        self.page = page
        self.count = 0
        self.at = -1  # the number of its first word in the pages, -1 if it has none
        self.refused: str | None = None  # why this rank makes no further calls in this communicator
        _channels.add(self)
        if page is None:
            return
        self._words = page.words
        if page.free_channels:
            number = page.free_channels.pop()
            self.at = page.pages.channel(page.rank, number)
            for word in range(self.at, self.at + 2 + 2 * DEPTH):
                self._words[word] = 0
            self._words[self.at + layout.KEY] = key
            weakref.finalize(self, _free, page, number).atexit = False
        self._current = max(self.at, 0)

    def enter(self, signature: int, name: int = 0) -> int:
        """Enter the next collective, with the hash `signature` of the call and `name` of its argument; return its
        number, from 1.

        CollectiveMismatch if an earlier one failed here: other ranks would take this one for that.
        """
        if self.refused is not None:
            raise CollectiveMismatch(f"this rank makes no further calls in this communicator: {self.refused}")
        self.count = count = self.count + 1
        page = self.page
        if page is None:
            return count
        words, at, first = self._words, self.at, page.at
        if at >= 0:
            slot = at + count % DEPTH
            words[slot + layout.SIGNATURES] = signature
            words[slot + layout.NAMES] = name
            words[at + layout.COUNT] = count
        words[first + layout.CURRENT] = self._current
        page.entered = words[first + layout.ENTERED] = page.entered + 1
        return count

    def leave(self) -> None:
        """The collective is complete on this rank, or failed."""
        page = self.page
        if page is not None:
            self._words[page.at + layout.EXITED] = page.entered

    def call(self, signature: int, collective: Callable[[], None]) -> None:
        """Make the next collective, which other ranks need not compare at once."""
        try:
            self.enter(signature)
            collective()
        except BaseException as error:
            self.refuse(error)
            raise
        finally:
            page = self.page
            if page is not None:  # as in `leave`, without a call
                self._words[page.at + layout.EXITED] = page.entered

    def refuse(self, error: BaseException) -> None:
        """A collective failed on this rank with `error`: the others may be inside it, or have gone on."""
        if self.refused is None:
            self.refused = f"an earlier one ended with {type(error).__name__}: {error}"
            if self.at >= 0:
                self._words[self.at + layout.KEY] *= -1


def _free(page: RankPage, number: int) -> None:
    page.words[page.pages.channel(page.rank, number) + layout.KEY] = 0
    page.free_channels.append(number)


_page: RankPage | None = None
_startup: Channel | None = None
_parent: tuple[StatusPages, int] | None = None  # pages and number of the rank that started this process


def page() -> RankPage | None:
    """This rank's status page, None where nothing is watched."""
    return _page


def join(launch: Launch) -> bool:
    """Claim the status page of this rank and start a guard if there is none; return whether this process is the rank.

    It is not if a rank started it, with its own variables: then another living process has the page. Where there can
    be no pages, or no guard, a RuntimeWarning says why; then this rank ends itself when it is late.
    """
    global _page, _parent
    if _page is not None or sys.platform != "linux":
        return True
    if _parent is not None:
        return False
    ranks = launch.size or MOST_RANKS
    try:
        remove_stale()
        pages = StatusPages.join(path_for(launcher_pid(launch)), ranks)
        with pages.locked():
            pid, start = pages.owner(launch.rank)
            if pid and pid != os.getpid() and lives(pid, start):
                _parent = pages, launch.rank
                return False
            _page = RankPage(pages, launch.rank)
            if launch.size is not None and launch.local_size == launch.size:
                pages.world_size = launch.size
            elif launch.size is not None and launch.local_size is not None:
                pages.other_hosts = 1
    except Exception as error:  # noqa: BLE001 - the watchdog must not end what it watches
        _page = RankPage(StatusPages.private(ranks), launch.rank)
        _warn(error)
    monitor = Monitor(_page)
    for begin in (monitor.check_guard, monitor.start):
        try:
            begin()
        except Exception as error:  # noqa: BLE001
            _warn(error)
    _page.enable_stack_dump()
    if not faulthandler.is_enabled():
        with suppress(ValueError, OSError, AttributeError, RuntimeError):  # sys.stderr is not a file, or None
            faulthandler.enable()
    atexit.register(_page.set, State.ENDED)
    os.register_at_fork(after_in_child=_forget)
    return True


def rank_process() -> tuple[int, bool]:
    """The process of the rank that started this one, and whether it has started MPI; (0, False) if this process is
    the rank itself."""
    if _parent is None:
        return 0, False
    pages, rank = _parent
    status = pages.read(rank)
    return pages.owner(rank)[0], status is not None and status.state >= State.STARTING


def _warn(error: Exception) -> None:
    warnings.warn(f"ranks that die will be noticed late, by init(timeout=): {error}", RuntimeWarning, stacklevel=3)


def starting(timeout: float) -> None:
    """This rank is about to wait for all ranks in the start of MPI."""
    if _page is not None:
        _page.pages.timeout = timeout
        _page.say("the start of MPI", call_site().where)
        _page.set(State.STARTING)


def running(timeout: float) -> None:
    """MPI has started; a rank may be late for a collective by `timeout` seconds."""
    if _page is not None:
        _page.pages.timeout = timeout
        _page.set(State.RUNNING)


@contextmanager
def wrapping(size: int) -> Iterator[None]:
    """Watch the MPI calls that make a communicator of `size` ranks, which no `Comm` counts yet."""
    global _startup
    page = _page
    if page is None or page.waits:  # the latter in a split, which is counted
        yield
        return
    if size != page.pages.ranks:
        channel = Channel(page, 0)
    else:
        channel = _startup = _startup or Channel(page, layout.STARTUP)
    if page.words[page.at + layout.STATE] < State.RUNNING:  # the program started MPI itself, and has not called init
        running(page.pages.timeout or TIMEOUT)
    page.say("the start of a communicator", call_site().where)
    channel.enter(1)
    try:
        yield
        if page.pages.shared:
            leftovers.record(page.pages.leftovers)
    finally:
        channel.leave()


def note(step: int | None = None, doing: str | None = None) -> None:
    """Tell the watchdog which step this rank is in, and what it does (such as 'backward'), for the report of a fault.

    Takes about 2 microseconds; 0.2 for a step only. The package does not number the steps of a program that does.
    """
    if _page is not None:
        if step is not None:
            _page.counts_steps = False
            _page.words[_page.at + layout.STEP] = step
        if doing is not None:
            _page.say(doing, call_site().where)


_INSIDE = 4  # frames from `call_site` to the nearest call of a user, that of LocalSGD.synchronise()


def begins(doing: str, number: int) -> None:
    """The package begins an operation of step `number`, which counts unless the program numbers its own steps."""
    if _page is not None:
        if _page.counts_steps:
            _page.words[_page.at + layout.STEP] = number
        _page.say(doing, call_site(_INSIDE).where)


def waited(since: int, rank: int = UNKNOWN) -> None:
    """This rank has waited for another one since `since`, by `perf_counter_ns`."""
    now, page = perf_counter_ns(), _page
    if page is not None:
        page.waited = page.words[page.at + layout.WAITED] = page.waited + now - since
    if listeners and (listener := listeners.get(threading.get_ident())) is not None:
        listener(since, now, rank)


def works() -> None:
    """This rank goes on with long work of the package, such as a file: ranks that wait for it do so patiently."""
    if _page is not None and not _page.waits:
        _page.pages.progress += 1


def mark_reported() -> None:
    """Record that the fault has been reported, so that the ends of the ranks are not reported again."""
    if _page is not None:
        _page.pages.reported = 1


def _forget() -> None:
    """This process was forked from a rank, and is not a rank itself."""
    global _page, _startup, _parent
    if _page is not None:
        _parent = _page.pages, _page.rank
    _page = _startup = None
    for channel in _channels:
        channel.refused = "this process was forked from a rank, and is not one itself"
