"""A file for what each rank prints, written by the rank's own host, whatever the MPI."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

_RANK = "r=${OMPI_COMM_WORLD_RANK:-${PMI_RANK:-${PMIX_RANK:-${SLURM_PROCID:-0}}}}"
_FILE = f'{_RANK}; mkdir -p "$1" && f="$1/rank-$r.log" && : >>"$f" || exit 1; shift; '

_INTO_FILE = _FILE + 'exec "$@" >>"$f" 2>&1'
# The program keeps the shell's process id, so that signals and exit codes are its own; tee ends with its input.
_INTO_BOTH = _FILE + (
    'p="$f.$$"; mkfifo "$p" || exit 1; '
    f'{shlex.quote(sys.executable)} -I -S {shlex.quote(str(Path(__file__).with_name("tee.py")))} "$f" "$r" <"$p" & '
    'exec 3>"$p"; rm "$p"; exec "$@" >&3 2>&1 3>&-'
)  # fmt: skip


def logged(program: Sequence[str], folder: Path, *, tee: bool = False) -> list[str]:
    """The argv of one rank that appends both its outputs to `folder`/rank-R.log.

    With `tee` it shows them too, line by line, each behind its rank, `[0] ...`.
    """
    return ["/bin/sh", "-c", _INTO_BOTH if tee else _INTO_FILE, "sh", str(folder), *program]
