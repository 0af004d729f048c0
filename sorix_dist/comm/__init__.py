"""Communicators: messages between ranks over MPI, between threads, or of a single process.

The import imports no mpi4py. Where a launcher started several processes, it caps their BLAS threads, joins the
watchdog (`sorix_dist.watchdog`), and makes one rank's uncaught exception end all ranks; elsewhere it changes nothing.
"""

from __future__ import annotations

import os

from sorix_dist.comm import runtime  # before all other atexit functions, so that MPI ends last

# isort: split
from sorix_dist.comm import blas
from sorix_dist.watchdog import launcher, report, watch

report.abort_all = runtime.abort
_launch = launcher.detect(os.environ)
launcher.report_completion(os.environ, 0 if _launch is None else _launch.rank)
if _launch is not None and _launch.several:
    blas.cap_early(os.environ)  # before the imports below load NumPy, which reads the environment
    if watch.join(_launch):
        report.install(_launch.rank, _launch.size)

from sorix_dist.comm.checked import Checked, agreed  # noqa: E402
from sorix_dist.comm.mpi import MpiComm  # noqa: E402
from sorix_dist.comm.protocol import Comm, Exchange, Op, RankFailed, Started, Window, Wire  # noqa: E402
from sorix_dist.comm.threads import run_threads  # noqa: E402
from sorix_dist.comm.world import Solo, adopt, current, init, is_initialized, using  # noqa: E402
from sorix_dist.watchdog.watch import CollectiveMismatch, note  # noqa: E402

__all__ = [
    "Checked", "CollectiveMismatch", "Comm", "Exchange", "MpiComm", "Op", "RankFailed", "Solo", "Started", "Window",
    "Wire", "adopt", "agreed", "current", "init", "is_initialized", "note", "run_threads", "using",
]  # fmt: skip
