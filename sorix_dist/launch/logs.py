"""A log file for each rank, written on the rank's own host, under any MPI.

As a program (`logs.py FILE RANK`) it copies standard input to the file and, each line behind its rank, to standard
output. tee(1) would mix the pieces of lines of several ranks.
"""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

_RANK = "r=${OMPI_COMM_WORLD_RANK:-${PMI_RANK:-${PMIX_RANK:-${SLURM_PROCID:-0}}}}"
_FILE = (
    f'{_RANK}; mkdir -p "$1" && f="$1/rank-$r.log" && : >>"$f" || exit 1; shift; '
    '[ ! -s "$f" ] || echo "---- started again at $(date "+%Y-%m-%d %H:%M:%S")" >>"$f"; '
)
_TO_FILE = _FILE + 'exec "$@" >>"$f" 2>&1'
# The program keeps the shell's process id, so that signals and exit codes are its own; the copy ends with its input.
_TO_BOTH = _FILE + (
    'p="$f.$$"; mkfifo "$p" || exit 1; '
    f'{shlex.quote(sys.executable)} -I -S {shlex.quote(str(Path(__file__)))} "$f" "$r" <"$p" & '
    'exec 3>"$p"; rm "$p"; exec "$@" >&3 2>&1 3>&-'
)  # fmt: skip


def logged(program: Sequence[str], folder: Path, *, tee: bool = False) -> list[str]:
    """The argv of one rank that appends both its outputs to `folder`/rank-R.log.

    With `tee` it prints them too, line by line, each behind its rank, `[0] ...`.
    """
    return ["/bin/sh", "-c", _TO_BOTH if tee else _TO_FILE, "sh", str(folder), *program]


def copy(path: str, rank: str) -> None:
    """Copies standard input to its end, also while signals end the job."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    with open(path, "ab", buffering=0) as log, open(1, "wb", buffering=0) as screen:
        for line in sys.stdin.buffer:
            log.write(line)
            screen.write(f"[{rank}] ".encode() + line.rstrip(b"\n") + b"\n")


if __name__ == "__main__":
    copy(*sys.argv[1:])
