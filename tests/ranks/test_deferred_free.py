"""What is left of communicators that live shortly."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.comm import Checked, Comm, MpiComm, shared_memory
from sorix_dist.watchdog import watch
from sorix_dist.watchdog.status_page import DEPTH
from sorix_dist.watchdog.watch import Channel

pytestmark = pytest.mark.mpi

MANY = 50
"""More communicators than can be told apart at a time."""


def trained(part: Any) -> sx.DistributedDataParallel:
    """A model that was wrapped in an mpi4py communicator and has made a step."""
    model = sx.DistributedDataParallel(nn.Linear(30, 20), comm=part)
    optimizer = optim.SGD(model.parameters(), momentum=0.9)
    x = np.random.default_rng(sx.rank()).standard_normal((2, 30)).astype(np.float32)
    nn.CrossEntropyLoss()(model(sx.tensor(x)), np.zeros(2, int)).backward()
    optimizer.step()
    return model


def test_nothing(world: Comm) -> None:
    """Neither objects nor channels nor what MPI has, once all ranks have called for it."""
    from mpi4py import MPI

    gc.collect()
    page = watch.page()
    free = None if page is None else len(page.free_channels)
    communicators = []
    for _ in range(MANY):
        part = MPI.COMM_WORLD.Split(world.rank % 2, world.rank)
        communicators.append(weakref.ref(trained(part).comm))
        part.Free()
    gc.collect()
    assert not any(communicator() for communicator in communicators)
    assert page is None or len(page.free_channels) >= free
    assert shared_memory._unused  # what is left of the last one, at least
    new = MpiComm()  # for which all ranks come together
    assert not shared_memory._unused
    assert new.size == world.size


def test_memory_that_somebody_still_uses(world: Comm) -> None:
    """It stays, on all ranks, until nobody does."""
    from mpi4py import MPI

    weights = trained(MPI.COMM_WORLD).module.W.data
    if world.rank:
        del weights
    gc.collect()
    earlier = MpiComm()
    if world.rank:
        assert shared_memory._unused
    else:
        assert np.isfinite(weights).all()
        del weights
    new = MpiComm()
    assert not shared_memory._unused
    assert earlier.size == new.size == world.size


def test_a_rank_that_is_the_first_to_let_go(world: Comm) -> None:
    """And has another communicator in the same channel when the others still compare their last collective."""
    from mpi4py import MPI

    common = Checked(MpiComm(MPI.COMM_WORLD))
    if not common._by_memory:
        return
    for _ in range(DEPTH + 1):
        common.barrier()
    if world.rank == 0:
        at = common.channel.at
        del common
        gc.collect()
        other = Channel(watch.page(), 1)
        assert other.at == at
    for number in range(DEPTH + 2):
        world.barrier()
        if world.rank:
            common._compare(common.channel.count, 0)
        elif number:
            other.enter(2)
