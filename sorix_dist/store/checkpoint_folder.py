"""A folder of checkpoint files, in the order of saving, which always keeps the newest valid ones."""

from __future__ import annotations

import errno
import os
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from sorix_dist.store import tensorfile
from sorix_dist.store.files import DISK, SUFFIX, make_folders
from sorix_dist.store.tensorfile import Array

T = TypeVar("T")

_NAME = re.compile(r"(\d{6,})-step-(\d+)\.safetensors")
_UNFINISHED = re.compile(_NAME.pattern + r"\.[0-9a-f]+" + re.escape(SUFFIX))


class Entry(NamedTuple):
    """A checkpoint file. number: its place in the order of saving; step: the step that was saved."""

    number: int
    step: int
    path: Path


_last: dict[Path, int] = {}  # by folder, the number of the last checkpoint that this process has written there


class CheckpointFolder:
    """The checkpoints in a folder, where one process at a time writes.

    keep: how many valid ones stay.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self.path = path
        self.keep = keep
        self.files = DISK
        self._valid: dict[Path, tuple[int, int]] = {}  # size and time of files that were found valid

    def entries(self) -> list[Entry]:
        """All files with the name of a checkpoint, in the order of saving; none if the folder does not exist.

        OSError if it can't be read or is not a folder.
        """
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return []
        found = [(match, name) for name in names if (match := _NAME.fullmatch(name))]
        return sorted(Entry(int(match[1]), int(match[2]), self.path / name) for match, name in found)

    def next_path(self, step: int) -> Path:
        """The path for the next checkpoint. FileExistsError if another process has saved here since this one has."""
        entries = self.entries()
        number = entries[-1].number + 1 if entries else 0
        last = _last.get(self.path, number)
        for other in entries:
            if other.number > last and self._is_valid(other.path):
                raise FileExistsError(
                    errno.EEXIST,
                    "the checkpoint can't be saved, earlier ones are as they were: another job saves to this folder "
                    "too; give each a folder of its own",
                    str(other.path),
                )
        return self.path / f"{number:06}-step-{step}.safetensors"

    def write(self, path: Path, arrays: Mapping[str, Array], text: str) -> None:
        """Writes a checkpoint. When it is on the disk and was read back, removes the oldest ones beyond `keep`.

        OSError if it can't be written; earlier checkpoints are unchanged then.
        """
        try:
            make_folders(self.path, self.files)
            self._remove_unfinished()
            tensorfile.write(path, arrays, text, self.files)
        except OSError as error:
            taken = "; does another job save to this folder, too?" * (error.errno == errno.ENOENT)
            raise OSError(
                error.errno,
                f"the checkpoint can't be saved, earlier ones are as they were: {error.strerror}{taken}",
                str(path),
            ) from error
        self._trust(path)
        if match := _NAME.fullmatch(path.name):
            _last[self.path] = int(match[1])
        self._remove_old()

    def newest(self, read: Callable[[Path], T]) -> T | None:
        """What `read` returns for the newest checkpoint that it can read: without ValueError or OSError.

        None if there are no checkpoints. A warning names each one that raises; ValueError if all do, or if another
        version of this package has written one: the run would silently begin again at an older step.
        """
        entries = self.entries()
        refused = []
        for entry in reversed(entries):
            try:
                result = read(entry.path)
            except tensorfile.OtherFormat as error:
                raise ValueError(f"the checkpoint {entry.path} needs another version of sorix_dist: {error}") from error
            except (ValueError, OSError) as error:
                refused.append(f"{entry.path.name}: {error}")
                if len(refused) < len(entries):
                    warnings.warn(
                        f"the checkpoint {entry.path} can't be used, the one before is: {error}",
                        RuntimeWarning,
                        stacklevel=2,
                    )
                continue
            self._trust(entry.path)
            _last.pop(self.path, None)  # the run goes on from what is there
            return result
        if refused:
            raise ValueError(f"none of the checkpoints in {self.path} can be used: {'; '.join(refused)}")
        return None

    def newest_step(self) -> int:
        """The step of the newest valid checkpoint, -1 if there is none."""
        return next((entry.step for entry in reversed(self.entries()) if self._is_valid(entry.path)), -1)

    def _remove_unfinished(self) -> None:
        """Removes unfinished files of saves that were killed."""
        for name in os.listdir(self.path):
            if _UNFINISHED.fullmatch(name):
                self._remove(self.path / name)

    def _remove_old(self) -> None:
        """Removes files older than the newest `keep` valid checkpoints, and older ones of the same step."""
        steps: set[int] = set()
        for entry in reversed(self.entries()):
            if len(steps) >= self.keep or entry.step in steps:
                self._remove(entry.path)
            elif self._is_valid(entry.path):
                steps.add(entry.step)

    def _remove(self, path: Path) -> None:
        try:
            self._valid.pop(path, None)
            with suppress(FileNotFoundError):
                self.files.remove(path)
        except OSError as error:
            warnings.warn(
                f"{path}, which is not needed any more, can't be removed: {error}", RuntimeWarning, stacklevel=2
            )

    def _is_valid(self, path: Path) -> bool:
        """Whether a file is undamaged. It is read once, and again if its size or time has changed."""
        try:
            if self._valid.get(path) != _mark(path):
                tensorfile.verify(path)
                self._trust(path)
        except (ValueError, OSError):
            return False
        return True

    def _trust(self, path: Path) -> None:
        with suppress(OSError):  # a file that is gone is not trusted
            self._valid[path] = _mark(path)


def newest_steps(root: Path) -> dict[Path, int]:
    """The step of the newest valid checkpoint of `root` and each folder below it; links to folders are not followed."""
    steps = {Path(folder): CheckpointFolder(Path(folder), 1).newest_step() for folder, _, _ in os.walk(root)}
    return {folder: step for folder, step in steps.items() if step >= 0}


def _mark(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_size, about.st_mtime_ns
