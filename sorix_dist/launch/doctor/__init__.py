"""What is right and wrong with this machine and environment for training on several ranks."""

from __future__ import annotations

import os
from collections.abc import Iterator

from sorix_dist.launch.doctor import kernels, machine, mpi
from sorix_dist.launch.doctor.finding import Finding

__all__ = ["Finding", "examine"]


def examine() -> Iterator[Finding]:
    """What there is to say about this machine and environment, as it is found; a few seconds in all."""
    environ = dict(os.environ)
    yield machine.python()
    yield machine.numpy()
    yield from kernels.kernels(environ)
    yield machine.cores()
    yield from mpi.checks(environ)
    yield machine.network()
    yield from machine.shared_memory()
    yield machine.schedulers(environ)
