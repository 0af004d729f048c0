"""The end of MPI, by the process that has started it.

mpi4py would end it in every process that leaves Python, a child that was forked included, which then waits for the
other ranks for ever. Import this early: it is called after what is registered later, by the user too.
"""

from __future__ import annotations

import atexit
import os
import sys

_process = 0


def started() -> None:
    """This process has started MPI."""
    global _process
    _process = os.getpid()


def _finalize() -> None:
    module = sys.modules.get("mpi4py.MPI")
    if module is not None and os.getpid() == _process and not module.Is_finalized():
        module.Finalize()


atexit.register(_finalize)
