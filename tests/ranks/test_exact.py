"""The promise on MPI ranks: gradients and weights equal those of one process."""

from __future__ import annotations

import pytest

from tests.support.parallel import exactness

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("check", exactness.CHECKS, ids=lambda check: check.__name__)
def test_same_as_one_process(check):
    for rows in (1, 2, 5, 13, 61):
        check(rows)


def test_gradient_of_every_number_of_rows():
    exactness.global_gradient(*range(1, 62))
