"""A process and everything that it started."""

from __future__ import annotations

import os
import sys

from sorix_dist.watchdog.process import descendants, kill_with_descendants
from tests.support.jobs import announced, job, survivors

NESTED = """
import os, subprocess, sys, time
depth = int(sys.argv[1])
print(os.getpid(), flush=True)
if depth:
    subprocess.Popen([sys.executable, "-c", sys.argv[2], str(depth - 1), sys.argv[2]], start_new_session=True)
time.sleep(60)
"""


def test_descendants_are_found_across_sessions_and_killed() -> None:
    with job([sys.executable, "-c", NESTED, "2", NESTED]) as process:
        pids = announced(process, 3)
        assert [process.pid, *descendants(process.pid)] == pids
        assert set(pids) <= set(descendants(os.getpid()))
        kill_with_descendants(process.pid)
        assert process.wait(10) == -9
        assert survivors(pids) == []


def test_a_process_without_children_has_no_descendants() -> None:
    with job([sys.executable, "-c", NESTED, "0"]) as process:
        assert announced(process, 1) == [process.pid]
        assert descendants(process.pid) == []
        assert process.poll() is None
