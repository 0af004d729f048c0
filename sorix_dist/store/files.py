"""File operations, each one of them by itself, and the order of them that makes a file appear whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

Buffer = bytes | bytearray | memoryview

PIECE = 4 << 20  # bytes that are written at a time
SUFFIX = ".tmp"
"""What the name of a file that is not complete yet ends in."""


class Disk:
    """The operations that change a disk: a test puts itself between any two of them."""

    def create(self, path: Path, mode: int = 0o666) -> int:
        """The descriptor of a new file, open for writing; its permissions are those of `mode` that the umask leaves."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)

    def write(self, descriptor: int, part: memoryview, at: int) -> int:
        """Writes the beginning of some bytes at a place in the file; returns how many."""
        return os.pwrite(descriptor, part, at)

    def flush(self, descriptor: int) -> None:
        """Returns when the file is on the disk."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """Closes a descriptor."""
        os.close(descriptor)

    def replace(self, source: Path, target: Path) -> None:
        """Gives a file another name, in one step; a file that has the name already is gone then."""
        os.replace(source, target)

    def flush_folder(self, folder: Path) -> None:
        """Returns when the names in a folder are on the disk."""
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, path: Path) -> None:
        """Removes a file."""
        os.unlink(path)

    def make_folder(self, folder: Path) -> None:
        """Makes a folder in one that exists."""
        os.mkdir(folder)


DISK = Disk()


def write_whole(
    target: Path,
    pieces: Iterable[tuple[int, Buffer]],
    disk: Disk = DISK,
    check: Callable[[Path], None] = lambda path: None,
) -> None:
    """Writes a file; returns when it is on the disk under its name.

    pieces: where each one begins, and its bytes. check: looks at the file before it gets its name, and raises if it
    must not get it. If this process dies meanwhile, the file is what it was before, and one beside it may be left
    whose name ends in `SUFFIX`. A file that is replaced hands its owner and permissions on, where the system allows it.
    OSError, naming the file, if it can't be written; nothing is left of it then.
    """
    temporary = target.with_name(f"{target.name}.{secrets.token_hex(4)}{SUFFIX}")
    before = os.stat(target) if target.exists() else None
    try:
        descriptor = disk.create(temporary) if before is None else disk.create(temporary, 0o600)
        try:
            if before is not None:
                _keep_permissions(descriptor, before)
            for at, piece in pieces:
                _write_all(descriptor, at, memoryview(piece), disk)
            disk.flush(descriptor)
        finally:
            disk.close(descriptor)
        check(temporary)
        disk.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):  # it may not be there; what went wrong first is said
            disk.remove(temporary)
        if isinstance(error, OSError):
            raise _naming(error, target) from error
        raise
    disk.flush_folder(target.parent)


def _keep_permissions(descriptor: int, before: os.stat_result) -> None:
    """Gives a new file the owner and permissions of the one that it replaces."""
    mode = stat.S_IMODE(before.st_mode)
    try:
        os.fchown(descriptor, before.st_uid, before.st_gid)
    except OSError:  # it was another user's, or of a group that this one is not in: its rights are not for this group
        mode &= ~stat.S_IRWXG
    with suppress(OSError):  # a file system without them; the file is for its owner alone then
        os.fchmod(descriptor, mode)


def make_folders(folder: Path, disk: Disk = DISK) -> None:
    """Makes a folder, and those that it is in, where they are missing; they are on the disk then."""
    if folder.is_dir():
        return
    make_folders(folder.parent, disk)
    with suppress(FileExistsError):
        disk.make_folder(folder)
    if not folder.is_dir():
        raise NotADirectoryError(20, "there is a file where a folder is wanted", str(folder))
    disk.flush_folder(folder.parent)


def _write_all(descriptor: int, at: int, piece: memoryview, disk: Disk) -> None:
    done = 0
    while done < piece.nbytes:
        done += disk.write(descriptor, piece[done : done + PIECE], at + done)


def _naming(error: OSError, target: Path) -> OSError:
    return OSError(error.errno, error.strerror or str(error), str(target))
