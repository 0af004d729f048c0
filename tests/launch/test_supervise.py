"""Restarts: after which ends, how often, and what counts as the end of the script."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sorix_dist.launch import run as module
from sorix_dist.launch.command import Command
from sorix_dist.launch.run import run_on_hosts, supervise
from tests.support.jobs import LIMIT, ROOT, announced, job, survivors

BARE = "import os, pathlib, sys, time; attempt = int(os.environ['SORIX_DIST_ATTEMPT'])\n"
BEGIN = BARE + "import sorix_dist.comm\n"  # without which no script is known to come to its end
SAVE = "pathlib.Path(sys.argv[1], 'step').write_text(str(attempt))\n"


def newest_steps(folder: Path) -> dict[Path, int]:
    """For the scripts of this file, which write a number; that of real checkpoints is tested with them."""
    file = folder / "step"
    return {folder: int(file.read_text())} if file.exists() else {}


Supervised = Callable[..., tuple[int, list[str], int]]


@pytest.fixture
def supervised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Supervised:
    """Supervises a script; the exit code, what was said and how often it was started."""
    monkeypatch.setattr(module, "PAUSE", 0.02)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    folder = tmp_path / "saved"
    folder.mkdir()

    def work(script: str, max_restarts: int = 3, begin: str = BEGIN, **settings: float) -> tuple[int, list[str], int]:
        messages: list[str] = []
        attempts: list[int] = []

        def start(attempt: int, env: dict[str, str]) -> Command:
            attempts.append(attempt)
            return Command((sys.executable, "-c", begin + script, str(folder)), env)

        code = supervise(
            start, folder, max_restarts=max_restarts, newest_steps=newest_steps, say=messages.append, **settings
        )
        assert attempts == list(range(len(attempts)))
        assert not [path for path in folder.iterdir() if path.name.startswith(module.PRIVATE)]
        return code, messages, len(attempts)

    return work


def test_a_script_that_comes_to_its_end_is_started_once(supervised: Supervised) -> None:
    assert supervised("") == (0, [], 1)
    assert supervised("sys.exit(0)") == (0, [], 1)


def test_a_crash_is_followed_by_a_start_from_what_was_saved(supervised: Supervised) -> None:
    code, messages, starts = supervised(SAVE + "if attempt < 2: os.kill(os.getpid(), 9)")
    assert (code, starts) == (0, 3)
    assert messages == [f"the job ended with code 137; restart {number} of 3" for number in (1, 2)]


def test_it_is_started_no_oftener_than_was_allowed(supervised: Supervised) -> None:
    code, messages, starts = supervised(SAVE + "sys.exit(7)", 2, BARE)
    assert (code, starts) == (7, 3)
    assert messages[-1] == "the job ended with code 7; not started again after 2 restarts"
    assert supervised(SAVE + "sys.exit(7)", 0, BARE)[::2] == (7, 1)


def test_two_attempts_without_progress_are_the_last(supervised: Supervised) -> None:
    code, messages, starts = supervised("sys.exit(7)", 9, BARE)
    assert (code, starts) == (7, 2)
    assert "not started again: 2 attempts in a row saved no later step in " in messages[-1]
    code, _, starts = supervised("if attempt == 1: " + SAVE + "sys.exit(7)", 9, BARE)
    assert (code, starts) == (7, 4)  # attempts 0, 2 and 3 made none


@pytest.mark.parametrize("step", ["0", "-attempt", "5 - attempt"])
def test_a_step_that_is_not_later_is_no_progress(supervised: Supervised, step: str) -> None:
    save = f"pathlib.Path(sys.argv[1], 'step').write_text(str({step}))\nsys.exit(7)"
    assert supervised(save, 9, BARE)[::2] == (7, 3)  # the first of them was one


def test_a_run_that_begins_anew_makes_progress(supervised: Supervised) -> None:
    save = "pathlib.Path(sys.argv[1], 'step').write_text(str([9, 1, 2, 3][attempt]))\nsys.exit(7)"
    assert supervised(save, 3, BARE)[::2] == (7, 4)


@pytest.mark.parametrize(
    "end",
    [
        "os._exit(0)",  # looks well to every launcher
        "sys.excepthook = lambda *_: os._exit(0)\nraise ValueError",
    ],
)
def test_code_0_without_the_mark_is_no_success(supervised: Supervised, end: str) -> None:
    code, messages, starts = supervised(end, max_restarts=1)
    assert (code, starts) == (70, 2)
    assert messages[0].startswith("the job ended with code 0, but rank 0 did not reach the end of a script that")


def test_a_script_without_the_package_leaves_no_mark(supervised: Supervised) -> None:
    assert supervised("", 0, BARE)[::2] == (70, 1)


def test_children_of_rank_0_leave_no_mark(supervised: Supervised) -> None:
    child = "import subprocess; subprocess.run([sys.executable, '-c', 'import sorix_dist.comm'], check=True)\n"
    assert supervised(child + "os._exit(0)", 0)[::2] == (70, 1)


def test_other_ranks_leave_no_mark(supervised: Supervised, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setenv("PMI_SIZE", "2")
    assert supervised("", 0)[::2] == (70, 1)


def test_a_preempted_script_is_left_to_the_scheduler(supervised: Supervised) -> None:
    assert supervised("sys.exit(75)") == (75, [], 1)


def test_a_time_limit_counts_for_all_attempts(supervised: Supervised) -> None:
    began = time.monotonic()
    code, _, starts = supervised(SAVE + "sys.exit(3) if attempt < 2 else time.sleep(90)", 3, BARE, limit=3.0)
    assert (code, starts) == (124, 3)
    assert time.monotonic() - began < 45


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))", 75),  # SIGTERM comes as SIGUSR1: it can save
        ("signal.signal(signal.SIGUSR1, lambda *_: sys.exit(3))", 128 + signal.SIGTERM),
        ("", 128 + signal.SIGUSR1),
    ],
)
def test_a_job_that_was_asked_to_end_is_not_started_again(tmp_path: Path, script: str, code: int) -> None:
    begin = f"import os, signal, sys, time\n{script}\nos.write(1, b'%d\\n' % os.getpid())\ntime.sleep(60)"
    driver = (
        "import pathlib, sys\nfrom sorix_dist.launch.command import Command\n"
        "from sorix_dist.launch.run import supervise\n"
        "start = lambda attempt, env: Command((sys.executable, '-c', sys.argv[1]), env)\n"
        "sys.exit(supervise(start, pathlib.Path(sys.argv[2]), max_restarts=3, newest_steps=lambda _: {}, say=print))"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with job([sys.executable, "-c", driver, begin, str(tmp_path)], env=environ) as process:
        pids = announced(process, 1)
        process.terminate()
        assert process.wait(LIMIT) == code
        assert survivors(pids) == []


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("import sorix_dist.comm", 0),
        ("import os, sorix_dist.comm; os._exit(0)", 70),  # as if mpirun had killed it and returned 0
        ("import sorix_dist.comm; raise SystemExit(3)", 3),
        ("", 0),  # whether such a script comes to its end is not known
        ("import os; os.environ['SORIX_DIST_COMPLETION'] = '/nowhere/x'; import sorix_dist.comm; os._exit(0)", 0),
    ],
)
def test_on_several_hosts_0_is_not_trusted(monkeypatch: pytest.MonkeyPatch, script: str, code: int) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    messages: list[str] = []
    found = run_on_hosts(lambda env: Command((sys.executable, "-c", script), env), messages.append, 60.0)
    assert found == code
    assert [message.partition(", but")[2] for message in messages] == [
        " rank 0 did not reach the end of the script, as when a host is lost"
    ] * (code == 70)
