"""Metrics, arrays of a host and loaders on MPI ranks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist.utils.data import DataLoader, Dataset
from tests.parallel import sharing
from tests.train import metric_checks

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("check", metric_checks.CHECKS, ids=lambda check: check.__name__)
def test_metrics_equal_one_process(check: Callable[[int], None]) -> None:
    counting = check in (metric_checks.accuracy, metric_checks.confusion_matrix)
    for count in range(0, 41, 1 if counting else 5):
        check(count)


@pytest.mark.parametrize("check", sharing.CHECKS, ids=lambda check: check.__name__)
def test_host_shared(check: Callable[[], None]) -> None:
    check()


def test_the_rest_of_an_epoch() -> None:
    """The state of a loader that fetches ahead, with the seed that the ranks agree on."""
    data = Dataset(np.arange(31))
    loader, later = (DataLoader(data, 4, shuffle=True, num_workers=2) for _ in range(2))
    seen = []
    for batch in loader:
        seen += batch.tolist()
        if batch.rows.batch == 2:
            break
    state = loader.state_dict()
    assert (state["epoch"], state["batches"]) == (0, 3)
    assert sx.broadcast(state) == state
    later.load_state_dict(state)
    seen += [i for batch in later for i in batch.tolist()]
    assert sorted(i for part in sx.all_gather(seen) for i in part) == list(range(31))
