"""One rank's uncaught exception is the end of all, under plain mpirun: a table of scripts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.launching import needs_mpirun, run_command, run_ranks

BEGIN = """
import os, sys, time
from sorix_dist.comm import current
from sorix_dist.watchdog.launcher import detect
import numpy as np
rank = detect(os.environ).rank
"""

SCRIPTS = {
    "one rank, the others wait in an all-reduce": """
comm = current()
comm.barrier()
if rank == 1:
    raise ValueError("a bad row")
comm.all_reduce(np.ones(4))
""",
    "the last rank, the others compute": """
comm = current()
comm.barrier()
if rank == 3:
    raise ValueError("a bad row")
time.sleep(30)
""",
    "one rank, the others wait for memory": """
comm = current()
if rank == 2:
    raise ValueError("a bad row")
comm.window(1000)
""",
    "one rank in a group": """
comm = current()
half = comm.split(rank % 2)
if rank == 2:
    raise ValueError("a bad row")
half.barrier()
comm.barrier()
""",
    "all ranks at once": """
comm = current()
comm.barrier()
raise ValueError("a bad row")
""",
    "all ranks, before any communication": """
raise ValueError("a bad row")
""",
    "one rank before any communication, the others wait for it": """
if rank == 1:
    raise ValueError("a bad row")
current().barrier()
""",
    "one rank late before any communication, the others wait for it": """
if rank == 1:
    time.sleep(1)
    raise ValueError("a bad row")
current().barrier()
""",
    "one rank before any communication, the others compute": """
if rank == 0:
    raise ValueError("a bad row")
time.sleep(30)
""",
    "one rank that uses MPI itself": """
from mpi4py import MPI
if rank == 1:
    raise ValueError("a bad row")
MPI.COMM_WORLD.Barrier()
""",
    "one rank in the backward of a wrapped model": """
import sorix_dist as sx
from sorix_dist.core.op import op

@op()
def breaks(x):
    def rule(g, out):
        raise ValueError("a bad row")
    return x.copy(), (rule,)

model = sx.DistributedDataParallel(sx.nn.Linear(4, 3))
criterion = sx.nn.CrossEntropyLoss()
for step in range(3):
    scores = model(sx.tensor(np.ones((6, 4), "f4")))
    if rank == 1 and step == 1:
        scores = breaks(scores)
    criterion(scores, np.zeros(6, "i8")).backward()
""",
    "with output that was not flushed": """
comm = current()
sys.stdout.write("unfinished line")
if rank == 1:
    raise ValueError("a bad row")
comm.barrier()
""",
}


@needs_mpirun
@pytest.mark.parametrize("name", SCRIPTS)
def test_all_ranks_end(name: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(BEGIN + SCRIPTS[name])
    ended = run_ranks(4, str(script), limit=40)
    assert ended.code != 0
    assert ended.seconds < 10  # half a second on an idle machine
    assert ended.err.count("Traceback (most recent call last)") == 1, ended.err
    assert ended.err.count("ValueError: a bad row") == 1, ended.err
    assert ended.err.count("; ending all ranks") == 1, ended.err
    failing = [rank for rank in range(4) if f"rank {rank} of 4 (host " in ended.err]
    assert len(failing) == 1, ended.err
    if f"rank == {failing[0]}" not in SCRIPTS[name]:
        assert name.startswith("all ranks")


@needs_mpirun
def test_a_traceback_is_told_whoever_has_taken_the_place_for_it(tmp_path: Path) -> None:
    """The file for the last words is there already, and no other rank says anything."""
    script = tmp_path / "train.py"
    script.write_text(
        BEGIN + "from sorix_dist.watchdog import watch\ncomm = current()\ncomm.barrier()\nif rank == 1:\n"
        "    watch.page().pages.last_words.touch()\n    raise ValueError('a bad row')\ncomm.barrier()"
    )
    ended = run_ranks(2, str(script), limit=40)
    assert ended.code != 0
    assert ended.seconds < 20
    assert ended.err.count("ValueError: a bad row") == 1, ended.err
    assert "rank 1 of 2 (host " in ended.err


@needs_mpirun
def test_an_interrupt_needs_no_traceback(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(BEGIN + "comm = current()\nif rank == 1: raise KeyboardInterrupt\ncomm.barrier()")
    ended = run_ranks(4, str(script), limit=40)
    assert ended.code != 0
    assert ended.seconds < 15
    assert "Traceback" not in ended.err
    assert ended.err.count("was interrupted; ending all ranks") == 1


@needs_mpirun
def test_a_users_hook_prints_the_traceback(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        BEGIN
        + "sys.excepthook = lambda kind, error, trace: print('MY HOOK', error, file=sys.stderr, flush=True)\n"
        + "comm = current()\nif rank == 1: raise ValueError('a bad row')\ncomm.barrier()"
    )
    ended = run_ranks(2, str(script), limit=40)
    assert ended.code != 0
    assert ended.err.count("MY HOOK a bad row") == 1
    assert "rank 1 of 2 (host " in ended.err


@needs_mpirun
def test_other_threads_and_caught_exceptions_end_nobody(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        BEGIN
        + """
import threading
comm = current()
def fail():
    raise ValueError("in a thread")
thread = threading.Thread(target=fail)
thread.start()
thread.join()
try:
    fail()
except ValueError:
    comm.barrier()
sys.stdout.write(f"rank {comm.rank} is done\\n")
"""
    )
    ended = run_ranks(2, str(script), limit=40)
    assert ended.code == 0, ended.err
    assert sorted(ended.out.splitlines()) == ["rank 0 is done", "rank 1 is done"]
    assert "ending all ranks" not in ended.err


def test_one_process_keeps_pythons_hook() -> None:
    script = "import sys\nfrom sorix_dist.comm import *\ncurrent()\nprint(sys.excepthook.__module__)\n1 / 0"
    ended = run_command([sys.executable, "-c", script])
    assert (ended.code, ended.out) == (1, "sys\n")
    assert "ZeroDivisionError" in ended.err
    assert "ending all ranks" not in ended.err


BROKEN = {
    "no streams": "sys.stdout = sys.stderr = None",
    "a stream without flush": "sys.stdout = sys.stderr = type('Stream', (), {'write': lambda self, text: None})()",
    "a stream that raises": "sys.stdout = type('Stream', (), {'flush': lambda self: 1 / 0})()",
    "closed streams": "sys.stdout.close()",
    "closed descriptors": "os.close(0)\nos.close(1)",
    "a hook that raises": "sys.excepthook._previous = lambda *_: 1 / 0",
}


@needs_mpirun
@pytest.mark.parametrize("name", BROKEN)
def test_the_report_does_without_what_the_program_has_broken(name: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    breaks = BROKEN[name].replace("\n", "\n    ")
    script.write_text(
        BEGIN + f"comm = current()\nif rank == 1:\n    {breaks}\n    raise ValueError('a bad row')\ncomm.barrier()"
    )
    ended = run_ranks(2, str(script), limit=20)
    assert ended.code != 0
    assert "rank 1 of 2 (host " in ended.err or name == "a stream without flush", ended.err
    assert ended.err.count("ending all ranks") == 1 or name == "a stream without flush", ended.err
    assert not ended.left


def test_without_shared_memory_the_import_warns_and_goes_on(tmp_path: Path) -> None:
    """The first write to memory that is not there would be a SIGBUS."""
    full = "mount -t tmpfs -o size=4k tmpfs /dev/shm && dd if=/dev/zero of=/dev/shm/x bs=1k 2>/dev/null; "
    private = ["unshare", "--mount", "sh", "-c"]
    if run_command([*private, "mount -t tmpfs tmpfs /dev/shm"]).code:
        pytest.skip("needs root, to fill a /dev/shm of its own")
    environ = {"PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALRANKID": "2", "MPI_LOCALNRANKS": "4"}
    ended = run_command([*private, f"{full}{sys.executable} -c 'import sorix_dist'"], env=environ)
    assert ended.code == 0
    assert "RuntimeWarning: ranks that die will be noticed late" in ended.err
    assert "has 0 KB left, and 8 KB are needed for each rank" in ended.err
