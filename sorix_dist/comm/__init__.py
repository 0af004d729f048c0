"""Messages between ranks: communicators over MPI, over threads, or of one process alone.

Importing it imports no mpi4py. Where a launcher started several processes, it caps their BLAS threads and
makes one rank's uncaught exception the end of all; elsewhere it changes nothing.
"""

from __future__ import annotations

import os

from sorix_dist.comm import blas, completion, launcher, watch

_launch = launcher.detect(os.environ)
completion.install(os.environ, 0 if _launch is None else _launch.rank)
if _launch is not None and _launch.several:
    blas.cap_early(os.environ)  # before the imports below load NumPy, which reads the environment
    watch.install(_launch.rank, _launch.size)

from sorix_dist.comm.mpi import MpiComm  # noqa: E402
from sorix_dist.comm.protocol import DONE, Comm, Op, Window, Work  # noqa: E402
from sorix_dist.comm.solo import Solo  # noqa: E402
from sorix_dist.comm.threads import CollectiveMismatch, RankFailed, run_threads  # noqa: E402
from sorix_dist.comm.world import current, init, is_initialized, using  # noqa: E402

__all__ = [
    "DONE",
    "CollectiveMismatch",
    "Comm",
    "MpiComm",
    "Op",
    "RankFailed",
    "Solo",
    "Window",
    "Work",
    "current",
    "init",
    "is_initialized",
    "run_threads",
    "using",
]
