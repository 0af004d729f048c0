"""A command in the foreground: its streams, its signals, its exit code. No MPI here."""

from __future__ import annotations

import os
import pty
import signal
import sys
import time

import pytest

from sorix_dist.launch import LaunchError
from sorix_dist.launch.command import Command
from sorix_dist.launch.run import Ended, run
from tests.support.jobs import LIMIT, announced, finished, job, survivors

RUNNER = """
import sys
from sorix_dist.launch.command import Command
from sorix_dist.launch.run import run
sys.exit(run(Command((sys.executable, "-c", sys.argv[2]), {"ADDED": "a b"}), patience=float(sys.argv[1])).code)
"""

SLEEPS = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"

DEAF = f"""
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
{SLEEPS}
"""


def runner(script: str, patience: float = LIMIT) -> list[str]:
    """The argv of a process that runs this script as a command in its foreground."""
    return [sys.executable, "-c", RUNNER, str(patience), script]


def after(first: str, argv: list[str]) -> list[str]:
    """The argv of a process that executes a line of Python and then becomes `argv`."""
    return [sys.executable, "-c", f"{first}; import os; os.execv({argv[0]!r}, {argv!r})"]


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_the_exit_code_is_the_commands(code: int) -> None:
    assert run(Command((sys.executable, "-c", f"raise SystemExit({code})"))) == Ended(code)


def test_death_by_a_signal_is_128_more_as_in_a_shell() -> None:
    assert run(Command((sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"))) == Ended(137)


def test_a_command_that_cannot_start_is_an_error_that_names_it_and_changes_nothing() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(LaunchError, match="/nowhere/mpirun could not be started: No such file"):
        run(Command(("/nowhere/mpirun",)))
    assert signal.getsignal(signal.SIGINT) is before


def test_streams_pass_through_and_variables_are_added() -> None:
    script = "import os, sys; print(sys.stdin.read() + os.environ['ADDED']); print('e', file=sys.stderr)"
    with job(runner(script), stdin=-1, stderr=-1) as process:
        assert process.communicate("typed ", timeout=LIMIT) == ("typed a b\n", "e\n")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_command_and_shows_in_the_exit_code(name: str) -> None:
    number = signal.Signals[name]
    with job(runner(SLEEPS)) as process:
        pids = announced(process, 1)
        process.send_signal(number)
        # sent on as SIGTERM, a hang-up ends the command by that
        assert process.wait(LIMIT) == 128 + (signal.SIGTERM if name == "SIGHUP" else number)
        assert survivors(pids) == []


def test_a_command_that_ends_well_when_asked_to_has_succeeded() -> None:
    script = f"import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); {SLEEPS}"
    with job(runner(script)) as process:
        announced(process, 1)
        process.terminate()
        assert process.wait(LIMIT) == 0


def test_user_signals_reach_the_command() -> None:
    script = f"import signal, sys; signal.signal(signal.SIGUSR1, lambda *_: sys.exit(5)); {SLEEPS}"
    with job(runner(script)) as process:
        announced(process, 1)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(LIMIT) == 5


def test_a_deaf_command_is_killed_when_patience_ends() -> None:
    with job(runner(DEAF, patience=1.0)) as process:
        pids = announced(process, 1)
        started = time.monotonic()
        process.terminate()
        assert process.wait(LIMIT) == 137
        assert time.monotonic() - started >= 1.0
        assert survivors(pids) == []


def test_asked_a_second_time_a_deaf_command_is_killed_at_once() -> None:
    with job(runner(DEAF, patience=LIMIT)) as process:
        pids = announced(process, 1)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT / 2) == 137
        assert survivors(pids) == []


def test_a_signal_that_comes_twice_at_once_asks_once() -> None:
    """As from `timeout`; the command would be killed before it has saved its work."""
    with job(runner(DEAF, patience=1.0)) as process:
        announced(process, 1)
        started = time.monotonic()
        for _ in range(3):
            process.terminate()
            time.sleep(0.05)
        assert process.wait(LIMIT) == 137
        assert time.monotonic() - started >= 1.0


def test_what_was_ignored_stays_ignored() -> None:
    with job(after("import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)", runner(SLEEPS))) as process:
        announced(process, 1)
        process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert process.poll() is None
        process.terminate()
        assert process.wait(LIMIT) == 143


def test_a_ctrl_c_at_a_terminal_arrives_once() -> None:
    """The terminal tells the whole foreground group; passing it on as well would tell the command twice."""
    counts = """
import os, signal, time
count = 0
def note(*_):
    global count
    count += 1
signal.signal(signal.SIGINT, note)
print("ready", flush=True)
while not count:
    time.sleep(0.05)
time.sleep(1)
print("counted", count, "in all", flush=True)
"""
    ours, theirs = pty.openpty()
    # opening a terminal makes it the controlling one of a session that has none
    attach = f"import os; os.open({os.ttyname(theirs)!r}, os.O_RDWR)"
    with job(after(attach, runner(counts)), stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        output = ""
        while "ready" not in output:
            output += os.read(ours, 1000).decode()
        os.write(ours, b"\x03")
        while "in all" not in output:
            output += os.read(ours, 1000).decode()
        assert "counted 1 in all" in output
        assert process.wait(LIMIT) == 0
    os.close(ours)


def test_the_helper_sees_a_failing_job() -> None:
    assert finished([sys.executable, "-c", "print('out'); raise SystemExit(3)"]) == (3, "out\n")
