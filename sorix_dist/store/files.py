"""File operations, each one of them by itself, and the order of them that makes a file appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

PIECE = 4 << 20  # bytes that are written at a time
SUFFIX = ".tmp"
"""What the name of a file that is not complete yet ends in."""


class Disk:
    """The operations that change a disk: a test puts itself between any two of them."""

    def create(self, path: Path) -> int:
        """The descriptor of a new file, open for writing."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)

    def write(self, descriptor: int, part: memoryview) -> int:
        """Writes the beginning of some bytes; returns how many."""
        return os.write(descriptor, part)

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


def write_whole(target: Path, parts: Iterable[memoryview], disk: Disk = DISK) -> None:
    """Writes a file; returns when it is on the disk under its name.

    If this process dies meanwhile, the file is what it was before, and one beside it may be left whose name ends
    in `SUFFIX`. OSError, naming the file, if it can't be written; nothing is left of it then.
    """
    temporary = target.with_name(f"{target.name}.{secrets.token_hex(4)}{SUFFIX}")
    try:
        descriptor = disk.create(temporary)
        try:
            for part in parts:
                _write_all(descriptor, part, disk)
            disk.flush(descriptor)
        finally:
            disk.close(descriptor)
        disk.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):  # it may not be there; what went wrong first is said
            disk.remove(temporary)
        if isinstance(error, OSError):
            raise _naming(error, target) from error
        raise
    disk.flush_folder(target.parent)


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


def _write_all(descriptor: int, part: memoryview, disk: Disk) -> None:
    at = 0
    while at < part.nbytes:
        at += disk.write(descriptor, part[at : at + PIECE])


def _naming(error: OSError, target: Path) -> OSError:
    return OSError(error.errno, error.strerror or str(error), str(target))
