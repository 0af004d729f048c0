"""Threads in each rank that start the guard, replace a dead one, and end the rank in time where there is none.

A rank that waits inside MPI has released Python's lock. Only the start of MPI does not; `faulthandler` limits that.
"""

from __future__ import annotations

import _thread
import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sorix_dist.watchdog.diagnosis import activity, step_of
from sorix_dist.watchdog.leftovers import Launchers
from sorix_dist.watchdog.page_folder import launcher_of
from sorix_dist.watchdog.process import Process, arguments, children, in_child, lives
from sorix_dist.watchdog.status_page import StatusPages

if TYPE_CHECKING:
    from sorix_dist.watchdog.watch import RankPage

TICK = 0.5  # seconds between two checks
UNRESPONSIVE = 10  # checks in a row without a heartbeat after which the guard is stopped or stuck
STARTS = 20  # guards that a rank starts at most: what ends each of them would end the next one too
AFTER_GUARD = 5.0  # seconds beyond the time-out that a rank leaves to the guard, whose report says more
FRAMES = 12  # frames of the stack in a report
WRITE_SECONDS = 2.0  # seconds that a report may take; the write blocks if nothing reads it
START_SECONDS = 5.0  # seconds that the start of a guard may take, and a connection to it


class Monitor:
    """Checks the guard, and the waiting time of the rank of `page`."""

    def __init__(self, page: RankPage) -> None:
        self.page = page
        self.pages = page.pages
        self._starts = 0
        self._connected_to = 0
        self._connection: socket.socket | None = None
        self._heartbeat, self._missed = 0, 0
        self._seen, self._waited = (0, 0), 0.0

    def start(self) -> None:
        """Check from now on, in threads: the start of a guard may block one of them."""
        for check in (self._keep_guard, self._check_time):
            threading.Thread(target=self._run, args=(check,), name="sorix_dist monitor", daemon=True).start()

    def _run(self, check: Callable[[float], None]) -> None:
        checked = time.monotonic()
        while os.getpid() == self.page.pid:
            time.sleep(TICK)
            now = time.monotonic()
            passed, checked = min(now - checked, 2 * TICK), now  # less if it was stopped, as by Ctrl-Z
            check(passed)

    def _keep_guard(self, passed: float) -> None:
        try:
            self.check_guard()
        except Exception:  # noqa: BLE001 - without a guard, the rank still ends itself in time
            self._starts += 1

    def check_guard(self) -> None:
        """Start a guard if none responds and no other rank does, and connect to it; OSError or SubprocessError if that
        fails."""
        if not self.pages.shared:
            return
        heartbeat = self.pages.heartbeat
        self._missed = self._missed + 1 if heartbeat == self._heartbeat else 0
        self._heartbeat = heartbeat
        if self._missed >= UNRESPONSIVE or not self.pages.guarded():
            with suppress(TimeoutError), self.pages.starting_guard(2 * TICK):
                if self._missed >= UNRESPONSIVE and self.pages.heartbeat == heartbeat:
                    Process(*self.pages.guard).send(signal.SIGKILL)
                    self.pages.set_guard(0)
                if not self.pages.guarded() and self._starts < STARTS:
                    self._starts += 1
                    _start_guard(self.pages)
            self._missed = 0
        self._connect()

    def _connect(self) -> None:
        """Connect to the guard, which learns from the end of the connection that this process ends."""
        guard = self.pages.guard[0]
        if guard == self._connected_to:
            return
        self._connected_to = guard
        if self._connection is not None:
            self._connection.close()
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(START_SECONDS)
            connection.connect(self.pages.socket_path)
            self._connection = _closed_first(connection)
        except OSError:  # the guard still sees the end, but not the order of two ends
            connection.close()
            self._connection = None

    def _check_time(self, passed: float) -> None:
        page, timeout = self.page, self.pages.timeout
        before, self._seen = self._seen, (page.entered, self.pages.progress)
        self._waited = self._waited + passed if (page.is_ending or page.waits) and self._seen == before else 0.0
        if timeout and self._waited > timeout + AFTER_GUARD:
            try:
                self._end_others(timeout)
            finally:
                os.kill(os.getpid(), signal.SIGKILL)

    def _end_others(self, timeout: float) -> None:
        """Report, and end the other ranks of this host: the guard has not."""
        call_later(WRITE_SECONDS, os.kill, os.getpid(), signal.SIGKILL)
        with suppress(OSError):  # no descriptor is left
            for pid in children(os.getpid()):  # the launcher would wait for a guard that does not start, too
                if _GUARD in " ".join(arguments(pid)):
                    os.kill(pid, signal.SIGKILL)
        if self.pages.claim_report():
            status = self.pages.read(self.page.rank)
            doing = "" if status is None else f" {step_of(status)}{activity(status)}"
            frame = sys._current_frames().get(threading.main_thread().ident or 0)
            stack = "" if frame is None else "".join(traceback.format_stack(frame)[-FRAMES:])
            text = (
                f"rank {self.page.rank} has waited {timeout:g} s (init(timeout=)){doing}, and no guard process says "
                f"for whom; ending all ranks\nthe stack of rank {self.page.rank}, innermost call last:\n{stack}"
            )
            with suppress(OSError):  # it is closed
                os.write(2, text.encode(errors="replace"))
            time.sleep(WRITE_SECONDS / 10)  # for the launcher to forward it
        if not self.pages.shared:
            return
        in_child(self._release_launchers)  # which must do it when this rank is gone
        for rank in range(self.pages.ranks):  # the launcher would wait for a stopped rank
            pid, start = self.pages.owner(rank)
            if pid > 0 and rank != self.page.rank and lives(pid, start):
                Process(pid, start).send(signal.SIGKILL)
        time.sleep(WRITE_SECONDS / 10)  # Open MPI's launcher hangs at times if all its ranks end at one moment

    def _release_launchers(self) -> None:
        """Ends the launchers if they outlast the ranks, as the guard would."""
        os.setsid()
        os.closerange(0, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        Launchers(*launcher_of(self.pages.path)).release(set(), True, WRITE_SECONDS / 2)


def call_later(seconds: float, function: Callable[..., object], *arguments: object) -> bool:
    """Call a function in a thread after some seconds; return False if there can be no more threads.

    `threading` would wait until the thread runs, for ever if it dies of lack of memory before.
    """

    def call() -> None:
        time.sleep(seconds)
        function(*arguments)

    try:
        _thread.start_new_thread(call, ())
    except RuntimeError:
        return False
    return True


def _closed_first(connection: socket.socket) -> socket.socket:
    """The connection under a high number, which Linux closes first when a process ends.

    MPICH's launcher ends all other ranks when its connection to one closes: the guard must learn first which one.
    """
    high = min(1000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 1)  # few programs reach 1000
    with connection:
        return socket.socket(fileno=fcntl.fcntl(connection.fileno(), fcntl.F_DUPFD_CLOEXEC, high))


_GUARD = """
import sys, types
for name, path in (("sorix_dist", sys.argv[1]), ("sorix_dist.watchdog", sys.argv[1] + "/watchdog")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from sorix_dist.watchdog.guard import main
main(sys.argv[2])
"""
"""Runs the guard without the package's own imports: it needs no NumPy, and starts ten times faster."""


def _start_guard(pages: StatusPages) -> None:
    """Start the guard, in its own session and as an orphan: no os.wait() of the program may find it."""
    if os.fstat(pages.file)[1:3] != pages.identity:
        raise OSError("the program has closed the file of the status pages, and opened another one")
    root = Path(__file__).resolve().parent.parent
    # By a shell, because tracers (viztracer) run every Python that they see in `subprocess` under themselves.
    guard = [sys.executable, "-I", "-S", "-c", _GUARD, str(root), str(pages.path)]
    subprocess.run(
        ["/bin/sh", "-c", 'exec "$@"', "sh", *guard],
        stdin=pages.file,  # whose name may be gone
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        check=True,
        timeout=START_SECONDS,
    )
