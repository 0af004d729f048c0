"""Whether an interrupt came to this process alone or to its whole process group, as by Ctrl-C at a terminal."""

from __future__ import annotations

import signal
import subprocess

SECONDS = 0.2
"""Time in which all of a group have had a signal that was sent to them at once."""


class Group:
    """Has a process beside this one, which an interrupt of the whole group ends and one of this process does not.

    It ends with this process at the latest, when its standard input does.
    """

    def __init__(self) -> None:
        self._other = subprocess.Popen(
            ["/bin/sh", "-c", "read _"], stdin=subprocess.PIPE, preexec_fn=_default, stderr=subprocess.DEVNULL
        )

    def interrupted(self) -> bool:
        """Whether the interrupt that this process has just had came to the whole group."""
        try:
            return self._other.wait(SECONDS) == -signal.SIGINT
        except subprocess.TimeoutExpired:
            return False

    def close(self) -> None:
        """Ends the other process."""
        self._other.kill()
        self._other.communicate()


def _default() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
