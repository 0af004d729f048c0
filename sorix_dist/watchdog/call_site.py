"""The line of the user's program that called an operation, and the stacks of other processes."""

from __future__ import annotations

import contextlib
import linecache
import os
import re
import signal
import sys
import time
from itertools import islice
from pathlib import Path
from types import CodeType, FrameType
from typing import NamedTuple

from sorix_dist.watchdog.process import Process

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep

_OURS = (PACKAGE, contextlib.__file__, "<captured ")  # contextlib enters the package's own contexts; see `compile`

_CALL_OF_A_NAME = re.compile(r"[\w.]*\b(\w+)\(\s*([A-Za-z_][\w.]*)\s*[,)]")


class Site(NamedTuple):
    """A call in the user's program."""

    where: str  # file and line, '' if only this package is on the stack
    function: str
    argument: str
    """Last name of the called function, and its first argument if the source has a plain name there, else ''."""
    code: CodeType | None  # a reference to the code object, whose identity is a key of the cache


_NOWHERE = Site("", "", "", None)
_sites: dict[tuple[int, int], Site] = {}


def call_site(inside: int = 1) -> Site:
    """The innermost call outside this package on this thread's stack; at least `inside` frames are skipped."""
    try:
        frame: FrameType | None = sys._getframe(inside)
    except ValueError:  # the interpreter itself called the package, as it does at its exit
        return _NOWHERE
    while frame is not None and frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    if frame is None:
        return _NOWHERE
    code, at = frame.f_code, frame.f_lasti
    site = _sites.get((id(code), at))
    if site is None:
        where = f"{code.co_filename.removeprefix(_current_folder())}:{frame.f_lineno}"
        site = _sites[id(code), at] = Site(where, *_called(code, at), code)
    return site


def _current_folder() -> str:
    try:
        return os.getcwd() + os.sep
    except OSError:  # it was removed
        return os.sep


def _called(code: CodeType, at: int) -> tuple[str, str]:
    """The names of the function and of the first argument of the call at instruction `at`, ('', '') if unknown."""
    with contextlib.suppress(Exception):  # a diagnosis that fails must not end the program
        first, last, start, end = next(islice(code.co_positions(), at // 2, None))
        if first is not None and first == last:
            source = linecache.getline(code.co_filename, first).encode()[start:end].decode(errors="replace")
            if found := _CALL_OF_A_NAME.match(source):
                return found[1], found[2]
    return "", ""


DUMP_SECONDS = 0.3  # seconds that all processes together have to write


def collect_stacks(files: dict[int, tuple[Process, int]]) -> dict[int, list[str]]:
    """The stacks, innermost frame first, of those processes that answer. Each has a descriptor of the file to which it
    writes."""
    for process, _ in files.values():
        process.send(signal.SIGUSR2)
    stacks: dict[int, list[str]] = {}
    limit = time.monotonic() + DUMP_SECONDS
    while len(stacks) < len(files) and time.monotonic() < limit:
        time.sleep(0.02)
        for number, (process, descriptor) in files.items():
            with contextlib.suppress(OSError):
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
