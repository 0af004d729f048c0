"""The processes that started the ranks of a host. Some would stay when the ranks have ended."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

from sorix_dist.watchdog.launcher import detect
from sorix_dist.watchdog.leftovers import remove_launcher_files
from sorix_dist.watchdog.process import (
    Process,
    command,
    descends_from,
    environ,
    outputs,
    parent,
    processes,
    seconds,
    start_time,
    state,
)

NAMES = ("mpirun", "mpiexec", "mpiexec.hydra", "hydra_pmi_proxy", "prterun", "prted", "orted", "orterun")
"""Programs that only start ranks, and end with them."""
TICK = 0.5
"""Seconds between two looks."""
GRACE = 3.0
"""Seconds between SIGTERM and SIGKILL."""


class Launchers:
    """The process `pid` that started the ranks of this host, the one that started that, and so on."""

    def __init__(self, pid: int, start: int) -> None:
        self.nearest = Process(pid, start)
        self.all = [self.nearest]
        while command(above := parent(self.all[-1].pid)) in NAMES:
            self.all.append(Process(above, start_time(above)))
        for launcher in self.all:
            launcher.close()  # ranks need the descriptors

    def release(self, pipes: set[str], after_fault: bool, patience: float) -> None:
        """The ranks, which wrote to `pipes`, are gone: end what keeps their launchers alive after `patience` seconds.

        After a fault, end the launchers too if they stay, as they do where they have lost another host.
        """
        passed = 0.0
        while left := [launcher for launcher in self.all if launcher.alive()]:
            holders = self._holders(pipes)
            stopped = [launcher for launcher in left if state(launcher.pid) == "T"]
            useless = left if after_fault and command(left[0].pid) in NAMES else []
            if not (holders or stopped or useless):
                break
            if passed >= patience:
                for pid in holders:
                    _write_to(
                        pid,
                        f"all ranks of this host have ended, but process {pid}, which one of them has started, "
                        "keeps their output open; ending it\n",
                    )
                    Process(pid, start_time(pid)).send(signal.SIGKILL)
                for launcher in useless:
                    launcher.send(signal.SIGTERM if passed < patience + GRACE else signal.SIGKILL)
                for launcher in stopped:
                    launcher.send(signal.SIGCONT)
            time.sleep(TICK)
            passed += TICK
        if not self.nearest.alive():
            remove_launcher_files(since=seconds(self.nearest.start) - 1)

    def _holders(self, pipes: set[str]) -> list[int]:
        """Processes that ranks started and that still have their pipes open, whose end the launcher waits for. A shell
        around a rank is not one: the launcher started it."""
        return [
            pid
            for pid in processes()
            if pipes & set(outputs(pid))
            and pid != os.getpid()
            and detect(environ(pid)) is not None
            and not descends_from(pid, self.nearest.pid)
        ]


def _write_to(pid: int, text: str) -> None:
    """Write to another process's standard error."""
    with suppress(OSError):
        file = os.open(f"/proc/{pid}/fd/2", os.O_WRONLY | os.O_NONBLOCK)
        os.write(file, text.encode())
        os.close(file)
