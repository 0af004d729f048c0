"""The last words of a rank that raised: one rank's uncaught exception is the end of all, and is told once, last."""

from __future__ import annotations

import io
import os
import platform
import signal
import sys
import threading
import time
import traceback
from contextlib import redirect_stderr, suppress
from types import TracebackType

from sorix_dist.comm import watch
from sorix_dist.comm.table import State
from sorix_dist.comm.verdict import activity, step_of

QUIET_SECONDS = 4.0
"""How long a rank that failed at the same time as another waits silently to be ended by it."""
SAID_SECONDS = 3.0
"""How long a rank waits for the guard to pass on its last words."""
FLUSH_SECONDS = 2.0
"""Time limit for flushing printed output, which blocks if nobody reads it."""
ABORT_SECONDS = 2.0
"""How long MPI_Abort may take before this process ends itself."""


class FailureHook:
    """The `sys.excepthook` of a rank: it says who failed, where and why, once per host, and ends all ranks.

    The text after the first line comes from the hook that was there before, which prints the traceback.
    A KeyboardInterrupt, which mostly reaches all ranks, gets one line and no traceback. Exceptions in other
    threads than the main one, and SystemExit, do not come here.
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
        try:
            self._tell(self._text(kind, error, trace))
        except BaseException:  # noqa: BLE001 - the job ends all the same, with fewer words
            self._print(f"{self._who()} failed with {kind.__name__}; ending all ranks\n")
        finally:
            end_all_ranks(code)

    def _text(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> str:
        flush()
        if issubclass(kind, KeyboardInterrupt):
            return f"{self._who()} was interrupted; ending all ranks\n"
        text = io.StringIO()
        try:
            with redirect_stderr(text):
                self._previous(kind, error, trace)
        except Exception:  # noqa: BLE001 - a user's hook may do anything
            text = io.StringIO()
            traceback.print_exception(kind, error, trace, file=text)
        return f"{self._who()} failed; ending all ranks\n{self._doing()}{text.getvalue()}"

    def _who(self) -> str:
        number = "" if self.size is None else f" of {self.size}"
        return f"rank {self.rank}{number} (host {platform.node()}, pid {os.getpid()})"

    def _doing(self) -> str:
        row = watch.row()
        seen = row.table.see(row.rank) if row is not None else None
        return f"  {step_of(seen)}{activity(seen)}\n" if seen is not None and seen.text[0] else ""

    def _tell(self, text: str) -> None:
        """Have the text said once: by the guard, when the other ranks are silent; without one, here and now."""
        row = watch.row()
        if row is None:
            self._print(text)
            return
        try:
            with open(row.table.last_words, "x", errors="replace") as file:
                file.write(text)
        except FileExistsError:
            time.sleep(QUIET_SECONDS)
            if not row.table.said:  # that other one has said nothing either
                self._print(text)
            return
        except OSError:
            self._print(text)
            return
        row.set(State.FAILED)
        limit = time.monotonic() + SAID_SECONDS
        while not row.table.said and time.monotonic() < limit and row.table.guarded():
            time.sleep(0.01)
        if not row.table.said:
            self._print(text)

    def _print(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except Exception:  # noqa: BLE001 - the program has put something else there
            with suppress(OSError):
                os.write(2, text.encode(errors="replace"))


def install(rank: int, size: int | None) -> None:
    """Make the FailureHook the `sys.excepthook` of this process, or tell the one that is there more."""
    hook = sys.excepthook
    if isinstance(hook, FailureHook):
        hook.rank, hook.size = rank, size
    else:
        sys.excepthook = FailureHook(rank, size)


def end_all_ranks(code: int) -> None:
    """End this process and, through MPI or the launcher, all ranks; this never returns.

    Where MPI is not initialised, there is nobody to tell, and initialising it would wait for ranks that may
    never come. Launchers do end all ranks when one dies by a signal (not when it exits: MPICH's lets the
    others wait in MPI_Init for ever).
    """
    with suppress(Exception):
        _abort(code)
    with suppress(Exception):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    os._exit(code)


def _abort(code: int) -> None:
    watch.all_is_said()
    guard = threading.Timer(ABORT_SECONDS, os._exit, (code,))
    guard.daemon = True
    guard.start()
    if "mpi4py.MPI" in sys.modules:
        from sorix_dist.comm.mpi import running_mpi

        mpi = running_mpi()
        if mpi is not None:
            mpi.COMM_WORLD.Abort(code)


def flush() -> None:
    """Pass on what the program has printed, as far as its streams do so in time."""

    def flush_both() -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # it may be None, closed, or anything that the program has put there
                stream.flush()

    flushing = threading.Thread(target=flush_both, daemon=True)
    flushing.start()
    flushing.join(FLUSH_SECONDS)
