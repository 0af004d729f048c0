"""Programs that save until they are killed, and what must hold afterwards. Started by test_kills.py:

python -m tests.train.saving each FOLDER        a kill before each file operation, in turn
python -m tests.train.saving on FOLDER [async]  saves on and on; prints a step when it is acknowledged
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

import sorix_dist as sx
from tests.train.faults import Counting, kill_myself

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


def each(root: Path) -> None:
    """Saves with a kill before each operation of the disk; prints how many there were."""
    at = 0
    while True:
        folder = root / "deep" / f"{at}"
        save_on(folder, 0, 2)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(writer, 1)
            folder = folder if at % 2 else folder / "new"  # every other time there is nothing before
            save_on(folder, 2, 5, Counting(at, kill_myself))
            os._exit(0)
        os.close(writer)
        with open(reader) as lines:
            told = [int(line) for line in lines]
        _, status = os.waitpid(child, 0)
        new = folder / "new"
        last = check(folder if at % 2 else new, told[-1] if told else (1 if at % 2 else -1))
        if at % 2 == 0:
            assert check(folder, 1) == 1
        save_on(folder if at % 2 else new, last + 1, last + 2)
        check(folder if at % 2 else new, last + 1)
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
        save_on(Path(sys.argv[2]), int(sys.argv[3]), 10**9, async_save=sys.argv[4:] == ["async"])
