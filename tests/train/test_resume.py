"""A run that was stopped goes on with the bits of one that was not."""

from __future__ import annotations

from pathlib import Path

import pytest

from sorix_dist.comm import run_threads
from sorix_dist.utils.data import DataLoader
from tests.train import resuming

EPOCH = resuming.STEPS // resuming.EPOCHS
within_epochs = pytest.mark.skipif(not hasattr(DataLoader, "state_dict"), reason="loaders count epochs only")
STOPS = [
    pytest.param([EPOCH], id="after an epoch"),
    pytest.param([EPOCH, 2 * EPOCH], id="after each epoch"),
    pytest.param([3, EPOCH + 2, 2 * EPOCH + 1], marks=within_epochs, id="within epochs"),
    pytest.param([1, 2, 4, resuming.STEPS - 1], marks=within_epochs, id="at the ends"),
]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("stops", STOPS)
@pytest.mark.parametrize("optimizer", resuming.OPTIMIZERS)
def test_the_same_bits(optimizer: str, stops: list[int], size: int, tmp_path: Path) -> None:
    run_threads(resuming.stopped_and_not, size, args=(tmp_path, optimizer, stops, 5), timeout=100)


def test_the_seed_is_that_of_the_run(tmp_path: Path) -> None:
    """A program that sets another seed, or none, goes on with the run's."""
    resuming.stopped_and_not(tmp_path / "other", "momentum", [EPOCH], 77)
    resuming.stopped_and_not(tmp_path / "none", "momentum", [EPOCH], None)
