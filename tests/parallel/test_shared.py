"""Arrays of a host, on threads; tests/ranks has them on MPI ranks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist.comm import run_threads
from tests.support.parallel import sharing


@pytest.mark.parametrize(("size", "hosts"), [(1, 1), (2, 1), (3, 1), (3, 2), (4, 2)])
@pytest.mark.parametrize("check", sharing.CHECKS, ids=lambda check: check.__name__)
def test_on_threads(check: Callable[[], None], size: int, hosts: int) -> None:
    run_threads(check, size, timeout=60, hosts=hosts)


def test_hosts_that_make_other_arrays() -> None:
    def work() -> None:
        with pytest.raises(
            ValueError, match=r"what make returns must .* rank 0 has float64 \(2,\), rank 2 has float64 \(3,\)"
        ):
            sx.host_shared(lambda: np.zeros(2 + sx.parallel.world().host))

    run_threads(work, 4, timeout=60, hosts=2)


def test_some_ranks_only() -> None:
    def work() -> list[float]:
        half = sx.parallel.world().split(sx.rank() % 2)
        return sx.host_shared(lambda: np.full(2, float(sx.rank())), comm=half).tolist()

    assert run_threads(work, 4, timeout=60) == [[0, 0], [1, 1], [0, 0], [1, 1]]
