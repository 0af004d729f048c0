"""Files that MPI leaves behind when a job of ours is killed: its shared memory, and a file of MPICH's launcher.

`sorix-dist doctor --clean` removes those of other jobs.
"""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from sorix_dist.watchdog.process import command, processes, seconds, start_time

SHARED = "/dev/shm/"
MPI_PREFIXES = ("mpich_shm_", "Intel_MPI_", "sm_segment.", "vader_segment.", "osc_sm", "osc_rdma", "ucx_shm_posix")
"""How names of MPI's shared memory begin."""
LAUNCHER_FILES = "hydra_hwloc_xmlfile_*"
LAUNCHER = "hydra_pmi_proxy"


def mapped() -> set[str]:
    """The files of MPI's shared memory that this process maps."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        names = {line.split(maxsplit=5)[-1].strip() for line in maps if SHARED in line}
    ours = tuple(SHARED + prefix for prefix in MPI_PREFIXES)
    return {name for name in names if name.startswith(ours) and os.path.exists(name)}


def record(path: Path) -> None:
    """Append to the file at `path` the shared memory that would remain if this process were killed."""
    with suppress(OSError):
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(path, flags, 0o600), "a", encoding="utf-8") as file:
            file.writelines(f"{name}\n" for name in sorted(mapped()))


def remove_recorded(path: Path) -> None:
    """Remove the file at `path` and what dead ranks recorded there."""
    with suppress(OSError):
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_uid == os.getuid():
                for name in set(file.read().split()):
                    if name.startswith(SHARED) and ".." not in name:
                        Path(name).unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def remove_launcher_files(since: float | None = None, folder: Path | None = None) -> None:
    """Remove files of this user's dead launchers: those made after the time `since`, when a dead launcher began, or
    else those older than a minute.

    A file is spared if a launcher that lives began before it. One in another container, which can't be seen from here,
    no longer needs a file that old.
    """
    files = list((folder or Path(tempfile.gettempdir())).glob(LAUNCHER_FILES))
    living = [seconds(start_time(pid)) for pid in processes() if command(pid) == LAUNCHER] if files else []
    first = min(living, default=time.time())
    for path in files:
        with suppress(OSError):  # its launcher, or another job, has just removed it
            status = path.lstat()
            old = status.st_mtime < time.time() - 60 if since is None else status.st_mtime > since
            if status.st_uid == os.getuid() and old and status.st_mtime < first:
                path.unlink()
