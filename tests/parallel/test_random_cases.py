"""Random training situations on ranks that are threads; tests/ranks runs some of them under MPI."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator
from multiprocessing.pool import Pool

import pytest

from sorix_dist.comm import run_threads
from tests.support.parallel import random_training

CASES, CHUNK = 500, 50


@pytest.fixture(scope="module")
def processes() -> Iterator[Pool]:
    """One for each core: the threads of one process share a core."""
    with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
        yield pool


@pytest.mark.timeout(600)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_same_as_one_process(size, processes):
    chunks = [(size, range(first, first + CHUNK)) for first in range(0, CASES, CHUNK)]
    counts = sum(processes.starmap(random_training.run_on_threads, chunks, chunksize=1), Counter())
    assert counts["cases"] == CASES
    # The rule of others, which misses wherever rows or denominators are not even, as they mostly are.
    assert counts["missed"] == counts["uneven"] >= CASES * (0.5 if size > 1 else 0.1)


@pytest.mark.parametrize(("size", "hosts"), [(2, 2), (4, 2), (4, 3)])
def test_same_by_messages(size, hosts):
    assert run_threads(random_training.run, size, args=(range(1000, 1020),), hosts=hosts)[0]["cases"] == 20
