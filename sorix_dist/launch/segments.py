"""What MPI jobs of this host have left behind, shared memory above all: a job that was killed cannot remove its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

SHARED = Path("/dev/shm")

NAMES = ("mpich_shm_*", "Intel_MPI_*", "sm_segment.*", "vader_segment.*", "osc_sm*", "osc_rdma*", "ucx_shm_posix*")
"""How MPICH, Intel MPI, Open MPI (twice, and its windows) and UCX name their segments."""


@dataclass(frozen=True)
class Segment:
    """A file of shared memory of one MPI job."""

    path: Path
    size: int
    """Bytes of memory that it takes."""
    since: float
    """When it was last written to, in seconds since the epoch."""


def left_over(folder: Path = SHARED, after: float = 0.0) -> list[Segment]:
    """This user's segments that no living process maps or has open, written to after the given time.

    Processes that cannot be seen from here (in another container) count as dead.
    """
    if not Path("/proc/self/maps").exists():  # who holds what is known on Linux only
        return []
    found = [segment for segment in _all(folder) if segment.since >= after]
    held = _held(folder) if found else set()
    return [segment for segment in found if str(segment.path) not in held]


def remove_left_over(after: float, folder: Path = SHARED) -> None:
    """Removes what a job that was started at `after` and has ended has left behind."""
    for segment in left_over(folder, after):
        segment.path.unlink(missing_ok=True)
    remove_sessions(after)


def remove_sessions(after: float, folder: Path | None = None) -> None:
    """Removes the folders of Open MPI's mpiruns that were made after the given time and have ended.

    A killed one leaves its own, `ompi.PID`, and the next one with that process id does not start: it ends with
    213, "The PMIx server's listener thread failed to start". Linux uses an id again after 32,768 processes or more.
    Open MPI 4 has one folder for all jobs of a user, `ompi.HOST.UID`, which stays.
    """
    if not _lives(os.getpid()):  # who lives is known on Linux only
        return
    for path in (folder or Path(tempfile.gettempdir())).glob("ompi.*"):
        pid = path.name.removeprefix("ompi.")
        with contextlib.suppress(FileNotFoundError):  # its mpirun has just removed it
            status = path.stat()
            ours = status.st_uid == os.getuid() and status.st_mtime >= after
            if pid.isdecimal() and ours and not _lives(int(pid)):
                shutil.rmtree(path, ignore_errors=True)


def now() -> float:
    """The time as files of shared memory record it, which lags a little behind the clock."""
    return time.time() - 0.05


def _lives(pid: int) -> bool:
    """Whether a process of this user exists and has not ended: one that is just not collected yet has no program."""
    return os.path.exists(f"/proc/{pid}/exe")


def _all(folder: Path) -> list[Segment]:
    segments = []
    for path in sorted({path for pattern in NAMES for path in folder.glob(pattern)}):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            if status.st_uid == os.getuid():
                segments.append(Segment(path, status.st_blocks * 512, status.st_mtime))
    return segments


def _held(folder: Path) -> set[str]:
    """The files of the folder that a living process maps or has open."""
    prefix = f"{folder}/"
    held = set()
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        with contextlib.suppress(OSError):  # it ended meanwhile, or is another user's
            for line in (process / "maps").read_text(encoding="utf-8", errors="replace").splitlines():
                if prefix in line:
                    held.add(line[line.index(prefix) :])
            for number in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    held.add(os.readlink(number))
    return held
