"""What starts the ranks of the other tests keeps its limit and leaves no process behind."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from tests.support.launching import needs_mpirun, run_command, run_ranks

ORPHAN = """
import os, pathlib, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
        time.sleep(60)
    os._exit(0)
os.wait()
while not pathlib.Path(sys.argv[1]).exists() or not pathlib.Path(sys.argv[1]).read_text():
    time.sleep(0.01)
time.sleep(float(sys.argv[2]))
"""

FROZEN = """
import os, pathlib, signal, sys, time
pathlib.Path(sys.argv[1], str(os.getpid())).touch()
while len(os.listdir(sys.argv[1])) < 2:
    time.sleep(0.01)
launcher = pathlib.Path(f"/proc/{os.getppid()}/comm").read_text().strip()
if launcher == "hydra_pmi_proxy":
    os.kill(os.getppid(), signal.SIGSTOP)  # MPICH's: it would have killed the ranks
time.sleep(60)
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_a_command_prints_and_returns() -> None:
    script = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    ended = run_command([sys.executable, "-c", script], env={"NEW": "1"})
    assert (ended.code, ended.out, ended.err) == (3, "out\n", "err\n")
    assert 0 < ended.seconds < 60


def test_the_limit_kills_an_orphan_in_another_session_that_holds_the_output(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(pytest.fail.Exception, match="was killed after 2 s"):
        run_command([sys.executable, "-c", ORPHAN, str(tmp_path / "pid"), "60"], limit=2)
    assert time.monotonic() - began < 20
    assert not is_alive(int((tmp_path / "pid").read_text()))


@needs_mpirun
def test_the_limit_kills_ranks_whose_launcher_is_frozen(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="was killed after 5 s"):
        run_ranks(2, "-c", FROZEN, str(tmp_path), limit=5)
    pids = [int(name) for name in os.listdir(tmp_path)]
    assert len(pids) == 2
    assert not any(is_alive(pid) for pid in pids)
