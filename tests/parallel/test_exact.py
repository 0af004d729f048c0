"""The promise on ranks that are threads: the same checks run under mpirun in tests/ranks."""

from __future__ import annotations

import pytest

import sorix_dist as sx
from sorix_dist import nn
from sorix_dist.comm import run_threads
from sorix_dist.parallel.comm_hooks import HookReducer, fp16_compress
from sorix_dist.parallel.hosts import HostsReducer
from tests.support.parallel import exactness


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("check", exactness.CHECKS, ids=lambda check: check.__name__)
def test_same_as_one_process(check, size):
    for rows in (1, 2, 3, 8, 17, 61):
        run_threads(check, size, args=(rows,))


@pytest.mark.parametrize(("size", "hosts"), [(2, 2), (4, 2), (3, 2), (4, 4), (7, 3)])
@pytest.mark.parametrize("check", exactness.CHECKS, ids=lambda check: check.__name__)
def test_same_on_several_hosts(check, size, hosts):
    """Where no memory is shared by all, gradients go by messages."""
    for rows in (1, 17):
        run_threads(check, size, args=(rows,), hosts=hosts)


@pytest.mark.parametrize(
    ("size", "hosts", "hook", "reducer"),
    [
        (4, 2, None, HostsReducer),
        (3, 2, None, HostsReducer),
        (3, 2, fp16_compress, HostsReducer),
        (3, 2, print, HookReducer),
        (4, 2, print, HostsReducer),
        (2, 2, print, HostsReducer),
        (2, 1, print, HookReducer),
    ],
)
def test_hosts_send_slices(size, hosts, hook, reducer):
    """Except where a hook may expect all ranks, and some have no slice."""

    def wrapped():
        model = sx.DistributedDataParallel(nn.Linear(3, 2))
        if hook is not None:
            model.register_comm_hook(hook)
        return type(model._buckets[0].reducer).__name__

    assert run_threads(wrapped, size, hosts=hosts) == [reducer.__name__] * size


@pytest.mark.parametrize("size", [2, 3, 4])
def test_mean_of_means_is_another_gradient(size):
    run_threads(exactness.every_rank_rule, size, args=(61,))
