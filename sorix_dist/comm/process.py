"""Other processes of this host, told apart from later ones that get the same number."""

from __future__ import annotations

import math
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from sorix_dist.comm.launcher import Launch, detect

_STATE, _PARENT, _START, _STATUS = 0, 1, 19, 49  # positions in /proc/PID/stat behind "PID (name) "


class Process:
    """The process `pid` that began at `start` (see `start_time`), not one that has its number later."""

    def __init__(self, pid: int, start: int) -> None:
        self.pid = pid
        self.start = start
        self.handle: int | None = None
        """A file descriptor that becomes readable when the process ends; None where Linux or Python has none."""
        if hasattr(signal, "pidfd_send_signal"):
            with suppress(AttributeError, OSError):
                self.handle = os.pidfd_open(pid)
        if start_time(pid) != start:
            self.close()

    def alive(self) -> bool:
        """Whether it still runs, or could again: a zombie does not."""
        return lives(self.pid, self.start)

    def send(self, number: int) -> None:
        """Send it a signal, if it is there."""
        with suppress(OSError):
            if self.handle is not None:
                signal.pidfd_send_signal(self.handle, number)
            elif self.alive():
                os.kill(self.pid, number)

    def close(self) -> None:
        """Give its descriptor back."""
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None


def fill_standard_streams() -> None:
    """Open what is closed of the descriptors 0 to 2, or the next file would be taken for one of them."""
    while (number := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)


def start_time(pid: int) -> int:
    """When the process began, in the kernel's clock ticks; 0 if there is none."""
    fields = _stat(pid)
    return int(fields[_START]) if fields else 0


def began(pid: int) -> float:
    """When the process began, in seconds since the epoch; in the future if there is none."""
    return seconds(start_time(pid)) if start_time(pid) else math.inf


def seconds(start: int) -> float:
    """A `start_time` in seconds since the epoch."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + start / os.sysconf("SC_CLK_TCK")


def lives(pid: int, start: int) -> bool:
    """Whether the process that began at `start` runs or is stopped; a zombie counts as ended."""
    fields = _stat(pid)
    return bool(fields) and int(fields[_START]) == start and fields[_STATE] not in ("Z", "X")


def state(pid: int) -> str:
    """The kernel's letter for what the process does: R runs, S sleeps, T is stopped, Z has ended; '' if unknown."""
    fields = _stat(pid)
    return fields[_STATE] if fields else ""


def end_status(pid: int) -> int | None:
    """How a process has ended, as `os.wait` says it; None if its parent has asked already."""
    fields = _stat(pid)
    return int(fields[_STATUS]) if fields and fields[_STATE] == "Z" and len(fields) > _STATUS else None


def parent(pid: int) -> int:
    """The process that started it, or has adopted it; 0 if unknown."""
    fields = _stat(pid)
    return int(fields[_PARENT]) if fields else 0


def processes() -> list[int]:
    """All processes of this host that can be seen from here."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def children(pid: int) -> list[int]:
    """The living processes that `pid` has started, or adopted."""
    return [each for each in processes() if parent(each) == pid and state(each) != "Z"]


def descends_from(pid: int, ancestor: int) -> bool:
    """Whether a process is `ancestor`, or was started by it, directly or not."""
    while pid > 1 and pid != ancestor:
        pid = parent(pid)
    return pid == ancestor


def command(pid: int) -> str:
    """The name of its program, '' if unknown."""
    try:
        return os.path.basename(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace"))
    except OSError:
        return ""


def outputs(pid: int) -> list[str]:
    """The pipes that a process has as standard output and standard error."""
    found = []
    for number in (1, 2):
        with suppress(OSError):
            found.append(os.readlink(f"/proc/{pid}/fd/{number}"))
    return [name for name in found if name.startswith("pipe:")]


def launcher_pid(launch: Launch) -> int:
    """The process that started the ranks of this host: the nearest ancestor that is not part of this rank itself,
    as a shell around the program is."""
    pid = os.getppid()
    while pid > 1:
        said = detect(environ(pid))
        if said is None or (said.name, said.rank) != (launch.name, launch.rank):
            break
        pid = parent(pid)
    return pid


def _stat(pid: int) -> list[str]:
    # "PID (name) state parent ...": the name may hold spaces and brackets
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def environ(pid: int) -> dict[str, str]:
    """The variables that a process was started with; empty if they can't be read."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in (each.partition(b"=") for each in entries)}
