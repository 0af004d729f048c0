"""Counts steps, ten a second; ranks that are told to make room write down where they are, and end with code 75.

python preempted.py FILE STEPS
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from types import FrameType

import sorix_dist as sx

warnings: list[int] = []


def note(number: int, frame: FrameType | None) -> None:
    """Remembers the signal until the end of the step."""
    warnings.append(number)


def main() -> int:
    """The exit code."""
    signal.signal(signal.SIGUSR1, note)
    path, steps = Path(sys.argv[1]), int(sys.argv[2])
    first = sx.all_reduce(int(path.read_text()) if path.exists() and sx.is_main_process() else 0)
    say(f"ranks: {sx.size()}, from step {first}")
    for step in range(first, steps):
        if step % 10 == 0:
            say(f"at step {step}")
        time.sleep(0.1)
        if sx.all_reduce(len(warnings)):
            end = time.monotonic() + 10  # the ranks need not hear of it at the same time
            while not warnings and time.monotonic() < end:
                time.sleep(0.01)
            warned = sx.all_reduce(min(len(warnings), 1))
            if sx.is_main_process():
                path.write_text(str(step))
            say(f"saved step {step}, warned ranks: {warned}")
            return 75
    say(f"finished step {steps}")
    return 0


def say(words: str) -> None:
    """Prints on rank 0."""
    if sx.is_main_process():
        print(words, flush=True)


if __name__ == "__main__":
    sys.exit(main())
