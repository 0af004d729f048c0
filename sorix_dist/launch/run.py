"""Runs a command in the foreground, as a shell does: its streams, its signals, its exit code."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType

from sorix_dist.launch import segments
from sorix_dist.launch.command import Command
from sorix_dist.launch.errors import LaunchError
from sorix_dist.launch.group import Group
from sorix_dist.launch.tree import kill_tree
from sorix_dist.watchdog.launcher import EXIT_PREEMPTED

ENDING: Mapping[int, int] = {
    signal.SIGINT: signal.SIGINT,
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGHUP: signal.SIGTERM,
}
"""Signals that ask the job to end, and what the command is sent for them; mpirun itself would die of SIGHUP
and leave its ranks behind."""

PASSED_ON = (signal.SIGUSR1, signal.SIGUSR2)

TIMED_OUT = 124
"""The exit code of what took too long, as timeout(1) has it."""


@dataclass(frozen=True)
class Ended:
    """What came of a command."""

    code: int
    asked: bool = False
    """Whether it was asked to end, by a signal to this process."""


def run(
    command: Command, *, patience: float = 30.0, limit: float | None = None, ending: Mapping[int, int] = ENDING
) -> Ended:
    """Runs the command with this process's own stdin, stdout and stderr.

    Signals are passed on. A command that is asked to end and has not `patience` seconds later, or is asked
    a second time, is killed with everything that it started. The exit code is 128 + the signal's number, as
    in a shell, if a signal ended the command, or if it failed after it was asked to end, other than by the code
    75 of one that has saved its work. After `limit` seconds the command is ended, and the exit code is 124.
    Should this process itself be killed, Linux sends the command SIGTERM.
    `ending`: the signals that ask the job to end, and what the command is sent for each.
    Only the main thread may call this. Raises LaunchError if the command cannot be started.
    """
    began = segments.now()
    ended = _Foreground(command, patience, ending).wait(limit)
    if ended.code:  # a job that was killed could not remove its shared memory
        segments.remove_left_over(began)
    return ended


class _Foreground:
    """A command that runs in place of this process."""

    def __init__(self, command: Command, patience: float, ending: Mapping[int, int]) -> None:
        self.patience = patience
        self.ending = ending
        self.asked: list[int] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.group = Group()
        handlers = dict.fromkeys(ending, self._end) | dict.fromkeys(PASSED_ON, self._pass_on)
        # What this process was told to ignore (nohup, a background job) its command ignores too.
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
        if self.asked:  # before there was a process to tell
            self.process.terminate()

    def wait(self, limit: float | None) -> Ended:
        """What came of the command, when it has ended."""
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
        self.asked.append(number)
        if self.process is None:
            return
        if len(self.asked) > 1:
            self._kill()
            return
        # A Ctrl-C in a terminal has reached the command by itself.
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
            kill_tree(self.process.pid)

    def _restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.group.close()


_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None  # looked up before any fork


def _end_with_parent() -> None:
    """Asks the kernel to send this process SIGTERM when its parent has died; only Linux can."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
