"""One rank that `spawn.run` started: it takes its function from the private folder and leaves its result there."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from sorix_dist.comm.pickling import dumps
from sorix_dist.launch.private import PrivateFolder
from sorix_dist.watchdog.launcher import detect
from sorix_dist.watchdog.report import end_all_ranks, flush

FOLDERS: list[PrivateFolder] = []
"""Further folders that are removed when the caller has ended."""


def main(path: str) -> None:
    """Runs the function of this rank; a failure is left in the folder at `path` too and ends all ranks."""
    folder = PrivateFolder(Path(path))
    threading.Thread(target=_end_with_caller, args=(folder,), daemon=True).start()
    launch = detect(os.environ)
    rank = launch.rank if launch is not None else 0
    _into(folder.open(f"output-{rank}", os.O_WRONLY))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    try:
        fn, args, kwargs = folder.read("call")
        result = fn(*args, **kwargs)
        try:
            data = dumps_result(result)
        except Exception as error:
            raise TypeError(f"the result, of type {type(result).__name__}, cannot be pickled: {error}") from error
    except BaseException as error:  # noqa: BLE001 - the caller raises it
        flush()
        folder.write(f"failure-{rank}", dumps(_described(error)))
        _into(os.open(os.devnull, os.O_WRONLY))  # MPI's own words about it
        end_all_ranks(1)
    folder.write(f"result-{rank}", data)


def dumps_result(result: Any) -> bytes:
    """The pickle of a result. Figures of pyplot are closed: an open one would be shown wherever it is unpickled, by a
    notebook for each rank, beside the result."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close("all")
    return dumps(result)


def _described(error: BaseException) -> tuple[float, bytes | None, str, str]:
    """When it was (by the clock that all processes of a host share), the exception, in a line, and its traceback."""
    if error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next  # without the frame of this file
    text = "".join(traceback.format_exception(error))
    line = "".join(traceback.format_exception_only(error)).strip()
    if isinstance(error, SystemExit):
        line = f"sys.exit({error.code!r})"
    try:
        pickled = dumps(error) if isinstance(error, Exception) else None
    except Exception:  # noqa: BLE001 - an exception may have any attributes; its text is sent instead
        pickled = None
    return time.monotonic(), pickled, line, text


def _into(file: int) -> None:
    """Sends what this process and its children print into a descriptor, mostly of the pipe that the caller reads."""
    flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def _end_with_caller(folder: PrivateFolder) -> None:
    folder.wait_for_end_of_caller()
    for each in (folder, *FOLDERS):
        each.remove()
    os.kill(os.getpid(), signal.SIGKILL)
