"""Random training situations on ranks that are threads; tests/ranks runs some of them under MPI."""

from __future__ import annotations

import pytest

from sorix_dist.comm import run_threads
from tests.parallel import random_training

CASES = 500


@pytest.mark.timeout(600)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_same_as_one_process(size):
    counts = run_threads(random_training.run, size, args=(range(CASES),), timeout=550)[0]
    assert counts["cases"] == CASES
    # The rule of others, which misses wherever rows or denominators are not even, as they mostly are.
    assert counts["missed"] == counts["uneven"] >= CASES * (0.5 if size > 1 else 0.1)


@pytest.mark.parametrize(("size", "hosts"), [(2, 2), (4, 2), (4, 3)])
def test_same_by_messages(size, hosts):
    assert run_threads(random_training.run, size, args=(range(1000, 1020),), hosts=hosts)[0]["cases"] == 20
