"""What a script tells whoever started its job: that it came to its end, for an exit code of 0 can lie.

With fault-tolerant MPIs, mpirun returns 0 when all ranks were killed; a rank that leaves by `os._exit(0)` looks
well too.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path

VARIABLE = "SORIX_DIST_COMPLETION"
"""Names the file that rank 0 makes when the script has ended without an error."""

EXIT_PREEMPTED = 75
"""The exit code of a script that was told to make room, has saved its work and asks to be started again later
(EX_TEMPFAIL of sysexits.h)."""


def install(environ: MutableMapping[str, str], rank: int) -> None:
    """Makes rank 0 write the mark at its end, if it is asked to; child processes are not asked any more."""
    path = environ.pop(VARIABLE, None)
    if path and rank == 0:
        atexit.register(_complete, Path(path))


def _complete(path: Path) -> None:
    if not hasattr(sys, "last_value"):  # set by an uncaught exception, before sys.excepthook
        with suppress(OSError):  # the mark is missed, and the one who waits for it says so
            path.touch()
