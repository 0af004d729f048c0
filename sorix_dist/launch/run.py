"""Runs a command in the foreground, as a shell does, and again after a crash."""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from sorix_dist.launch import LaunchError
from sorix_dist.launch.command import Command
from sorix_dist.watchdog import leftovers
from sorix_dist.watchdog.launcher import COMPLETION_FILE, EXIT_PREEMPTED, is_complete
from sorix_dist.watchdog.process import kill_with_descendants

ENDING: Mapping[int, int] = {
    signal.SIGINT: signal.SIGINT,
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGHUP: signal.SIGTERM,
}
"""Signals that ask the job to end, and what the command is sent for each. SIGHUP would kill mpirun, not its ranks."""

PASSED_ON = (signal.SIGUSR1, signal.SIGUSR2)

TIMED_OUT = 124  # the exit code after the time limit, as of timeout(1)

REPEATED = 0.4
"""Seconds in which the same signal asks once: `timeout` sends it to its command, and then to the command's group."""

GROUP_DELAY = 0.2  # seconds after which a signal to a process group has reached all of its processes


@dataclass(frozen=True)
class Ended:
    """The end of a command. code: its exit code; asked: whether a signal to this process asked it to end."""

    code: int
    asked: bool = False


def run(
    command: Command, *, patience: float = 30.0, limit: float | None = None, ending: Mapping[int, int] = ENDING
) -> Ended:
    """Runs the command with this process's own stdin, stdout and stderr.

    patience: seconds that the command has to end when it is asked to; then, or when it is asked again, it is killed
        with all its descendants.
    limit: seconds after which it is asked to end; the exit code is then 124.
    ending: the signals that ask the job to end, and what the command is sent for each.

    Signals are passed on. The exit code is the command's own. As in a shell it is 128 + the number of the signal that
    ended it, or that asked it to end before it failed. Code 75 (it has saved its work) stays 75. If this process is
    killed, Linux sends the command SIGTERM. Call it in the main thread only. LaunchError if the command can't start.
    """
    began = leftovers.now()
    ended = _Foreground(command, patience, ending).wait(limit)
    if ended.code:  # a killed job can't remove its shared memory
        leftovers.clean_up(began)
    return ended


class _Foreground:
    """A command that runs in place of this process."""

    def __init__(self, command: Command, patience: float, ending: Mapping[int, int]) -> None:
        self.patience = patience
        self.ending = ending
        self.asked: list[int] = []
        self.last = 0, 0.0  # the signal that asked last, and when
        self.process: subprocess.Popen[bytes] | None = None
        self.group = _GroupProbe()
        handlers = dict.fromkeys(ending, self._end) | dict.fromkeys(PASSED_ON, self._pass_on)
        # What this process ignores (nohup, a background job) its command ignores too.
        self.before = {
            number: signal.signal(number, handler)
            for number, handler in handlers.items()
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        try:
            environ = os.environ | command.env
            self.process = subprocess.Popen(command.argv, env=environ, preexec_fn=_end_with_parent)
        except OSError as error:
            self._restore()
            raise LaunchError(f"{command.argv[0]} could not be started: {error.strerror}") from error
        if self.asked:  # before there was a process
            self.process.terminate()

    def wait(self, limit: float | None) -> Ended:
        """Waits for the end of the command."""
        assert self.process is not None
        try:
            code = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self._end_soon(signal.SIGTERM)
            self.process.wait()
            return Ended(TIMED_OUT)
        finally:
            self._restore()
        if code < 0:
            code = 128 - code
        elif self.asked and code not in (0, EXIT_PREEMPTED):
            code = 128 + self.asked[0]
        return Ended(code, bool(self.asked))

    def _end(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == self.last[0] and now - self.last[1] < REPEATED:
            return
        self.last = number, now
        self.asked.append(number)
        if self.process is None:
            return
        if len(self.asked) > 1:
            self._kill()
            return
        # A Ctrl-C at a terminal has reached the command too.
        self._end_soon(None if number == signal.SIGINT and self.group.interrupted() else self.ending[number])

    def _end_soon(self, number: int | None) -> None:
        assert self.process is not None
        killer = threading.Timer(self.patience, self._kill)
        killer.daemon = True
        killer.start()
        if number is not None:
            self.process.send_signal(number)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self.process is not None:
            self.process.send_signal(number)

    def _kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            kill_with_descendants(self.process.pid)

    def _restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.group.close()


class _GroupProbe:
    """Finds out whether an interrupt was sent to the whole process group, as by Ctrl-C, or to this process only.

    It is a second process of the group, which an interrupt ends. It also ends with this process, when its input does.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", "read _"], stdin=subprocess.PIPE, preexec_fn=_die_of_interrupts, stderr=subprocess.DEVNULL
        )

    def interrupted(self) -> bool:
        """Whether the interrupt that this process has just received came to the whole group."""
        try:
            return self._process.wait(GROUP_DELAY) == -signal.SIGINT
        except subprocess.TimeoutExpired:
            return False

    def close(self) -> None:
        """Ends the second process."""
        self._process.kill()
        self._process.communicate()


def _die_of_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None  # looked up before any fork


def _end_with_parent() -> None:
    """Asks Linux to send this process SIGTERM when its parent dies; other systems can't."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


# -- again after a crash

EXIT_INCOMPLETE = 70  # the exit code if all ranks ended with 0, but rank 0 did not reach the end of the script
ATTEMPT = "SORIX_DIST_ATTEMPT"  # how often the script was started before, as a variable for it: 0, 1, 2, ...
PRIVATE = ".completed-"  # the prefix of a file in the checkpoint folder: rank 0 writes it when it has reached the end
FRUITLESS = 2  # attempts in a row without a later saved step, after which the job is not started again
PAUSE = 1.0  # seconds between two attempts

# mpirun kills ranks half a second after a SIGTERM; SIGUSR1 it passes on, so that they can save their work.
WARNING: dict[int, int] = {**ENDING, signal.SIGTERM: signal.SIGUSR1}


def supervise(
    start: Callable[[int, dict[str, str]], Command],
    checkpoint: Path,
    *,
    max_restarts: int,
    newest_steps: Callable[[Path], Mapping[Path, int]],
    say: Callable[[str], None],
    limit: float | None = None,
) -> int:
    """Runs a command, again after each crash, at most 1 + max_restarts times; returns the exit code.

    start: makes the command of an attempt from the number of earlier ones and variables for the ranks.
    checkpoint: the folder that the script saves its checkpoints to, seen by all hosts.
    newest_steps: gives the newest step in a valid file for each folder at and below `checkpoint`. A later one is
        progress.
    say: is called with a line after each failed attempt.
    limit: seconds for all attempts together.

    The code is 0 if rank 0 reached the end of the script. Code 75 (preempted, the work is saved) and that of an end
    which a signal asked for are returned at once. Otherwise it is the code of the last attempt, with 70 in place of 0.
    """
    began = time.monotonic()
    fruitless = 0
    before = newest_steps(checkpoint) if max_restarts else {}
    for attempt in range(max_restarts + 1):
        mark = checkpoint / f"{PRIVATE}{secrets.token_hex(8)}"
        rest = None if limit is None else max(0.0, limit - (time.monotonic() - began))
        ended = run(start(attempt, {COMPLETION_FILE: str(mark), ATTEMPT: str(attempt)}), limit=rest, ending=WARNING)
        completed = is_complete(mark)
        mark.unlink(missing_ok=True)
        if completed and ended.code == 0:
            return 0
        code = ended.code or EXIT_INCOMPLETE
        if ended.asked or code in (EXIT_PREEMPTED, TIMED_OUT):
            return code
        if attempt < max_restarts:
            after = newest_steps(checkpoint)
            fruitless = 0 if any(step > before.get(folder, -1) for folder, step in after.items()) else fruitless + 1
            before = after
        say(_what(ended, attempt, max_restarts, fruitless, checkpoint))
        if fruitless == FRUITLESS:
            break
        if attempt < max_restarts:
            time.sleep(PAUSE)
    return code


def run_on_hosts(start: Callable[[dict[str, str]], Command], say: Callable[[str], None], limit: float | None) -> int:
    """Runs a command on several hosts, and returns its exit code: 70 in place of 0 if rank 0 began on this host, and
    did not reach the end of the script. mpirun may return 0 when it has lost a host.

    start: makes the command from variables for the ranks.
    """
    with tempfile.TemporaryDirectory(prefix="sorix_dist-run-") as folder:
        mark = Path(folder, "completed")
        ended = run(start({COMPLETION_FILE: str(mark)}), limit=limit)
        if ended.code or ended.asked or not mark.exists() or is_complete(mark):
            return ended.code
    say("the job ended with code 0, but rank 0 did not reach the end of the script, as when a host is lost")
    return EXIT_INCOMPLETE


def _what(ended: Ended, attempt: int, max_restarts: int, fruitless: int, checkpoint: Path) -> str:
    if ended.code:
        what = f"the job ended with code {ended.code}"
    else:
        what = "the job ended with code 0, but rank 0 did not reach the end of a script that imports sorix_dist"
    if fruitless == FRUITLESS:
        return f"{what}; not started again: {FRUITLESS} attempts in a row saved no later step in {checkpoint}"
    if attempt == max_restarts:
        return f"{what}; not started again" + f" after {max_restarts} restarts" * (max_restarts > 0)
    return f"{what}; restart {attempt + 1} of {max_restarts}"
