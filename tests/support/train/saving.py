"""Programs that save until they are killed, and what must hold afterwards. Started by test_kills.py:

python -m tests.support.train.saving each FOLDER               a kill before each file operation, in turn
python -m tests.support.train.saving any FOLDER COUNT [async]  kills at any instant
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np

import sorix_dist as sx
from tests.support.train.faults import Counting, kill_myself

KEEP = 2


class Part:
    """A part of a run whose state says which step it is of, in every element."""

    def __init__(self, step: int = 0, size: int = 30_000) -> None:
        self.array = np.full(size, step, np.float64)

    def state_dict(self) -> dict[str, Any]:
        return {"array": self.array}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.array = state["array"]


def files(folder: Path) -> list[str]:
    """The names in a folder."""
    return sorted(path.name for path in folder.iterdir())


def saved(folder: Path, steps: int, **options: Any) -> sx.Checkpointer:
    """A Checkpointer with so many steps saved."""
    checkpointer = sx.Checkpointer(folder, **options)
    for step in range(steps):
        checkpointer.save(step, part=Part(step, 100))
    return checkpointer


def damage(path: Path, at: int = -5) -> None:
    """Flips a bit of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 16
    path.write_bytes(content)


def check(folder: Path, acknowledged: int) -> int:
    """Asserts that the newest checkpoint is whole and no older than the last one that was acknowledged; its step."""
    part = Part()
    found = sx.Checkpointer(folder, KEEP).load_latest(part=part)
    if found is None:
        assert acknowledged < 0
        return -1
    assert found["step"] >= acknowledged, f"{found['step']} was loaded, {acknowledged} was acknowledged"
    assert found["twice"] == 2 * found["step"]
    assert (part.array == found["step"]).all()
    return found["step"]


def save_on(folder: Path, start: int, stop: int, files: Any = None, async_save: bool = False) -> int:
    """Saves steps; the last one is acknowledged. Prints each one when it is."""
    checkpointer = sx.Checkpointer(folder, KEEP, async_save)
    if files is not None:
        checkpointer.folder.files = files
    for step in range(start, stop):
        checkpointer.save(step, part=Part(step), twice=2 * step)
        acknowledged = step - async_save  # the save before is complete when the next one begins
        os.write(1, f"{acknowledged}\n".encode())
    return stop - 1


def forked(work: Callable[[], object]) -> tuple[int, TextIO]:
    """Starts a process that does `work`; its id, and what it prints."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writer, 1)
        work()
        os._exit(0)
    os.close(writer)
    return child, open(reader)


def any_instant(folder: Path, count: int, async_save: bool) -> None:
    """Saves on and on with so many kills at any instant; prints how many met a file that was being written.

    The same folder is used on and on, so that what a kill leaves behind meets the next run.
    """
    numbers = random.Random(0)
    acknowledged, during = -1, 0
    for _ in range(count):
        child, lines = forked(partial(save_on, folder, acknowledged + 1, 10**9, async_save=async_save))
        with lines:
            first = lines.readline()
            time.sleep(numbers.uniform(0, 0.05))
            os.kill(child, signal.SIGKILL)
            told = [int(line) for line in (first, *lines)]
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        acknowledged = max(acknowledged, *told)
        during += any(path.suffix == ".tmp" for path in folder.iterdir())
        acknowledged = check(folder, acknowledged)
    sys.stderr.write(f"{during} of {count} kills\n")


def each(root: Path) -> None:
    """Saves with a kill before each operation of the disk; prints how many there were."""
    at = 0
    save_on(root / "before", 0, 2)
    while True:
        folder = root / "deep" / f"{at}"
        shutil.copytree(root / "before", folder)
        new = folder / "new"
        place = folder if at % 2 else new  # every other time there is nothing before
        child, lines = forked(partial(save_on, place, 2, 5, Counting(at, kill_myself)))
        with lines:
            told = [int(line) for line in lines]
        _, status = os.waitpid(child, 0)
        last = check(place, told[-1] if told else (1 if at % 2 else -1))
        if at % 2 == 0:
            assert check(folder, 1) == 1
        save_on(place, last + 1, last + 2)
        check(place, last + 1)
        assert not [*folder.rglob("*.tmp")]
        if os.WIFEXITED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            assert told[-1] == 4
            if at % 2:
                break
        at += 1
    sys.stderr.write(f"{at} operations\n")


if __name__ == "__main__":
    if sys.argv[1] == "each":
        each(Path(sys.argv[2]))
    else:
        any_instant(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:] == ["async"])
