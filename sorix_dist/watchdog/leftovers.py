"""What remains of killed MPI jobs: launchers, shared memory, files of MPICH's launcher, folders of Open MPI's."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sorix_dist.watchdog.process import (
    Process,
    command,
    descends_from,
    outputs,
    parent,
    processes,
    seconds,
    start_time,
    state,
    terminals,
)

SHARED = "/dev/shm/"
MPI_PREFIXES = ("mpich_shm_", "Intel_MPI_", "sm_segment.", "vader_segment.", "osc_sm", "osc_rdma", "ucx_shm_posix")
"""Prefixes of the names of MPI's shared memory."""
LAUNCHER_FILES = "hydra_hwloc_xmlfile_*"
LAUNCHER = "hydra_pmi_proxy"
LAUNCHERS = ("mpirun", "mpiexec", "mpiexec.hydra", "hydra_pmi_proxy", "prterun", "prted", "orted", "orterun")
"""Programs that only start ranks, and end with them."""
TICK = 0.5  # seconds between two looks
GRACE = 3.0  # seconds between SIGTERM and SIGKILL


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


class Launchers:
    """The process `pid` that started the ranks of this host, the one that started that, and so on."""

    def __init__(self, pid: int, start: int) -> None:
        self.nearest = Process(pid, start)
        self.all = [self.nearest]
        while command(above := parent(self.all[-1].pid)) in LAUNCHERS:
            self.all.append(Process(above, start_time(above)))
        for launcher in self.all:
            launcher.close()  # ranks need the descriptors

    def release(self, ranks_outputs: set[str], after_fault: bool, patience: float) -> None:
        """The ranks are gone, which wrote to `ranks_outputs`: end what keeps their launchers alive after `patience`
        seconds.

        After a fault, end the launchers too if they stay, as they do where they have lost another host.
        """
        passed, before = 0.0, time.monotonic()
        while passed < patience + 3 * GRACE and (left := [each for each in self.all if each.alive()]):
            holders = self._holders(ranks_outputs)
            stopped = [launcher for launcher in left if state(launcher.pid) == "T"]
            useless = left if after_fault and command(left[0].pid) in LAUNCHERS else []
            if not (holders or stopped or useless):
                break
            if passed >= patience:
                for pid, descriptor in list(holders.items())[:1]:
                    more = f" and {len(holders) - 1} more" * (len(holders) > 1)
                    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY
                    with suppress(OSError), open(os.open(f"/proc/{pid}/fd/{descriptor}", flags), "w") as file:
                        file.write(
                            f"all ranks of this host have ended, but process {pid}{more}, which one of them has "
                            "started, keeps their output open; ending it\n"
                        )
                for pid in holders:
                    Process(pid, start_time(pid)).send(signal.SIGKILL)
                for launcher in useless:
                    launcher.send(signal.SIGTERM if passed < patience + GRACE else signal.SIGKILL)
                for launcher in stopped:
                    launcher.send(signal.SIGCONT)
            time.sleep(TICK)
            now = time.monotonic()
            passed, before = passed + min(now - before, 2 * TICK), now  # less if it was stopped
        if not self.nearest.alive():
            since = seconds(self.nearest.start) - 1
            remove_launcher_files(since)
            remove_sessions(since)

    def _holders(self, ranks_outputs: set[str]) -> dict[int, int]:
        """Processes that ranks started and that keep an output of theirs open, for whose end the launcher waits, and
        their descriptors. Shells around ranks, and what shares the launcher's own output, are none."""
        own = {output for launcher in self.all for output in outputs(launcher.pid).values()}
        # A terminal of this name may be another job's by now, unless the launcher still has the other side of it.
        kept = {output for output in ranks_outputs - own if output.startswith("pipe:")} | terminals(self.nearest.pid)
        return {
            pid: descriptor
            for pid in processes()
            for descriptor, output in outputs(pid).items()
            if output in kept & ranks_outputs and pid != os.getpid() and not descends_from(pid, self.nearest.pid)
        }


# -- of any job of this user


@dataclass(frozen=True)
class Segment:
    """A file of shared memory of an MPI job. size: bytes of memory; since: its last change, seconds since the epoch."""

    path: Path
    size: int
    since: float


def dead_segments(folder: Path = Path(SHARED), after: float = 0.0) -> list[Segment]:
    """This user's segments, changed after the given time, that no living process maps or has open.

    Processes of other containers can't be seen and count as dead.
    """
    if not Path("/proc/self/maps").exists():  # only Linux lists the files that a process uses
        return []
    found = [segment for segment in _segments(folder) if segment.since >= after]
    used = _used(folder) if found else set()
    return [segment for segment in found if str(segment.path) not in used]


def clean_up(after: float, folder: Path = Path(SHARED)) -> None:
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
    if not os.path.exists("/proc/self/exe"):  # no /proc: nothing is known about other processes
        return
    for path in (folder or Path(tempfile.gettempdir())).glob("ompi.*"):
        pid = path.name.removeprefix("ompi.")
        with suppress(FileNotFoundError):  # its mpirun has just removed it
            status = path.stat()
            ours = status.st_uid == os.getuid() and status.st_mtime >= after
            if pid.isdecimal() and ours and not os.path.exists(f"/proc/{pid}/exe"):  # a zombie has no program
                shutil.rmtree(path, ignore_errors=True)


def now() -> float:
    """The time as files of shared memory record it, which lags a little behind the clock."""
    return time.time() - 0.05


def _segments(folder: Path) -> list[Segment]:
    segments = []
    for path in sorted({path for prefix in MPI_PREFIXES for path in folder.glob(f"{prefix}*")}):
        with suppress(FileNotFoundError):
            status = path.stat()
            if status.st_uid == os.getuid():
                segments.append(Segment(path, status.st_blocks * 512, status.st_mtime))
    return segments


def _used(folder: Path) -> set[str]:
    """The files of the folder that a living process maps or has open."""
    prefix = f"{folder}/"
    used = set()
    for pid in processes():
        process = Path("/proc", str(pid))
        with suppress(OSError):  # it has ended, or is another user's
            for line in (process / "maps").read_text(encoding="utf-8", errors="replace").splitlines():
                if prefix in line:
                    used.add(line[line.index(prefix) :])
            for number in (process / "fd").iterdir():
                with suppress(OSError):
                    used.add(os.readlink(number))
    return used
