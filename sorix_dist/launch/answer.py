"""What another process answers, without waiting for it for ever."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sorix_dist.launch.errors import LaunchError
from sorix_dist.launch.tree import kill_tree

PYTHON = (sys.executable, "-P")
"""This interpreter, for a program in its arguments; without the current folder, whose json.py nobody means."""


@dataclass(frozen=True)
class Answer:
    """What came of a command."""

    code: int | None
    """None if it did not end in time."""
    out: str
    err: str

    @property
    def why(self) -> str:
        """In a line, why it failed."""
        if self.code is None:
            return "it hangs"
        said = [line.strip() for line in (self.err + "\n" + self.out).splitlines() if line.strip(" =-*")]
        raised = [line for line in said if re.match(r"[\w.]+(Error|Exception|Mismatch): ", line)]
        return (raised or said[::-1] or [f"code {self.code}"])[0]


def ask(argv: Sequence[str], environ: Mapping[str, str], limit: float) -> Answer:
    """Runs a command, and kills it with all that it started after `limit` seconds; LaunchError if it can't start."""
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
            kill_tree(process.pid)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            out, err = process.communicate()
            return Answer(None, out, err)
