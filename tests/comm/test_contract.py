"""The communicator contract on one process and on threads; tests/ranks runs it under MPI."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sorix_dist.comm import Comm, Solo, current, run_threads
from tests.support.comm.contract import CHECKS


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_solo(check: Callable[[Comm], None]) -> None:
    check(Solo())


@pytest.mark.parametrize(("size", "hosts"), [(1, 1), (2, 1), (3, 1), (4, 1), (4, 2), (2, 2), (3, 2), (3, 3)])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_threads(check: Callable[[Comm], None], size: int, hosts: int) -> None:
    def rank() -> int:
        check(current())
        return current().rank

    assert run_threads(rank, size, timeout=100, hosts=hosts) == list(range(size))
