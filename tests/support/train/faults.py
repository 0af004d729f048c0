"""Disks on which something happens before a given operation."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from sorix_dist.store.files import Disk


class Counting(Disk):
    """A disk that counts its operations, and does `fault` before the one with the number `at` (from 0).

    log: the names of the operations so far.
    """

    def __init__(self, at: int | None = None, fault: Callable[[], None] = lambda: None) -> None:
        self.at = at
        self.fault = fault
        self.log: list[str] = []

    def _before(self, name: str) -> None:
        self.log.append(name)
        if self.at == len(self.log) - 1:
            self.fault()

    def create(self, path: Path, mode: int = 0o666) -> int:
        self._before("create")
        return super().create(path, mode)

    def write(self, descriptor: int, part: memoryview, at: int) -> int:
        self._before("write")
        half = part.nbytes // 2  # as the system may do it, and so that there are states in between
        return super().write(descriptor, part[:half] if half > 50 else part, at)

    def flush(self, descriptor: int) -> None:
        self._before("flush")
        super().flush(descriptor)

    def close(self, descriptor: int) -> None:
        self._before("close")
        super().close(descriptor)

    def replace(self, source: Path, target: Path) -> None:
        self._before("replace")
        super().replace(source, target)

    def flush_folder(self, folder: Path) -> None:
        self._before("flush_folder")
        super().flush_folder(folder)

    def remove(self, path: Path) -> None:
        self._before("remove")
        super().remove(path)

    def make_folder(self, folder: Path) -> None:
        self._before("make_folder")
        super().make_folder(folder)


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class PowerLoss(BaseException):
    """The machine is off: nothing happens any more."""


class Volatile(Counting):
    """A disk whose machine loses power: what was not flushed may be there then, or not.

    Every operation from the one with the number `at` raises PowerLoss. `restart` then leaves on the real disk one of
    the states that a file system may be in: content that was not flushed is gone or cut, a name that was not
    flushed is the old one or the new one.
    """

    def __init__(self, at: int, choices: random.Random) -> None:
        super().__init__(at, self._lose)
        self.choices = choices
        self.lost = False
        self.open: dict[int, Path] = {}
        self.loose: set[Path] = set()  # files with content that is not on the disk
        self.undo: list[Callable[[], None]] = []  # changes of names that are not on the disk

    def _lose(self) -> None:
        self.lost = True

    def _before(self, name: str) -> None:
        super()._before(name)
        if self.lost:
            raise PowerLoss

    def create(self, path: Path, mode: int = 0o666) -> int:
        descriptor = super().create(path, mode)
        self.open[descriptor] = path
        self.loose.add(path)
        self.undo.append(lambda: path.unlink(missing_ok=True))
        return descriptor

    def flush(self, descriptor: int) -> None:
        super().flush(descriptor)
        self.loose.discard(self.open[descriptor])

    def replace(self, source: Path, target: Path) -> None:
        before = target.read_bytes() if target.exists() else None
        super().replace(source, target)
        if source in self.loose:
            self.loose.remove(source)
            self.loose.add(target)

        def back() -> None:
            target.rename(source)
            if before is not None:
                target.write_bytes(before)

        self.undo.append(back)

    def flush_folder(self, folder: Path) -> None:
        super().flush_folder(folder)
        self.undo.clear()

    def remove(self, path: Path) -> None:
        content = path.read_bytes()
        super().remove(path)
        self.undo.append(lambda: path.write_bytes(content))

    def restart(self) -> None:
        for path in self.loose:
            if path.exists():
                os.truncate(path, self.choices.randrange(path.stat().st_size + 1))
        # A journal keeps the order of changes: some of the last ones are undone.
        for back in reversed(self.undo[self.choices.randrange(len(self.undo) + 1) :]):
            back()


class Slow(Counting):
    """A disk that takes its time."""

    def flush(self, descriptor: int) -> None:
        time.sleep(0.3)
        super().flush(descriptor)


def fails(number: int) -> Callable[[], None]:
    def fail() -> None:
        raise OSError(number, os.strerror(number))

    return fail
