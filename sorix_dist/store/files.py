"""Writing files whole or not at all, out of single file operations that a test can interrupt."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

Buffer = bytes | bytearray | memoryview

PIECE = 4 << 20  # bytes of one write
FLUSHED = 64 << 20  # bytes after which a file is flushed: one flush of a large file may take minutes
SUFFIX = ".tmp"  # the end of the name of an unfinished file
on_progress: Callable[[], None] = lambda: None  # noqa: E731 # called after each piece read or written


class Disk:
    """The operations that change a disk. Tests override them to fail or die between any two."""

    def create(self, path: Path, mode: int = 0o666) -> int:
        """Creates a file with permissions `mode` less the umask; returns its descriptor, open for writing."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)

    def write(self, descriptor: int, part: memoryview, at: int) -> int:
        """Writes the first bytes of `part` at an offset; returns how many."""
        return os.pwrite(descriptor, part, at)

    def flush(self, descriptor: int) -> None:
        """Waits until the file is on the disk."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """Closes a descriptor."""
        os.close(descriptor)

    def replace(self, source: Path, target: Path) -> None:
        """Renames a file atomically, over the file that has the name."""
        os.replace(source, target)

    def flush_folder(self, folder: Path) -> None:
        """Waits until the names in a folder are on the disk."""
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, path: Path) -> None:
        """Removes a file."""
        os.unlink(path)

    def make_folder(self, folder: Path) -> None:
        """Makes a folder in an existing one."""
        os.mkdir(folder)


DISK = Disk()


def write_whole(
    target: Path,
    pieces: Iterable[tuple[int, Buffer]],
    disk: Disk = DISK,
    check: Callable[[Path], None] = lambda path: None,
) -> None:
    """Writes a file; returns when it is on the disk under its name.

    pieces: offsets and bytes. check: gets the path of the written file before it is renamed to `target`, and raises if
    it is wrong. If this process dies meanwhile, `target` is what it was, and an unfinished file may stay beside it,
    with `SUFFIX` at the end of its name. A file that is replaced passes on its owner and permissions where the system
    allows it. OSError, naming `target`, if the file can't be written; the unfinished one is removed.
    """
    temporary = target.with_name(f"{target.name}.{secrets.token_hex(4)}{SUFFIX}")
    before = os.stat(target) if target.exists() else None
    try:
        descriptor = disk.create(temporary) if before is None else disk.create(temporary, 0o600)
        try:
            if before is not None:
                _copy_permissions(before, descriptor)
            unflushed = 0
            for at, piece in pieces:
                _write_all(descriptor, at, memoryview(piece), disk)
                if (unflushed := unflushed + len(piece)) >= FLUSHED:
                    disk.flush(descriptor)
                    unflushed = 0
            disk.flush(descriptor)
        finally:
            disk.close(descriptor)
        check(temporary)
        disk.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):  # the first error is the one to report
            disk.remove(temporary)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror or str(error), str(target)) from error
        raise
    disk.flush_folder(target.parent)


def _copy_permissions(before: os.stat_result, descriptor: int) -> None:
    mode = stat.S_IMODE(before.st_mode)
    try:
        os.fchown(descriptor, before.st_uid, before.st_gid)
    except OSError:  # the owner or group stays ours, so the old group's rights must not go to our group
        mode &= ~stat.S_IRWXG
    with suppress(OSError):  # a file system without permissions: the file stays readable by its owner alone
        os.fchmod(descriptor, mode)


def check_is_file(caller: str, path: Path) -> None:
    """IsADirectoryError or FileExistsError, in the name of `caller`, if `path` is no file: to open a pipe may take for
    ever, and a device may have no end."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, f"{caller}: path is a folder", str(path))
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, f"{caller}: path is a pipe or a device, not a file", str(path))


def make_folders(folder: Path, disk: Disk = DISK) -> None:
    """Makes a folder and its missing parents; returns when they are on the disk."""
    if folder.is_dir():
        return
    make_folders(folder.parent, disk)
    with suppress(FileExistsError):
        disk.make_folder(folder)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "there is a file where a folder is wanted", str(folder))
    disk.flush_folder(folder.parent)


def _write_all(descriptor: int, at: int, piece: memoryview, disk: Disk) -> None:
    done = 0
    while done < piece.nbytes:
        done += disk.write(descriptor, piece[done : done + PIECE], at + done)
        on_progress()
