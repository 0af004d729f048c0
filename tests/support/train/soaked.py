"""A training run that faults meet, started by `soak` on ranks:  python -m tests.support.train.soaked FOLDER PLAN

PLAN is JSON: the optimizer, the seed, and a list of faults [kind, step, rank, seconds], one for each attempt.
The rank is counted round those that there are; the fault comes so many seconds after that step has begun.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import sorix_dist as sx
from tests.support.train import resuming

CHECKPOINTS, NOTES = "checkpoints", "notes"
SIGNALS = {"SIGUSR1": signal.SIGUSR1, "SIGTERM": signal.SIGTERM}


def die(number: int) -> None:
    os.kill(os.getpid(), number)


def flip_a_bit(folder: Path) -> None:
    """Damages the newest checkpoint if there is another one, and kills this rank."""
    with suppress(FileNotFoundError):  # it may be removed meanwhile
        paths = sorted((folder / CHECKPOINTS).glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
        if len(paths) > 1:
            with open(paths[-1], "r+b") as file:
                file.seek(time.time_ns() % paths[-1].stat().st_size)
                byte = file.read(1)[0]
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte ^ 1 << time.time_ns() % 8]))
    die(signal.SIGKILL)


AT_ANY_INSTANT: dict[str, Callable[[Path], object]] = {
    "kill -9": lambda _: die(signal.SIGKILL),
    "segmentation fault": lambda _: ctypes.string_at(0),
    "SIGSTOP": lambda _: die(signal.SIGSTOP),
    "os._exit(0)": lambda _: os._exit(0),
    "os._exit(3)": lambda _: os._exit(3),
    "bit flip": flip_a_bit,
    **{name: lambda _, number=number: die(number) for name, number in SIGNALS.items()},  # type: ignore[misc]
}
"""What another thread can do to the rank."""


def fail() -> None:
    raise ValueError("a bad row")


def loop() -> None:
    while True:
        time.sleep(0.1)


BETWEEN_STEPS: dict[str, Callable[[], object]] = {
    "exception": fail,
    "sys.exit(0)": lambda: sys.exit(0),
    "sys.exit(3)": lambda: sys.exit(3),
    "endless loop": loop,
}

FAULTS = [*AT_ANY_INSTANT, *BETWEEN_STEPS]


class Struck(resuming.Run):
    """A run that saves after each step, and meets the fault of its attempt."""

    def __init__(self, folder: Path, optimizer: str, seed: int, faults: list[Any]) -> None:
        super().__init__(folder / CHECKPOINTS, optimizer, seed)
        self.place = folder
        self.checkpointer = sx.Checkpointer(folder / CHECKPOINTS, async_save=True)
        self.preemption = sx.Preemption()
        self.notes = folder / NOTES
        self.attempt = sx.all_gather(len(list(self.notes.glob("attempt-*"))))[0]
        if sx.is_main_process():
            (self.notes / f"attempt-{self.attempt}").write_text(f"{sx.size()} {self.step}")
        self.fault = None
        if self.attempt < len(faults) and faults[self.attempt][2] % sx.size() == sx.rank():
            self.fault = faults[self.attempt]
        self.begins = self.step
        self.strike()

    def strike(self) -> None:
        """Lets the fault come, if it is that of this step and rank."""
        if self.fault is None or self.step != max(self.fault[1], self.begins):
            return
        kind, _, _, seconds = self.fault

        def now() -> None:
            (self.notes / f"struck-{self.attempt}").touch()
            if kind in AT_ANY_INSTANT:
                AT_ANY_INSTANT[kind](self.place)
            else:
                BETWEEN_STEPS[kind]()

        if kind in AT_ANY_INSTANT:
            timer = threading.Timer(seconds, now)
            timer.daemon = True
            timer.start()
        else:
            now()

    def after_step(self) -> None:
        self.checkpointer.save(self.step, **self.parts, mean=self.mean)
        if self.preemption.should_stop():
            self.checkpointer.wait()
            self.preemption.exit()
        self.strike()


def main() -> None:
    folder, (optimizer, seed, faults) = Path(sys.argv[1]), json.loads(sys.argv[2])
    sx.init(timeout=5, virtual_shards=8)
    run = Struck(folder, optimizer, seed, faults)
    run.train(resuming.STEPS)
    run.checkpointer.wait()
    digest = run.digest()
    if sx.all_gather(digest) != [digest] * sx.size():
        raise AssertionError("the ranks end with different bits")
    if sx.is_main_process():
        (run.notes / "digest").write_text(digest)


if __name__ == "__main__":
    main()
