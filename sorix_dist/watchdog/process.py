"""Other processes of this host, by /proc: number and start time identify a process, since numbers are reused."""

from __future__ import annotations

import os
import re
import signal
import stat
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sorix_dist.watchdog.launcher import Launch, detect

_STATE, _PARENT, _START, _STATUS = 0, 1, 19, 49  # positions in /proc/PID/stat behind "PID (name) "


class Process:
    """The process `pid` that began at `start` (see `start_time`), not a later one with its number."""

    def __init__(self, pid: int, start: int) -> None:
        self.pid = pid
        self.start = start
        self.handle: int | None = None
        """A descriptor that becomes readable when the process ends; None if Linux or Python has no pidfds."""
        if hasattr(signal, "pidfd_send_signal"):
            with suppress(AttributeError, OSError):
                self.handle = os.pidfd_open(pid)
        if start_time(pid) != start:
            self.close()

    def alive(self) -> bool:
        """Whether it runs or is stopped; a zombie has ended."""
        return lives(self.pid, self.start)

    def send(self, number: int) -> None:
        """Send it a signal, if it exists."""
        with suppress(OSError):
            if self.handle is not None:
                signal.pidfd_send_signal(self.handle, number)
                return
        with suppress(OSError):
            if self.alive():
                os.kill(self.pid, number)

    def close(self) -> None:
        """Close its descriptor."""
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None


def fill_standard_streams() -> None:
    """Open those of the descriptors 0 to 2 that are closed, or the next file would become one of them."""
    while (number := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)


def in_child(work: Callable[..., None], *arguments: object) -> int:
    """Does `work` in a fork of this process, which ends with it; returns its number, 0 if there can be none."""
    with suppress(OSError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python 3.12: the child must not use what other threads may lock
        if child := os.fork():
            return child
        try:
            work(*arguments)
        finally:
            os._exit(0)
    return 0


def start_time(pid: int) -> int:
    """When the process began, in the kernel's clock ticks; 0 if there is none."""
    fields = _stat(pid)
    return int(fields[_START]) if fields else 0


def seconds(start: int) -> float:
    """A `start_time` in seconds since the epoch."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + start / os.sysconf("SC_CLK_TCK")


def lives(pid: int, start: int) -> bool:
    """Whether the process that began at `start` runs or is stopped; a zombie has ended."""
    fields = _stat(pid)
    if not fields:  # it is gone, or this process has no descriptor left to read with
        return os.path.exists(f"/proc/{pid}")
    return int(fields[_START]) == start and fields[_STATE] not in ("Z", "X")


def state(pid: int) -> str:
    """The kernel's letter for the process's state: R runs, S sleeps, T is stopped, Z has ended; '' if unknown."""
    fields = _stat(pid)
    return fields[_STATE] if fields else ""


def end_status(pid: int) -> int | None:
    """The wait status of a process that has ended; None if its parent has collected it, or if it may still run."""
    fields = _stat(pid)
    status = int(fields[_STATUS]) if len(fields) > _STATUS else 0
    return status if status or (fields and fields[_STATE] == "Z") else None


def parent(pid: int) -> int:
    """Its parent process; 0 if unknown."""
    fields = _stat(pid)
    return int(fields[_PARENT]) if fields else 0


def processes() -> list[int]:
    """All processes of this host that this container sees."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def children(pid: int) -> list[int]:
    """The living child processes of `pid`."""
    return [each for each in processes() if parent(each) == pid and state(each) != "Z"]


def descendants(pid: int) -> list[int]:
    """The living processes that `pid` started, directly or not, parents before children."""
    children: dict[int, list[int]] = {}
    for process, started_by in _parents().items():
        children.setdefault(started_by, []).append(process)
    found = list(children.get(pid, ()))
    for process in found:  # grows meanwhile
        found += children.get(process, ())
    return found


def kill_with_descendants(pid: int) -> None:
    """Kills `pid` and its descendants at once; it is no error if some have ended.

    `pid` must be a child that this process has not waited for yet: until then its number can't be reused.
    """
    for process in [pid, *descendants(pid)]:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _parents() -> dict[int, int]:
    """The parent of every living process."""
    if os.path.exists("/proc/self/stat"):
        return {pid: parent(pid) for pid in processes()}
    import subprocess  # for macOS; the guard need not load it

    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)
    return {int(pid): int(ppid) for pid, ppid in (line.split() for line in listing.stdout.splitlines())}


def descends_from(pid: int, ancestor: int) -> bool:
    """Whether a process is `ancestor` or a descendant of it."""
    while pid > 1 and pid != ancestor:
        pid = parent(pid)
    return pid == ancestor


def arguments(pid: int) -> list[str]:
    """Its program and the arguments, [''] if unknown."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return [""]


def command(pid: int) -> str:
    """The name of its program, '' if unknown."""
    return os.path.basename(arguments(pid)[0])


def outputs(pid: int) -> dict[int, str]:
    """The pipes and terminals to which a process can write, by descriptor."""
    found = {}
    for link in _listed(pid, "fd"):
        with suppress(OSError):  # just closed
            target = os.readlink(link)
            if target.startswith(("pipe:", "/dev/pts/")) and link.lstat().st_mode & stat.S_IWUSR:
                found[int(link.name)] = target
    return found


def terminals(pid: int) -> set[str]:
    """The pseudo-terminals that a process has made and still reads."""
    found = set[str]()
    for file in _listed(pid, "fdinfo"):
        with suppress(OSError):
            found.update(f"/dev/pts/{number}" for number in re.findall(r"tty-index:\s*(\d+)", file.read_text()))
    return found


def _listed(pid: int, folder: str) -> list[Path]:
    """An entry for each descriptor of a process; none if it has ended, or is another user's."""
    with suppress(OSError):
        return list(Path(f"/proc/{pid}/{folder}").iterdir())
    return []


def launcher_pid(launch: Launch) -> int:
    """The process that started the ranks of this host: the nearest ancestor that does not belong to this rank, as a
    shell around the program does. 0 if it is in another PID namespace."""
    pid = os.getppid()
    while pid > 0:
        its = detect(environ(pid))
        if its is None or (its.name, its.rank) != (launch.name, launch.rank):
            break
        pid = parent(pid)
    return pid


def _stat(pid: int) -> list[str]:
    # "PID (name) state parent ...": the name may contain spaces and brackets
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def environ(pid: int) -> dict[str, str]:
    """The environment with which a process was started; empty if it can't be read."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in (each.partition(b"=") for each in entries)}
