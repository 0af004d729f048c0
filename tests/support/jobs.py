"""Processes for the tests of launching: started, watched, and never left behind."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sorix_dist.watchdog import leftovers
from sorix_dist.watchdog.process import kill_with_descendants
from tests.support.launching import as_in_a_shell

ROOT = Path(__file__).parents[2]
SORIX_DIST = (sys.executable, "-m", "sorix_dist")
LIMIT = 60.0
"""Seconds after which a job is taken to hang."""

RANK = 'int(os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("PMI_RANK") or 0)'
"""An expression for the rank in a script that need not start MPI."""

SAY_SHARED = """
for line in open("/proc/self/maps"):
    if "/dev/shm/" in line:
        os.write(1, b"shared " + line.split()[-1].encode() + b"\\n")
"""
"""Statements by which a rank says which files of shared memory it uses."""


def shared(output: str) -> list[Path]:
    """The files of shared memory of which ranks have said that they use them, and which stay there: the last one
    goes with the guard of the ranks, a moment after them."""
    paths = {Path(line.rpartition("shared ")[2]) for line in output.splitlines() if "shared /dev/shm/" in line}
    deadline = time.monotonic() + 10
    while (left := [path for path in paths if path.exists()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


@contextlib.contextmanager
def job(argv: Sequence[str], **settings: Any) -> Iterator[subprocess.Popen[str]]:
    """A process in a session of its own, both outputs in one pipe; on leaving it and its descendants die."""
    since = leftovers.now()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | settings
    with subprocess.Popen(argv, text=True, start_new_session=True, preexec_fn=as_in_a_shell, **pipes) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                kill_with_descendants(process.pid)
    leftovers.remove_sessions(since)


def finished(argv: Sequence[str], **settings: Any) -> tuple[int, str]:
    """Exit code and output of a job that ends by itself."""
    with job(argv, **settings) as process:
        output, _ = process.communicate(timeout=LIMIT)
        return process.returncode, output


def announced(process: subprocess.Popen[str], count: int) -> list[int]:
    """The process ids that `count` ranks print when they are ready."""
    assert process.stdout is not None
    pids: list[int] = []
    while len(pids) < count:
        line = process.stdout.readline()
        assert line, f"the job ended when {len(pids)} of {count} ranks were ready"
        pids += [int(word) for word in line.split() if word.isdecimal()]
    return pids


def alive(pid: int) -> bool:
    """Whether a process exists and is not just waiting to be collected."""
    answer = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return answer.stdout.strip()[:1] not in ("", "Z")


def survivors(pids: Sequence[int], seconds: float = 10.0) -> list[int]:
    """Those of the processes that still live after at most so many seconds."""
    end = time.monotonic() + seconds
    while (living := [pid for pid in pids if alive(pid)]) and time.monotonic() < end:
        time.sleep(0.05)
    return living
