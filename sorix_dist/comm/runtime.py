"""The start and the end of MPI in this process.

mpi4py would finalize MPI in every process that leaves Python, even in a forked child, which then waits for the other
ranks for ever. Import this module early: atexit runs its function last.
"""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import os
import sys
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING

from sorix_dist.comm import mismatch
from sorix_dist.comm.protocol import SharedMemoryFull
from sorix_dist.comm.shared_memory import SHARED_MEMORY, check_free, free_bytes
from sorix_dist.watchdog.launcher import Launch

if TYPE_CHECKING:
    from types import ModuleType

OPEN_MPI_BYTES = 16 << 20  # bytes of shared memory that a rank of Open MPI asks for, whether or not it uses them
MPICH_BYTES = 6 << 20  # bytes of shared memory that each rank of MPICH uses for messages, windows aside

_started_by = 0


def running_mpi() -> ModuleType | None:
    """The module mpi4py.MPI if this program has imported it and MPI is initialised and not finalised."""
    module = sys.modules.get("mpi4py.MPI")
    if module is not None and module.Is_initialized() and not module.Is_finalized():
        return module
    return None


def start_mpi(launch: Launch | None = None, limit: float | None = None) -> ModuleType:
    """Import mpi4py.MPI and initialise MPI, unless the program did; return the module.

    LaunchMismatch if the launcher of `launch` cannot start this MPI library, which would leave every process alone or
    abort without naming the cause. ImportError or RuntimeError if mpi4py or its MPI library cannot be loaded. If
    MPI_Init takes more than `limit` seconds, the process ends with exit code 1 and its stack on stderr.
    """
    running = running_mpi()
    if running is not None:
        return running
    import mpi4py

    if "mpi4py.MPI" not in sys.modules:
        mpi4py.rc.initialize = False  # and then does not finalize, unless it is told to
        # Open MPI's ucx component prints an error for each shared window and then declines; others serve it.
        os.environ.setdefault("OMPI_MCA_osc", "^ucx")
    from mpi4py import MPI

    vendor, version = MPI.get_vendor()
    mismatch.check(mismatch.before_init(launch, vendor, version, os.environ))
    if not MPI.Is_initialized():
        _check_shared_memory(launch, vendor)
        # MPI_Init does not release Python's global lock: only a C thread can enforce a limit.
        if limit is not None:
            with suppress(RuntimeError, OSError):  # there can be no more threads, or descriptor 2 is closed
                faulthandler.dump_traceback_later(limit, exit=True, file=2)
        MPI.Init_thread()
        if mpi4py.rc.finalize is not False:
            global _started_by
            _started_by = os.getpid()
        if limit is not None:
            faulthandler.cancel_dump_traceback_later()
    return MPI


def _check_shared_memory(launch: Launch | None, vendor: str) -> None:
    """Warn if messages will not fit into this host's shared memory: MPI ends without naming that."""
    if launch is None or launch.local_size is None or launch.local_size == 1:
        return
    if vendor == "MPICH" and sys.platform == "linux" and not os.access(SHARED_MEMORY, os.W_OK):
        warnings.warn(
            f"MPICH needs {SHARED_MEMORY}, and this process may not write there: mount it again as root (mount -o "
            f"remount,rw {SHARED_MEMORY}), or use Open MPI [docs: shared-memory]",
            RuntimeWarning,
            stacklevel=2,
        )
    try:
        check_free(MPICH_BYTES * launch.local_size if vendor == "MPICH" else OPEN_MPI_BYTES, free_bytes(SHARED_MEMORY))
    except SharedMemoryFull as error:
        warnings.warn(f"MPI may end by SIGBUS or without a word: {error}", RuntimeWarning, stacklevel=2)


def abort(code: int) -> None:
    """End all ranks by MPI, if it is running."""
    mpi = running_mpi()
    if mpi is not None:
        mpi.COMM_WORLD.Abort(code)


def _finalize() -> None:
    mpi = running_mpi() if os.getpid() == _started_by else None
    if mpi is not None:
        # mpi4py's Finalize keeps Python's lock, and without it no thread could replace a guard that is gone.
        end = getattr(ctypes.CDLL(mpi.__file__), "MPI_Finalize", None) or mpi.Finalize
        end()


atexit.register(_finalize)
