"""Other programs: run one under a time limit, and kill a process with all that it started."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sorix_dist.launch import LaunchError
from sorix_dist.watchdog.process import parent

PYTHON = (sys.executable, "-P")
"""This interpreter, for a program in its arguments; it does not import a json.py of the current folder."""


@dataclass(frozen=True)
class Answer:
    """The output of a command, and its exit code: None if it was killed at the time limit."""

    code: int | None
    out: str
    err: str

    @property
    def why(self) -> str:
        """Why it failed, in a line."""
        if self.code is None:
            return "it hangs"
        lines = [line.strip() for line in (self.err + "\n" + self.out).splitlines() if line.strip(" =-*")]
        raised = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Mismatch): ", line)]
        return (raised or lines[::-1] or [f"code {self.code}"])[0]


def ask(argv: Sequence[str], environ: Mapping[str, str], limit: float) -> Answer:
    """Runs a command; kills it and its descendants after `limit` seconds. LaunchError if it can't be started."""
    try:
        process = subprocess.Popen(
            argv,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise LaunchError(f"{argv[0]} could not be started: {error.strerror}") from error
    with process:
        try:
            out, err = process.communicate(timeout=limit)
            return Answer(process.returncode, out, err)
        except BaseException as error:
            kill_with_descendants(process.pid)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            out, err = process.communicate()
            return Answer(None, out, err)


def descendants(pid: int) -> list[int]:
    """The living processes that `pid` started, directly or not, parents before children."""
    children: dict[int, list[int]] = {}
    for process, started_by in _parents().items():
        children.setdefault(started_by, []).append(process)
    found = list(children.get(pid, ()))
    for process in found:  # grows meanwhile
        found += children.get(process, ())
    return found


def kill_with_descendants(pid: int) -> None:
    """Kills `pid` and its descendants at once; it is no error if some have ended.

    `pid` must be a child that this process has not waited for yet: until then its number can't be reused.
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
