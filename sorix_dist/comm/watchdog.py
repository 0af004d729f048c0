"""A rank's own watch of its guard: it starts another one when the guard is gone, and ends late ranks without one.

It is a thread: a rank that waits inside MPI has let go of Python's lock, but for the start of MPI, which
`faulthandler` ends in time.
"""

from __future__ import annotations

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
from pathlib import Path
from typing import TYPE_CHECKING

from sorix_dist.comm.process import Process, lives
from sorix_dist.comm.table import Table
from sorix_dist.comm.verdict import activity, step_of

if TYPE_CHECKING:
    from sorix_dist.comm.watch import Row

TICK = 0.5
"""Seconds between two looks."""
DEAF = 10
"""Looks in a row that find the guard's heartbeat where it was: it is stopped, or stuck."""
STARTS = 20
"""Guards that a rank starts at most: what ends each of them would end the next one too."""
AFTER_GUARD = 5.0
"""Seconds after the time-out in which the guard can say more than the rank itself."""
FRAMES = 12
"""Frames of the stack that a report shows."""
WRITTEN = 2.0
"""Seconds that a report may take; the write blocks if nobody reads it."""
CONNECTED = 5.0
"""Seconds that a connection to the guard may take."""
HIGH = 1000
"""A file descriptor's number that hardly any program comes to."""


class Watchdog:
    """Looks after the guard of the table of `row`, and after `row`."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.table = row.table
        self._starts = 0
        self._connected_to = 0
        self._line: socket.socket | None = None
        self._beat, self._deaf = 0, 0
        self._entered, self._waited = 0, 0.0
        self._looked = time.monotonic()

    def start(self) -> None:
        """Look from now on."""
        threading.Thread(target=self._run, name="sorix_dist watchdog", daemon=True).start()

    def _run(self) -> None:
        while os.getpid() == self.row.pid:
            time.sleep(TICK)
            now = time.monotonic()
            passed, self._looked = min(now - self._looked, 2 * TICK), now  # it was stopped itself, as by Ctrl-Z
            if self.table.shared:
                try:
                    self.see_to_the_guard()
                except Exception:  # noqa: BLE001 - without a guard, the rank still ends itself in time
                    self._starts += 1
            self._see_to_the_time(passed)

    def see_to_the_guard(self) -> None:
        """Start a guard if there is none, or only one that does nothing, and be connected to it; OSError or
        subprocess.SubprocessError if it can't be started."""
        beat = self.table.heartbeat
        self._deaf = self._deaf + 1 if beat == self._beat else 0
        self._beat = beat
        if self._deaf >= DEAF or not self.table.guarded():
            with self.table.locked():
                if self._deaf >= DEAF and self.table.heartbeat == beat:
                    Process(*self.table.guard).send(signal.SIGKILL)
                    self.table.set_guard(0)
                if not self.table.guarded() and self._starts < STARTS:
                    self._starts += 1
                    _start_guard(self.table)
            self._deaf = 0
        self._connect()

    def _connect(self) -> None:
        """Be connected to the guard, which hears by that when this process ends."""
        guard = self.table.guard[0]
        if guard == self._connected_to:
            return
        self._connected_to = guard
        if self._line is not None:
            self._line.close()
        line = socket.socket(socket.AF_UNIX)
        try:
            line.settimeout(CONNECTED)
            line.connect(self.table.line)
            self._line = _closed_first(line)
        except OSError:  # the guard learns of an end all the same, but not of the order of two
            line.close()
            self._line = None

    def _see_to_the_time(self, passed: float) -> None:
        row, timeout = self.row, self.table.timeout
        same = (row.leaves or row.waits) and row.entered == self._entered
        self._entered, self._waited = row.entered, self._waited + passed if same else 0.0
        if timeout and self._waited > timeout + AFTER_GUARD:
            self._end(timeout)

    def _end(self, timeout: float) -> None:
        """The guard has not ended this rank in time."""
        killer = threading.Timer(WRITTEN, os.kill, (os.getpid(), signal.SIGKILL))
        killer.daemon = True
        killer.start()
        if self.table.say_once():
            seen = self.table.see(self.row.rank)
            doing = "" if seen is None else f" {step_of(seen)}{activity(seen)}"
            frame = sys._current_frames().get(threading.main_thread().ident or 0)
            stack = "" if frame is None else "".join(traceback.format_stack(frame)[-FRAMES:])
            text = (
                f"rank {self.row.rank} has waited {timeout:g} s (init(timeout=)){doing}, and no guard process says for "
                f"whom; ending all ranks\nthe stack of rank {self.row.rank}, innermost call last:\n{stack}"
            )
            os.write(2, text.encode(errors="replace"))
            time.sleep(WRITTEN / 10)  # for the launcher to pass it on
        for rank in range(self.table.ranks if self.table.shared else 0):  # a stopped one would keep the launcher
            pid, start = self.table.owner(rank)
            if pid > 0 and rank != self.row.rank and lives(pid, start):
                Process(pid, start).send(signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


def _closed_first(line: socket.socket) -> socket.socket:
    """The connection `line` under a high number, which Linux closes first when a process ends.

    MPICH's launcher ends all other ranks when the connection of one to it closes: the guard is to hear first who.
    """
    high = min(HIGH, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 1)
    with line:
        return socket.socket(fileno=fcntl.fcntl(line.fileno(), fcntl.F_DUPFD_CLOEXEC, high))


_GUARD = """
import sys, types
for name, path in (("sorix_dist", sys.argv[1]), ("sorix_dist.comm", sys.argv[1] + "/comm")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from sorix_dist.comm.guard import main
main(sys.argv[2])
"""
"""Runs the guard without what the package imports: it needs neither NumPy nor a tenth of the time."""


def _start_guard(table: Table) -> None:
    """Start the guard, in a session of its own, as nobody's child: no user's os.wait() may find it."""
    root = Path(__file__).resolve().parent.parent
    subprocess.run(
        [sys.executable, "-I", "-S", "-c", _GUARD, str(root), str(table.path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        check=True,
        timeout=30,
    )
