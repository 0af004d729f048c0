"""Parameters, gradients and optimizer state in the shared memory of MPI."""

from __future__ import annotations

import pytest

from tests.support.parallel.storage import CHECKS

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_storage(check):
    check()


def test_more_memory_than_there_is(world):
    with pytest.raises(MemoryError):
        world.window(1 << 50)
    world.barrier()
