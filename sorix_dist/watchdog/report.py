"""The report of a rank that raised: one rank's uncaught exception ends all ranks, and is printed once, last."""

from __future__ import annotations

import io
import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from types import TracebackType

from sorix_dist.watchdog import monitor, watch
from sorix_dist.watchdog.diagnosis import activity, step_of
from sorix_dist.watchdog.status_page import State

CAUSE_SECONDS = 1.0  # seconds that a rank whose MPI failed waits for a report of another one's death
QUIET_SECONDS = 4.0  # seconds that a rank that failed after another one waits silently to be ended by it
REPORT_SECONDS = 3.0  # seconds that a rank waits for the guard to print its report
FLUSH_SECONDS = 2.0  # seconds that flushing printed output may take; it blocks if nothing reads it
ABORT_SECONDS = 2.0  # seconds that MPI_Abort may take before this process ends itself

abort_all: Callable[[int], None] = lambda code: None  # noqa: E731
"""Ends all ranks with an exit code if it can reach them, else returns. `sorix_dist.comm` sets it."""


class FailureHook:
    """The `sys.excepthook` of a rank: it reports once per host which rank failed, where and why, and ends all ranks.

    The previous hook prints the traceback below the first line. A KeyboardInterrupt, which mostly reaches all ranks,
    gets one line and no traceback. Exceptions in other threads than the main one, and SystemExit, do not come here.
    """

    def __init__(self, rank: int, size: int | None) -> None:
        self.rank = rank
        self.size = size
        self._pid = os.getpid()
        self._previous = sys.excepthook

    def __call__(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if os.getpid() != self._pid:  # a child of this rank
            self._previous(kind, error, trace)
            return
        code = 130 if issubclass(kind, KeyboardInterrupt) else 1
        if kind.__module__ == "mpi4py.MPI":  # MPI may notice that another rank is gone before the guard does
            _wait_for_report(CAUSE_SECONDS)
        try:
            self._report(self._text(kind, error, trace))
        except BaseException:  # noqa: BLE001 - the job ends all the same, with a shorter report
            _print(f"{self._name()} failed with {kind.__name__}; ending all ranks\n")
        finally:
            end_all_ranks(code)

    def _text(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> str:
        flush()
        if issubclass(kind, KeyboardInterrupt):
            return f"{self._name()} was interrupted; ending all ranks\n"
        text = io.StringIO()
        try:
            with redirect_stderr(text):
                self._previous(kind, error, trace)
        except Exception:  # noqa: BLE001 - a user's hook may do anything
            text = io.StringIO()
            traceback.print_exception(kind, error, trace, file=text)
        page = watch.page()
        status = page.pages.read(page.rank) if page is not None else None
        doing = f"  {step_of(status)}{activity(status)}\n" if status is not None and status.text[0] else ""
        return f"{self._name()} failed; ending all ranks\n{doing}{text.getvalue()}"

    def _name(self) -> str:
        size = "" if self.size is None else f" of {self.size}"
        return f"rank {self.rank}{size} (host {platform.node()}, pid {os.getpid()})"

    def _report(self, text: str) -> None:
        """Have the guard print the text, when the other ranks are silent; without a guard, print it at once."""
        page = watch.page()
        if page is None:
            _print(text)
            return
        pages = page.pages
        try:
            with open(pages.last_words, "x", errors="replace") as file:
                file.write(text)
        except FileExistsError:  # another rank failed first
            time.sleep(QUIET_SECONDS)
        except OSError:
            _print(text)
            return
        else:
            page.set(State.FAILED)
            _wait_for_report(REPORT_SECONDS)
        if not pages.reported:
            _print(text)


def _wait_for_report(seconds: float) -> None:
    page, limit = watch.page(), time.monotonic() + seconds
    while page is not None and not page.pages.reported and time.monotonic() < limit and page.pages.guarded():
        time.sleep(0.01)


def _print(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except Exception:  # noqa: BLE001 - the program has put something else there
        with suppress(OSError):
            os.write(2, text.encode(errors="replace"))


def install(rank: int, size: int | None) -> None:
    """Make a FailureHook the `sys.excepthook` of this process, or update the installed one."""
    hook = sys.excepthook
    if isinstance(hook, FailureHook):
        hook.rank, hook.size = rank, size
    else:
        sys.excepthook = FailureHook(rank, size)


def end_all_ranks(code: int) -> None:
    """End this process and, through MPI or the launcher, all ranks; never returns.

    Where MPI is not initialised it is not started: that could wait for ever. Launchers end all ranks when one dies by a
    signal; when one exits, MPICH's lets the others wait in MPI_Init.
    """
    with suppress(Exception):
        watch.mark_reported()
        monitor.call_later(ABORT_SECONDS, os._exit, code)
        abort_all(code)
    with suppress(Exception):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    os._exit(code)


def flush() -> None:
    """Flush what the program has printed, within a time limit."""

    def flush_both() -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # it may be None, closed, or anything that the program has put there
                stream.flush()
        flushed.set()

    flushed = threading.Event()
    if monitor.call_later(0.0, flush_both):  # a flush here could block for ever
        flushed.wait(FLUSH_SECONDS)
