"""The promise on ranks that are threads: the same checks run under mpirun in tests/ranks."""

from __future__ import annotations

import pytest

import sorix_dist as sx
from sorix_dist import nn
from sorix_dist.comm import run_threads
from sorix_dist.parallel.pair_reducer import PairReducer
from sorix_dist.parallel.reducers import AllReduceReducer
from sorix_dist.parallel.shared_reducers import HierarchicalReducer
from tests.support.parallel import exactness


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("check", exactness.CHECKS, ids=lambda check: check.__name__)
def test_same_as_one_process(check, size):
    for rows in (1, 2, 3, 8, 17, 61):
        run_threads(check, size, args=(rows,))


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("check", exactness.CHECKS, ids=lambda check: check.__name__)
def test_same_on_several_hosts(check, size):
    """Where no memory is shared by all, gradients go by messages."""
    for rows in (1, 17):
        run_threads(check, size, args=(rows,), hosts=2)


@pytest.mark.parametrize(
    ("size", "hosts", "reducer"), [(4, 2, HierarchicalReducer), (3, 2, AllReduceReducer), (2, 2, PairReducer)]
)
def test_memory_is_shared_within_hosts(size, hosts, reducer):
    """Where every host has several ranks and as many as the others, each sends only its slice."""

    def wrapped():
        return type(sx.DistributedDataParallel(nn.Linear(3, 2))._buckets[0].reducer).__name__

    assert run_threads(wrapped, size, hosts=hosts) == [reducer.__name__] * size


@pytest.mark.parametrize("size", [2, 3, 4])
def test_mean_of_means_is_another_gradient(size):
    run_threads(exactness.every_rank_rule, size, args=(61,))
