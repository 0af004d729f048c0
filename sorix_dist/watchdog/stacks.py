"""The stacks of other processes' main threads, which they write by `faulthandler` when they get SIGUSR2."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from sorix_dist.watchdog.call_site import PACKAGE
from sorix_dist.watchdog.process import Process

SECONDS = 0.3
"""How long all processes together have to write."""


def collect(files: dict[int, tuple[Process, int]]) -> dict[int, list[str]]:
    """The stacks, innermost frame first, of those processes that answer. Each has a descriptor of the file to which it
    writes."""
    for process, _ in files.values():
        process.send(signal.SIGUSR2)
    stacks: dict[int, list[str]] = {}
    limit = time.monotonic() + SECONDS
    while len(stacks) < len(files) and time.monotonic() < limit:
        time.sleep(0.02)
        for number, (process, descriptor) in files.items():
            with suppress(OSError):
                file = Path(f"/proc/{process.pid}/fd/{descriptor}")
                if number not in stacks and file.read_text(errors="replace"):
                    time.sleep(0.01)  # until it is complete
                    stacks[number] = [line.strip() for line in file.read_text(errors="replace").splitlines()[1:]]
    return stacks


def user_frame(frames: list[str]) -> str:
    """File and line of the innermost frame that is neither this package nor the standard library, or ''."""
    library = str(Path(os.__file__).parent) + os.sep
    for frame in frames:
        name, _, rest = frame.removeprefix('File "').partition('", line ')
        if rest and not name.startswith((PACKAGE, library, "<frozen")):
            return f"{name}:{rest.split()[0]}"
    return ""
