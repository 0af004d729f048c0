"""The folder of status pages, private to this user, and its files, which are named after what started the ranks."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from sorix_dist.watchdog import leftovers
from sorix_dist.watchdog.process import start_time

FOLDERS = 8  # names of the folder of status pages to try, since other users may occupy some


def directory() -> Path:
    """The folder of status pages: private to this user, in this host's memory if possible.

    OSError if there can be none.
    """
    for memory in ("/dev/shm", ""):
        above = Path(memory or tempfile.gettempdir())  # which raises where only memory can be written
        for number in range(FOLDERS):
            folder = above / f"sorix_dist-{os.getuid()}.{number}"
            with suppress(OSError):  # it exists already, or can't be made
                os.mkdir(folder, 0o700)
            with suppress(OSError):
                about = os.lstat(folder)
                if stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid() and not about.st_mode & 0o077:
                    return folder
    raise PermissionError(f"no private folder of this user can be made in {above}; set TMPDIR to one of your own")


def path_for(launcher: int) -> Path:
    """The file of the ranks that the process `launcher` started on this host. OSError if it is in another PID namespace
    than /proc shows."""
    if launcher == 0 or os.readlink("/proc/self") != str(os.getpid()):
        raise ProcessLookupError("what started the ranks can't be seen from this container (PID namespace)")
    return directory() / f"{_prefix()}{launcher}-{start_time(launcher)}-{_namespace()}"


def launcher_of(path: Path) -> tuple[int, int]:
    """Number and start time of the launcher of the ranks whose file is `path`.

    (0, -1) for another kind of file, and for another container's, where process numbers mean other processes.
    """
    name = path.name.removeprefix(_prefix()).partition(".")[0]
    pid, start, namespace, *_ = [*name.split("-"), "", ""]
    here = namespace in ("", _namespace())
    return (int(pid), int(start)) if here and pid.isdigit() and start.isdigit() else (0, -1)


def remove_stale() -> None:
    """Remove the files of jobs whose launcher is gone and whose guard could not remove them."""
    for path in directory().glob(f"{_prefix()}*"):
        launcher, start = launcher_of(path)
        if launcher and start_time(launcher) != start:
            if path.suffix == ".leftovers":
                leftovers.remove_recorded(path)
            with suppress(OSError):  # another job has just removed it
                path.unlink()
    with suppress(OSError):  # there is no temporary folder
        leftovers.remove_launcher_files()


def _namespace() -> str:
    """A number of this container's PID namespace: containers may share the folder. '' if unknown."""
    try:
        return str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        return ""


def _prefix() -> str:
    return f"sorix_dist-{os.getuid()}-"
