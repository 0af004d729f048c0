"""Messages between ranks: communicators over MPI, over threads, or of one process alone.

Importing it imports no mpi4py. Where a launcher started several processes, it caps their BLAS threads, makes
one rank's uncaught exception the end of all, and has a guard process see to it that no rank waits for one that is
gone; elsewhere it changes nothing.
"""

from __future__ import annotations

import os

from sorix_dist.comm import finalize  # noqa: F401 - the first, so that MPI ends last

# isort: split
from sorix_dist.comm import blas, completion, launcher, report, watch

_launch = launcher.detect(os.environ)
completion.install(os.environ, 0 if _launch is None else _launch.rank)
if _launch is not None and _launch.several:
    blas.cap_early(os.environ)  # before the imports below load NumPy, which reads the environment
    if watch.join(_launch):
        report.install(_launch.rank, _launch.size)

from sorix_dist.comm.checked import Checked  # noqa: E402
from sorix_dist.comm.errors import CollectiveMismatch, RankFailed  # noqa: E402
from sorix_dist.comm.mpi import MpiComm  # noqa: E402
from sorix_dist.comm.protocol import DONE, Comm, Exchange, Op, Window, Wire, Work  # noqa: E402
from sorix_dist.comm.solo import Solo  # noqa: E402
from sorix_dist.comm.threads import run_threads  # noqa: E402
from sorix_dist.comm.watch import note  # noqa: E402
from sorix_dist.comm.world import adopt, current, init, is_initialized, using  # noqa: E402

__all__ = [
    "DONE",
    "Checked",
    "CollectiveMismatch",
    "Comm",
    "Exchange",
    "MpiComm",
    "Op",
    "RankFailed",
    "Solo",
    "Window",
    "Wire",
    "Work",
    "adopt",
    "current",
    "init",
    "is_initialized",
    "note",
    "run_threads",
    "using",
]
