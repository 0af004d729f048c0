"""What every test needs, and what it leaves as it found it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from sorix_dist.comm import blas
from tests.support.launching import MPIRUN

settings.register_profile("any speed", deadline=None)  # a busy machine is no failure
settings.load_profile("any speed")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_mpirun") and not MPIRUN.exists():
        pytest.skip(f"there is no {MPIRUN}")


@pytest.fixture(autouse=True)
def _threads_of_later_processes() -> Iterator[None]:
    """Ranks that are threads cap the BLAS of this process, and the environment that later processes inherit."""
    before = {name: os.environ.get(name) for name in blas.VARIABLES}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
