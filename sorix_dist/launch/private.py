"""A folder through which a caller and its ranks exchange function, results and output; only their user can read it.

It holds `call` (from the caller), `output-R` (a pipe), `result-R` or `failure-R` (from rank R), and `caller`, which is
locked while the caller lives. All files are opened relative to the folder's descriptor: a user who may rename the
folder could put another one at its path, and a pickle read from there would run that user's code. `main` is a rank's
side of it.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
import stat
import sys
import tempfile
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from sorix_dist.comm.pickling import dumps
from sorix_dist.launch import LaunchError
from sorix_dist.watchdog.launcher import detect
from sorix_dist.watchdog.report import end_all_ranks, flush


class PrivateFolder:
    """The folder at `path`; PermissionError unless it belongs to this user and is closed to others."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        about = os.fstat(self._folder)
        if about.st_uid != os.getuid() or about.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            os.close(self._folder)
            raise PermissionError(f"{path} is another user's, or open to others: nothing in it is read")

    @classmethod
    def make(cls) -> PrivateFolder:
        """A new folder; LaunchError if other users could exchange it."""
        _check_is_safe(Path(tempfile.gettempdir()))
        return cls(Path(tempfile.mkdtemp(prefix="sorix_dist-")))

    def open(self, name: str, flags: int) -> int:
        """Opens a file in it, and returns the descriptor; a new file is for this user only."""
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._folder)

    def names(self) -> list[str]:
        """The names of its files."""
        return os.listdir(self._folder)

    def write(self, name: str, data: bytes) -> None:
        """Writes a file, whole or not at all."""
        part = f".{name}"
        with open(self.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            file.write(data)
        os.replace(part, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)

    def read(self, name: str) -> Any:
        """The object that was pickled into a file."""
        with open(self.open(name, os.O_RDONLY), "rb") as file:
            return pickle.load(file)

    def take(self, name: str) -> Any:
        """Reads and removes a file."""
        value = self.read(name)
        os.unlink(name, dir_fd=self._folder)
        return value

    def pipe(self, name: str) -> int:
        """A new named pipe, open for reading. It is open for writing too, so that it never ends."""
        os.mkfifo(self.path / name, 0o600)
        return self.open(name, os.O_RDWR | os.O_NONBLOCK)

    def lock(self) -> int:
        """Shows that the caller lives, until it ends or closes the descriptor that is returned. A child that it forks
        has the descriptor too, but no part in this kind of lock."""
        file = self.open("caller", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        fcntl.lockf(file, fcntl.LOCK_EX)
        return file

    def wait_for_end_of_caller(self) -> None:
        """Returns when the caller has released its lock, or died."""
        with suppress(FileNotFoundError):  # removed already
            fcntl.lockf(self.open("caller", os.O_RDONLY), fcntl.LOCK_SH)

    def remove(self) -> None:
        """Removes and closes the folder; several processes may do so at once."""
        for name in self.names():
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._folder)
        with suppress(OSError):  # another process was faster; a new folder at this path would not be empty
            os.rmdir(self.path)
        os.close(self._folder)


def _check_is_safe(folder: Path) -> None:
    """LaunchError if other users can rename entries of a folder, or of one above it."""
    for each in (real := folder.resolve(), *real.parents):
        about = os.stat(each)
        others = stat.S_IWOTH if about.st_gid == os.getgid() else stat.S_IWOTH | stat.S_IWGRP
        if about.st_mode & others and not about.st_mode & stat.S_ISVTX:
            raise LaunchError(
                f"run: other users can exchange what lies in {each} (mode {stat.S_IMODE(about.st_mode):04o}, no sticky "
                f"bit), where ranks would find their function: set TMPDIR to a folder of your own, or chmod +t {each}"
            )


FOLDERS: list[PrivateFolder] = []  # further folders that are removed when the caller has ended


def main(path: str) -> None:
    """Runs the function of this rank; a failure is left in the folder at `path` too and ends all ranks."""
    folder = PrivateFolder(Path(path))
    threading.Thread(target=_end_with_caller, args=(folder,), daemon=True).start()
    launch = detect(os.environ)
    rank = launch.rank if launch is not None else 0
    _into(folder.open(f"output-{rank}", os.O_WRONLY))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    try:
        fn, args, kwargs = folder.read("call")
        data = dumps_result(fn(*args, **kwargs))
    except BaseException as error:  # noqa: BLE001 - the caller raises it
        flush()
        folder.write(f"failure-{rank}", dumps(_described(error)))
        _into(os.open(os.devnull, os.O_WRONLY))  # what MPI prints about it is not shown
        end_all_ranks(1)
    folder.write(f"result-{rank}", data)


def dumps_result(result: Any) -> bytes:
    """The pickle of a result; TypeError if it has none. Figures of pyplot are closed: an open one would be shown where
    it is unpickled, by a notebook for each rank, beside the result."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close("all")
    try:
        return dumps(result)
    except Exception as error:
        raise TypeError(f"the result, of type {type(result).__name__}, cannot be pickled: {error}") from error


def _described(error: BaseException) -> tuple[float, bytes | None, str, str]:
    """When it was (by the clock that all processes of a host share), the exception, in a line, and its traceback."""
    if error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next  # without the frame of this file
    text = "".join(traceback.format_exception(error))
    line = "".join(traceback.format_exception_only(error)).strip()
    if isinstance(error, SystemExit):
        line = f"sys.exit({error.code!r})"
    try:
        pickled = dumps(error) if isinstance(error, Exception) else None
    except Exception:  # noqa: BLE001 - an exception may have any attributes; its text is sent instead
        pickled = None
    return time.monotonic(), pickled, line, text


def _into(file: int) -> None:
    """Sends what this process and its children print into a descriptor, mostly of the pipe that the caller reads."""
    flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def _end_with_caller(folder: PrivateFolder) -> None:
    folder.wait_for_end_of_caller()
    for each in (folder, *FOLDERS):
        each.remove()
    os.kill(os.getpid(), signal.SIGKILL)
