"""Ctrl-C ends all ranks cleanly, once: a line of ours at most, no traceback, no process that stays."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.support.launching import MPIRUN, needs_mpirun, run_interrupted

LONG = bool(os.environ.get("SORIX_DIST_LONG"))
RANKS = 4

BEGIN = """
import os, sys, time
import numpy as np
import sorix_dist as sx
sx.init(timeout=30)
a = np.ones(4)
sx.barrier()
if sx.rank() == 0: os.write(1, b"ready\\n")
"""

SCRIPTS = {
    "steps": BEGIN + "while True:\n    sx.all_reduce(a)\n    a /= sx.size()\n    time.sleep(0.001)",
    "ranks that wait for one": BEGIN + "if sx.rank() == min(2, sx.size() - 1): time.sleep(60)\nsx.all_reduce(a)",
    "user code": BEGIN + "time.sleep(60)",
    "a checkpoint and a data loader": BEGIN
    + """
from sorix_dist.utils.data import DataLoader

class Rows:
    def __len__(self):
        return 10**6

    def __getitem__(self, index):
        time.sleep(0.001)
        return index

checkpointer = sx.Checkpointer(os.path.dirname(__file__), async_save=True)
for step, x in enumerate(DataLoader(Rows(), batch_size=8, num_workers=2)):
    sx.all_reduce(a)
    checkpointer.save(step, array=1.0)
""",
    "before MPI starts": "import os, time, sorix_dist\nos.write(1, b'ready\\n')\ntime.sleep(60)",
}

STARTS = {
    "mpirun": [str(MPIRUN), "-n", str(RANKS), sys.executable],
    "sorix-dist run": [sys.executable, "-m", "sorix_dist", "run", "-n", str(RANKS)],
    "one process": [sys.executable],
}

OURS = re.compile(r"^rank \d of 4 \(host \S+, pid \d+\) was interrupted; ending all ranks$", re.MULTILINE)


CASES = [
    pytest.param(name, start, everybody, id=f"{name}, {start}{', at a terminal' * everybody}")
    for name in SCRIPTS
    for start in STARTS
    for everybody in (True, False)
    if LONG or name == "steps" or (start == "mpirun" and everybody)
]


@needs_mpirun
@pytest.mark.parametrize(("name", "start", "everybody"), CASES)
def test_an_interrupt(name: str, start: str, everybody: bool, tmp_path: Path) -> None:
    """`everybody`: the terminal interrupts launcher and ranks; else the command that was started is, alone."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPTS[name])
    ended = run_interrupted([*STARTS[start], str(script)], "ready", everybody=everybody)
    assert not ended.left
    assert ended.seconds < 5, ended
    if start == "one process":  # as Python does it: its traceback, and the end by that signal
        assert ended.code == -signal.SIGINT
        assert ended.out.count("Traceback (most recent call last)") == 1, ended.out
        return
    assert ended.code == 130 if start == "sorix-dist run" else ended.code > 0
    assert "Traceback" not in ended.out, ended.out
    assert "Error" not in ended.out, ended.out
    # Open MPI ends the ranks itself, without a word.
    assert len(OURS.findall(ended.out)) == ended.out.count("ending all ranks") <= 1, ended.out
