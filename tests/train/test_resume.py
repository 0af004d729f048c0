"""A run that was stopped goes on with the bits of one that was not."""

from __future__ import annotations

import os
import warnings
from itertools import product
from pathlib import Path

import pytest

import sorix_dist as sx
from sorix_dist.comm import run_threads
from tests.support.train import resuming

EPOCH = resuming.STEPS // resuming.EPOCHS
STOPS = [
    pytest.param([EPOCH], id="after an epoch"),
    pytest.param([EPOCH, 2 * EPOCH], id="after each epoch"),
    pytest.param([3, EPOCH + 2, 2 * EPOCH + 1], id="within epochs"),
    pytest.param([1, 2, 4, resuming.STEPS - 1], id="at the ends"),
]

# Numbers of ranks of the three parts of one run, and the steps after which it is stopped.
SIZES = [(1, 4, 2), (4, 1, 3), (3, 2, 5)]
if os.environ.get("SORIX_DIST_LONG") == "1":
    SIZES += [(first, second, first) for first, second in product([1, 2, 3, 4], repeat=2)]
CUTS = [(EPOCH, 2 * EPOCH), (3, 2 * EPOCH + 1), (1, resuming.STEPS - 1)]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("stops", STOPS)
@pytest.mark.parametrize("optimizer", resuming.OPTIMIZERS)
def test_the_same_bits(optimizer: str, stops: list[int], size: int, tmp_path: Path) -> None:
    run_threads(resuming.stopped_and_not, size, args=(tmp_path, optimizer, stops, 5), timeout=100)


def test_the_seed_is_that_of_the_run(tmp_path: Path) -> None:
    """A program that sets another seed, or none, goes on with the run's."""
    resuming.stopped_and_not(tmp_path / "other", "momentum", [EPOCH], 77)
    resuming.stopped_and_not(tmp_path / "none", "momentum", [EPOCH], None)


@pytest.mark.timeout(600 if len(SIZES) > 3 else 120)
@pytest.mark.filterwarnings("error::RuntimeWarning")  # nothing has changed on which bits depend
@pytest.mark.parametrize("optimizer", ["momentum", "Adam"])
def test_on_another_number_of_ranks(optimizer: str, tmp_path: Path) -> None:
    """In reproducible mode each part of the run may have its own number of ranks."""
    (expected,) = run_threads(resuming.a_part, 1, args=(tmp_path / "whole", optimizer, resuming.STEPS, 8))
    for sizes, cuts in product(SIZES, CUTS):
        folder = tmp_path / f"{sizes} {cuts}"
        for size, until in zip(sizes, [*cuts, resuming.STEPS], strict=True):
            digests = run_threads(resuming.a_part, size, args=(folder, optimizer, until, 8), timeout=100)
        assert digests == [expected] * len(digests), (sizes, cuts)


def test_another_number_of_ranks_is_said(tmp_path: Path) -> None:
    """Outside of reproducible mode, bits depend on the number of ranks; and on the number of shards in it."""
    for shards, size, message in [
        (None, 1, None),
        (None, 2, "ranks: 1 then, 2 now"),
        (4, 2, "virtual shards: None then, 4 now"),
    ]:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            run_threads(part_with_shards, size, args=(tmp_path, shards), timeout=60)
        assert [message in str(warning.message) for warning in told] == [True] * bool(message), told


def part_with_shards(folder: Path, shards: int | None) -> None:
    if shards is not None:
        sx.init(virtual_shards=shards)
    checkpointer = sx.Checkpointer(folder)
    checkpointer.load_latest()
    checkpointer.save(1)
