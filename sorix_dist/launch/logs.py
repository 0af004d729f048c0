"""A file for what each rank prints, written by the rank's own host, whatever the MPI."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_RANK = "r=${OMPI_COMM_WORLD_RANK:-${PMI_RANK:-${PMIX_RANK:-${SLURM_PROCID:-0}}}}"
_FILE = f'{_RANK}; mkdir -p "$1" && f="$1/rank-$r.log" || exit 1; shift; '

_INTO_FILE = _FILE + 'exec "$@" >>"$f" 2>&1'
# The program keeps the shell's process id, so that signals and exit codes are its own; tee ends with its input.
_INTO_BOTH = _FILE + (
    'p="$f.$$"; mkfifo "$p" || exit 1; '
    "(trap '' INT TERM HUP USR1 USR2; exec tee -a \"$f\" <\"$p\") & "
    'exec 3>"$p"; rm "$p"; exec "$@" >&3 2>&1 3>&-'
)  # fmt: skip


def logged(program: Sequence[str], folder: Path, *, tee: bool = False) -> list[str]:
    """The argv of one rank that appends both its outputs to `folder`/rank-R.log, and shows them too with `tee`."""
    return ["/bin/sh", "-c", _INTO_BOTH if tee else _INTO_FILE, "sh", str(folder), *program]
