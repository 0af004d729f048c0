"""Parameters, gradients and optimizer state in the shared memory of MPI."""

from __future__ import annotations

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from tests.parallel.storage import CHECKS

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_storage(check):
    check()


def test_memory_is_given_back():
    for _ in range(12):
        model = sx.DistributedDataParallel(nn.Linear(300, 3000))  # 3.6 MB of parameters
        optimizer = optim.SGD(model.parameters(), momentum=0.9)
        nn.CrossEntropyLoss()(model(sx.tensor(np.ones((2, 300), np.float32))), np.zeros(2, int)).backward()
        optimizer.step()
    memory = model._replicas.memory
    assert sum(part.nbytes for window in memory.windows for part in window.parts) < 120 << 20
    assert len(memory.windows) < 12 * 4


def test_more_memory_than_there_is(world):
    with pytest.raises(MemoryError):
        world.window(1 << 50)
    world.barrier()
