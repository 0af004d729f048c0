"""Removes what killed MPI jobs leave on this host: shared memory, and folders of Open MPI's mpirun."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from sorix_dist.watchdog.leftovers import MPI_PREFIXES

SHARED = Path("/dev/shm")


@dataclass(frozen=True)
class Segment:
    """A file of shared memory of an MPI job. size: bytes of memory; since: its last change, seconds since the epoch."""

    path: Path
    size: int
    since: float


def dead_segments(folder: Path = SHARED, after: float = 0.0) -> list[Segment]:
    """This user's segments, changed after the given time, that no living process maps or has open.

    Processes of other containers can't be seen and count as dead.
    """
    if not Path("/proc/self/maps").exists():  # only Linux lists the files that a process uses
        return []
    found = [segment for segment in _segments(folder) if segment.since >= after]
    used = _used(folder) if found else set()
    return [segment for segment in found if str(segment.path) not in used]


def clean_up(after: float, folder: Path = SHARED) -> None:
    """Removes what is left of a job that was started at `after` and has ended."""
    for segment in dead_segments(folder, after):
        segment.path.unlink(missing_ok=True)
    remove_sessions(after)


def remove_sessions(after: float, folder: Path | None = None) -> None:
    """Removes the folders of dead mpiruns of Open MPI that were made after the given time.

    A killed one leaves its `ompi.PID`, and the next mpirun with that process id does not start: it ends with 213,
    "The PMIx server's listener thread failed to start". Linux reuses ids after 32,768 processes or more. Open MPI 4 has
    one folder for all jobs of a user, `ompi.HOST.UID`, which stays.
    """
    if not _lives(os.getpid()):  # no /proc: nothing is known about other processes
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
    """Whether a process of this user exists and has not ended; a zombie has no program."""
    return os.path.exists(f"/proc/{pid}/exe")


def _segments(folder: Path) -> list[Segment]:
    segments = []
    for path in sorted({path for prefix in MPI_PREFIXES for path in folder.glob(f"{prefix}*")}):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            if status.st_uid == os.getuid():
                segments.append(Segment(path, status.st_blocks * 512, status.st_mtime))
    return segments


def _used(folder: Path) -> set[str]:
    """The files of the folder that a living process maps or has open."""
    prefix = f"{folder}/"
    used = set()
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            for line in (process / "maps").read_text(encoding="utf-8", errors="replace").splitlines():
                if prefix in line:
                    used.add(line[line.index(prefix) :])
            for number in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    used.add(os.readlink(number))
    return used
