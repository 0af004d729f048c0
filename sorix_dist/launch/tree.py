"""A process and everything that it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

from sorix_dist.watchdog.process import parent


def descendants(pid: int) -> list[int]:
    """The living processes that `pid` started, directly or not, parents before children."""
    children: dict[int, list[int]] = {}
    for process, started_by in _parents().items():
        children.setdefault(started_by, []).append(process)
    found = list(children.get(pid, ()))
    for process in found:  # grows while it is walked
        found += children.get(process, ())
    return found


def kill_tree(pid: int) -> None:
    """Kills `pid` and its descendants at once; those that are gone already are no error.

    For a child of this process that was not waited for yet, so that its id cannot have gone to another one.
    """
    for process in [pid, *descendants(pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _parents() -> dict[int, int]:
    """The parent of every living process."""
    proc = Path("/proc")
    if not (proc / "self" / "stat").exists():
        listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)
        return {int(pid): int(ppid) for pid, ppid in (line.split() for line in listing.stdout.splitlines())}
    return {pid: parent(pid) for pid in (int(folder.name) for folder in proc.iterdir() if folder.name.isdecimal())}
