"""The processes of one command, for tests and for benchmarks, which run without pytest."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

MPIRUN = Path(sys.executable).parent / "mpirun"
"""The mpirun of the environment that runs the tests."""

ROOT = Path(__file__).parents[2]

MARK = "SORIX_DIST_TEST_COMMAND"
"""The variable by which the processes of one command are known."""


def kill_marked(mark: str) -> None:
    """Kill every process with this mark until none is left: one may start another meanwhile."""
    deadline = time.monotonic() + 10
    while found := marked(mark):
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {found} do not die")
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def marked(mark: str) -> list[int]:
    """The processes with this mark."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended meanwhile, or is another user's
            if wanted in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
    return found
