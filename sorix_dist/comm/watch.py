"""One rank's end is the end of all: an uncaught exception must not leave the others waiting for ever."""

from __future__ import annotations

import os
import platform
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from types import TracebackType

QUIET_SECONDS = 1.0
"""How long a rank that failed at the same time as another waits silently to be ended by it."""
LINGER_SECONDS = 0.3
"""How long the rank that spoke stays, so that one that fails a moment later for the same reason finds that
everything is said."""
ABORT_SECONDS = 2.0
"""How long MPI_Abort may take before this process ends itself."""


class FailureHook:
    """The `sys.excepthook` of a rank: it says who failed and why, once per host, and ends all ranks.

    The text after the first line comes from the hook that was there before, which prints the traceback.
    A KeyboardInterrupt, which mostly reaches all ranks, gets one line and no traceback. Exceptions in other
    threads than the main one, and SystemExit, do not come here.
    """

    def __init__(self, rank: int, size: int | None, key: str) -> None:
        self.rank = rank
        self.size = size
        self.key = key
        self._previous = sys.excepthook
        self._claim: socket.socket | None = None

    def __call__(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        interrupted = issubclass(kind, KeyboardInterrupt)
        if self._first_on_this_host():
            with suppress(OSError, ValueError):
                number = "" if self.size is None else f" of {self.size}"
                what = "was interrupted" if interrupted else "failed"
                where = f"host {platform.node()}, pid {os.getpid()}"
                sys.stderr.write(f"rank {self.rank}{number} ({where}) {what}; ending all ranks\n")
                if not interrupted:
                    self._previous(kind, error, trace)
                sys.stderr.flush()
            time.sleep(LINGER_SECONDS)
        else:
            time.sleep(QUIET_SECONDS)
        end_all_ranks(130 if interrupted else 1)

    def _first_on_this_host(self) -> bool:
        """Whether no other rank of this host has said so: a name in Linux's abstract socket namespace can be
        taken once, leaves no file, and is free again when its owner has ended."""
        if sys.platform != "linux":
            return True
        self._claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._claim.bind(f"\0sorix_dist-failure-{self.key}")
        except OSError:
            return False
        return True


def install(rank: int, size: int | None, key: str | None = None) -> None:
    """Make the FailureHook the `sys.excepthook` of this process, or tell the one that is there more.

    `key` is what the ranks of one launch have in common and others have not; without it, it is the parent
    process, which the ranks of one host share under every mpirun.
    """
    key = key or f"{os.getuid()}-{os.getppid()}"
    hook = sys.excepthook
    if isinstance(hook, FailureHook):
        hook.rank, hook.size, hook.key = rank, size, key
    else:
        sys.excepthook = FailureHook(rank, size, key)


def end_all_ranks(code: int) -> None:
    """End this process and, through MPI or the launcher, all ranks; this never returns.

    Where MPI is not initialised, there is nobody to tell, and initialising it would wait for ranks that may
    never come. Launchers do end all ranks when one dies by a signal (not when it exits: MPICH's lets the
    others wait in MPI_Init for ever).
    """
    guard = threading.Timer(ABORT_SECONDS, os._exit, (code,))
    guard.daemon = True
    guard.start()
    if "mpi4py.MPI" in sys.modules:
        from sorix_dist.comm.mpi import running_mpi

        mpi = running_mpi()
        if mpi is not None:
            mpi.COMM_WORLD.Abort(code)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(code)
