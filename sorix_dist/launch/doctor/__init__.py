"""The checks behind `sorix-dist doctor`: is this machine and environment fit for training on several ranks?"""

from __future__ import annotations

import os
from collections.abc import Iterator

from sorix_dist.launch.doctor import machine, mpi
from sorix_dist.launch.doctor.machine import Finding

__all__ = ["Finding", "examine"]


def examine() -> Iterator[Finding]:
    """Runs all checks, in a few seconds; yields each finding as soon as it is known."""
    environ = dict(os.environ)
    yield machine.python()
    yield machine.numpy()
    yield from machine.kernels(environ)
    yield machine.cores()
    yield from mpi.checks(environ)
    yield machine.network()
    yield from machine.shared_memory()
    yield machine.schedulers(environ)
