"""What MPI leaves behind of a job that is killed: shared memory that its ranks have mapped, and a file of MPICH's
launcher. Here are the own jobs' alone; `sorix-dist doctor --clean` looks for others'."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from sorix_dist.comm.process import began, command, processes

SHARED = "/dev/shm/"
MPIS = ("mpich_shm_", "Intel_MPI_", "sm_segment.", "vader_segment.", "osc_sm", "osc_rdma", "ucx_shm_posix")
"""How the names of shared memory begin that an MPI has made."""
LAUNCHERS_FILES = "hydra_hwloc_xmlfile_*"
LAUNCHER = "hydra_pmi_proxy"


def mapped() -> set[str]:
    """The files of shared memory that MPI has made and this process maps."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        names = {line.split(maxsplit=5)[-1].strip() for line in maps if SHARED in line}
    return {name for name in names if name.startswith(tuple(SHARED + mpi for mpi in MPIS)) and os.path.exists(name)}


def note(path: Path) -> None:
    """Note at `path` what of this process's shared memory would stay if it were killed."""
    with suppress(OSError):
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(path, flags, 0o600), "a", encoding="utf-8") as file:
            file.writelines(f"{name}\n" for name in sorted(mapped()))


def remove_noted(path: Path) -> None:
    """Remove what was noted at `path`, by ranks that are all gone, and the note."""
    with suppress(OSError):
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_uid == os.getuid():
                for name in set(file.read().split()):
                    if name.startswith(SHARED) and ".." not in name:
                        Path(name).unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def remove_launchers_files(since: float | None = None, folder: Path | None = None) -> None:
    """Remove the files that this user's launchers have left which are dead: those made after the time `since`, when a
    launcher that is dead began, or older than a minute. No living launcher can have made them; one in a container,
    which can't be seen from here, has no use for an old one any more."""
    files = list((folder or Path(tempfile.gettempdir())).glob(LAUNCHERS_FILES))
    first = min((began(pid) for pid in processes() if command(pid) == LAUNCHER), default=time.time()) if files else 0.0
    for path in files:
        with suppress(OSError):  # its launcher, or another job, has just removed it
            status = path.lstat()
            old = status.st_mtime < time.time() - 60 if since is None else status.st_mtime > since
            if status.st_uid == os.getuid() and old and status.st_mtime < first:
                path.unlink()
