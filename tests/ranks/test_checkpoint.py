"""Checkpoints on MPI ranks: one outcome for all, and runs that go on with the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.support.train import outcomes, resuming

pytestmark = pytest.mark.mpi


@pytest.fixture
def folder(world) -> Iterator[Path]:
    """One folder for all ranks."""
    with TemporaryDirectory() as own:
        yield Path(world.broadcast_object(own))
        world.barrier()


def test_one_outcome(folder):
    outcomes.on_ranks(folder / "at once")
    outcomes.threads_on_ranks(folder / "in a thread")


@pytest.mark.parametrize("optimizer", resuming.OPTIMIZERS)
def test_the_same_bits(optimizer, folder):
    epoch = resuming.STEPS // resuming.EPOCHS
    resuming.stopped_and_not(folder, optimizer, [epoch, 2 * epoch], 5)
