"""Processes: how ranks are started, watched and ended, without tensors. Here: its errors, and asking a command."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sorix_dist.watchdog.process import kill_with_descendants


class LaunchError(RuntimeError):
    """Ranks could not be started; the message says what to do about it."""


class RankError(RuntimeError):
    """A rank ended without a result, or with one that can't be sent."""


class RemoteTraceback(Exception):
    """The cause of an exception that was raised on another process: where that was, as text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text.rstrip()}"


PYTHON = (sys.executable, "-P")
"""This interpreter, for a program in its arguments; it does not import a json.py of the current folder."""


@dataclass(frozen=True)
class Answer:
    """The output of a command, and its exit code: None if it was killed at the time limit."""

    code: int | None
    out: str
    err: str

    @property
    def why(self) -> str:
        """Why it failed, in a line."""
        if self.code is None:
            return "it hangs"
        lines = [line.strip() for line in (self.err + "\n" + self.out).splitlines() if line.strip(" =-*")]
        raised = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Mismatch): ", line)]
        return (raised or lines[::-1] or [f"code {self.code}"])[0]


def ask(argv: Sequence[str], environ: Mapping[str, str], limit: float) -> Answer:
    """Runs a command; kills it and its descendants after `limit` seconds. LaunchError if it can't be started."""
    try:
        process = subprocess.Popen(
            argv,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise LaunchError(f"{argv[0]} could not be started: {error.strerror}") from error
    with process:
        try:
            out, err = process.communicate(timeout=limit)
            return Answer(process.returncode, out, err)
        except BaseException as error:
            kill_with_descendants(process.pid)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            out, err = process.communicate()
            return Answer(None, out, err)
