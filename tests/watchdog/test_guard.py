"""The guard itself is hit, or does without what it is used to: no fault goes unnoticed for that."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.support.launching import Ended, needs_mpirun, run_ranks

pytestmark = needs_mpirun

GUARD_WITHOUT = """
import os, subprocess
run = subprocess.run

def run_changed(argv, **options):
    if "watchdog.guard" in argv[-3]:
        argv[-3] = {change!r} + argv[-3]
    return run(argv, **options)

subprocess.run = run_changed
"""
"""Makes the guard run some lines first."""

BEGIN = """
import os, signal, sys, time
import numpy as np
import sorix_dist as sx
from sorix_dist.watchdog import monitor, watch
sx.init(timeout=3)
rank, a = sx.rank(), np.ones(4)
sx.all_reduce(a)
guard = watch.page().pages.guard[0]
sx.barrier()
"""

FAULTS = {
    "sys.exit(0)": "rank 1 .* has ended .* while rank 0 waits",
    "os.kill(os.getpid(), signal.SIGSTOP)": "rank 1 is frozen",
    "os.kill(os.getpid(), signal.SIGKILL)": r"rank 1 \(pid \d+\) (was killed by SIGKILL|died without a word)",
    "time.sleep(60)": "rank 1 has not arrived",
}


def run(folder: Path, script: str, ranks: int = 2) -> Ended:
    file = folder / "train.py"
    file.write_text(script)
    ended = run_ranks(ranks, str(file), limit=20)
    assert not ended.left, ended.err
    return ended


def check(ended: Ended, says: str) -> None:
    assert ended.code != 0, ended.err
    assert re.search(says, ended.err), ended.err
    assert ended.err.count("ending all ranks") == 1, ended.err


@pytest.mark.parametrize("fault", FAULTS)
def test_without_descriptors_of_processes(fault: str, tmp_path: Path) -> None:
    """Some builds of Python, and Linux before 5.3, have none."""
    change = "import os, signal\ndel os.pidfd_open, signal.pidfd_send_signal\n"
    script = GUARD_WITHOUT.format(change=change) + BEGIN + f"if rank == 1: {fault}\nsx.all_reduce(a)"
    check(run(tmp_path, script), FAULTS[fault])


@pytest.mark.parametrize("name", ["os.pidfd_open", "signal.pidfd_send_signal"])
def test_where_descriptors_of_processes_are_refused(name: str, tmp_path: Path) -> None:
    """As by the system call filter of a container."""
    change = f"import os, signal\ndef refused(*_): raise PermissionError(1, 'not permitted')\n{name} = refused\n"
    fault = "os.kill(os.getpid(), signal.SIGSTOP)"
    check(
        run(tmp_path, f"{GUARD_WITHOUT.format(change=change)}{BEGIN}if rank == 1: {fault}\nsx.all_reduce(a)"),
        FAULTS[fault],
    )


@pytest.mark.parametrize("how", ["os._exit(0)", "raise SystemExit(3)"])
def test_a_guard_that_does_not_start(how: str, tmp_path: Path) -> None:
    script = GUARD_WITHOUT.format(change=f"import os\n{how}\n") + BEGIN + "if rank == 1: sys.exit(0)\nsx.all_reduce(a)"
    check(run(tmp_path, script), "rank 0 has waited 3 s .* in all_reduce.*no guard process")


def test_status_pages_whose_files_are_removed(tmp_path: Path) -> None:
    """As systemd does with a user's files in /dev/shm when the last session ends. Those of other jobs stay here."""
    removed = (
        "if rank == 1:\n    path = watch.page().pages.path\n"
        "    for file in path.parent.glob(f'{path.name}*'): file.unlink()\n"
        "    os.kill(guard, signal.SIGKILL)\n    sys.exit(0)\n"
    )
    script = f"{BEGIN}{removed}sx.all_reduce(a)"
    check(run(tmp_path, script), "rank 1 .* has ended .* while rank 0 waits")


def test_a_program_that_closes_all_files_and_reuses_their_numbers(tmp_path: Path) -> None:
    """No guard may take another file for the status pages, and write to it."""
    closed = (
        "pages = watch.page().pages.file\nos.close(pages)\n"
        f"file = os.open('{tmp_path}/own-' + str(rank), os.O_RDWR | os.O_CREAT)\nassert file == pages\n"
        "os.write(file, bytes(40000))\nsx.barrier()\nif rank == 1: os.kill(guard, signal.SIGKILL); time.sleep(60)\n"
    )
    check(run(tmp_path, f"{BEGIN}{closed}sx.all_reduce(a)"), "rank 0 has waited 3 s .* in all_reduce.*no guard process")
    assert (tmp_path / "own-0").read_bytes() == (tmp_path / "own-1").read_bytes() == bytes(40000)


def test_with_few_descriptors(tmp_path: Path) -> None:
    change = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (9, 9))\n"
    script = GUARD_WITHOUT.format(change=change) + BEGIN + "if rank == 1: sys.exit(0)\nsx.all_reduce(a)"
    check(run(tmp_path, script, ranks=4), "rank 1 .* has ended .* while rank . waits")


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
@pytest.mark.parametrize("fault", list(FAULTS)[:2])
def test_a_guard_that_is_gone_or_stopped_is_replaced(how: str, fault: str, tmp_path: Path) -> None:
    script = BEGIN + f"if rank == 1:\n    os.kill(guard, signal.{how})\n    {fault}\nsx.all_reduce(a)"
    check(run(tmp_path, script), FAULTS[fault])


def test_a_healthy_program_gets_another_guard_and_ends_well(tmp_path: Path) -> None:
    script = BEGIN + (
        "if rank == 1: os.kill(guard, signal.SIGKILL)\n"
        "while watch.page().pages.guard[0] == guard or not watch.page().pages.guarded(): time.sleep(0.05)\n"
        "sx.all_reduce(a)"
    )
    ended = run(tmp_path, script)
    assert (ended.code, ended.err) == (0, "")


def test_a_stopped_guard_keeps_no_launcher(tmp_path: Path) -> None:
    """It has the ranks' standard error open, whose end the launcher waits for."""
    ended = run(tmp_path, BEGIN + "if rank == 1: os.kill(guard, signal.SIGSTOP)\nsx.barrier()")
    assert (ended.code, ended.err) == (0, "")


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "raise ValueError('a bad row')"])
def test_a_stopped_guard_whose_ranks_are_all_killed_keeps_no_launcher(end: str, tmp_path: Path) -> None:
    """No rank is left that could wake it."""
    stop = "sx.barrier()\nif rank == 1: os.kill(guard, signal.SIGSTOP)\ntime.sleep(0.3)\n"
    assert run(tmp_path, BEGIN + stop + end).code != 0


@pytest.mark.skipif(not os.environ.get("SORIX_DIST_LONG"), reason="one of the long tables: make faults")
def test_a_stopped_guard_is_replaced_while_all_ranks_wait_for_a_stopped_launcher_in_the_end_of_mpi(
    tmp_path: Path,
) -> None:
    stop = "if rank == 1:\n    for pid in (guard, os.getppid()): os.kill(pid, signal.SIGSTOP)"
    check(run(tmp_path, BEGIN + stop), "the script of rank . .* ended 3 s ago .* its process stays.* is stopped")


@pytest.mark.parametrize("fault", ["sys.exit(0)", "time.sleep(60)", "os.kill(os.getpid(), signal.SIGSTOP)"])
def test_where_there_can_be_no_guard_a_rank_ends_itself_at_the_timeout(fault: str, tmp_path: Path) -> None:
    script = BEGIN + (
        f"monitor.STARTS = 0\nif rank == 1:\n    os.kill(guard, signal.SIGKILL)\n    {fault}\nsx.all_reduce(a)"
    )
    ended = run(tmp_path, script)
    check(ended, r"rank 0 has waited 3 s \(init\(timeout=\)\) in all_reduce.* at .*train.py:15")
    assert "no guard process" in ended.err
    assert 'train.py", line 15' in ended.err


def test_a_guard_that_is_killed_while_it_reports_has_the_ranks_ended(tmp_path: Path) -> None:
    """It has stopped them by then."""
    change = "import os\nwrite = os.write\nos.write = lambda *_: os.kill(os.getpid(), 9)\n"
    script = GUARD_WITHOUT.format(change=change) + BEGIN + "if rank == 1: sys.exit(0)\nsx.all_reduce(a)"
    assert run(tmp_path, script).code != 0


def test_a_message_that_nobody_reads_keeps_no_rank(tmp_path: Path) -> None:
    blocked = "lambda file, text: time.sleep(60 * (file == 2)) or write(file, text)"
    change = f"import os, time\nwrite = os.write\nos.write = {blocked}\n"
    script = GUARD_WITHOUT.format(change=change) + BEGIN + "if rank == 1: sys.exit(0)\nsx.all_reduce(a)"
    assert run(tmp_path, script).code != 0


def test_a_tracer_that_runs_every_python_under_itself_gets_no_guard(tmp_path: Path) -> None:
    """As viztracer does, whose module the guard, without site-packages, would not find."""
    tracer = """
import os, subprocess
start = subprocess.Popen.__init__

def traced(self, argv, *args, **options):
    if "python" in os.path.basename(argv[0]):
        argv = [argv[0], "-m", "no_such_tracer", *argv[1:]]
    start(self, argv, *args, **options)

subprocess.Popen.__init__ = traced
"""
    fault = "os.kill(os.getpid(), signal.SIGKILL)"
    check(run(tmp_path, f"{tracer}{BEGIN}if rank == 1: {fault}\nsx.all_reduce(a)"), FAULTS[fault])
