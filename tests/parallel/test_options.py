"""What ranks must say alike, and what reproducible mode asks of them: errors on every rank at once."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn
from sorix_dist.comm import run_threads
from sorix_dist.utils.data import DataLoader, Dataset
from tests.support.launching import run_command


def refused(options: list[dict[str, Any]], error: type[Exception]) -> list[str]:
    """What each of so many ranks is told that starts with options of its own."""

    def start() -> str:
        mine = options[sx.comm.current().rank]
        with pytest.raises(error) as raised:
            sx.init(**mine)
        return str(raised.value)

    return run_threads(start, len(options))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([{}, {"virtual_shards": 8}], ["virtual_shards must be the same", "rank 0 has None", "rank 1 has 8"]),
        ([{"virtual_shards": 8}, {"virtual_shards": 8}, {"virtual_shards": 4}], ["rank 0 has 8", "rank 2 has 4"]),
        ([{"timeout": 5}, {"timeout": 6}], ["timeout must be the same", "rank 0 has 5", "rank 1 has 6"]),
        ([{"threads": 1}, {}], ["threads must be the same", "rank 0 has 1", "rank 1 has 'auto'"]),
    ],
)
def test_ranks_that_disagree(options: list[dict[str, Any]], words: list[str]) -> None:
    said = refused(options, ValueError)
    assert len(set(said)) == 1
    for word in words:
        assert word in said[0]


@pytest.mark.parametrize("count", [0, 3, 12, -8, 8.0, True, "8"])
def test_virtual_shards_are_a_power_of_two(count: Any) -> None:
    for said in refused([{"virtual_shards": count}] * 2, ValueError):
        assert "virtual_shards must be a power of two" in said
        assert repr(count) in said


def test_virtual_shards_are_at_least_the_ranks() -> None:
    for said in refused([{"virtual_shards": 2}] * 3, ValueError):
        assert "at least the number of ranks, 3, got 2" in said


def test_one_blas_thread() -> None:
    for said in refused([{"virtual_shards": 8, "threads": 2}] * 2, ValueError):
        assert "threads must be 1 or 'auto' with virtual_shards, got 2" in said


def test_no_other_mode_later() -> None:
    def change() -> None:
        sx.rank()
        with pytest.raises(RuntimeError, match=r"virtual_shards=8 instead of None, but the ranks are in use"):
            sx.init(virtual_shards=8)

    run_threads(change, 2)


def test_no_other_mode_later_in_a_process() -> None:
    script = "import sorix_dist as sx\nsx.rank()\nsx.init(virtual_shards=8)"
    ended = run_command([sys.executable, "-c", script])
    assert ended.code == 1
    assert "RuntimeError: init: virtual_shards=8 instead of None, but the ranks are in use" in ended.err


def test_different_seeds() -> None:
    def seeds() -> str:
        sx.manual_seed(sx.comm.current().rank // 2)
        with pytest.raises(ValueError, match="manual_seed must be called with the same value") as raised:
            sx.init()
        return str(raised.value)

    said = run_threads(seeds, 3)
    assert len(set(said)) == 1
    assert "rank 2: 1" in said[0]


def test_a_batch_of_no_loader() -> None:
    def train() -> None:
        sx.init(virtual_shards=4)
        model = sx.DistributedDataParallel(nn.Linear(3, 2))
        with pytest.raises(RuntimeError, match=r"must come from a DataLoader.*\(5, 3\)"):
            model(sx.tensor(np.ones((5, 3), np.float32)))

    run_threads(train, 2)


def test_a_reduction_by_hand() -> None:
    def train() -> None:
        sx.init(virtual_shards=4)
        model = sx.DistributedDataParallel(nn.Linear(3, 2))
        (xb,) = DataLoader(Dataset(np.ones((5, 3), np.float32)), batch_size=5)
        for loss, wanted in ((lambda s: s.sum(), 5.0), (lambda s: s.mean(), 0.5)):
            model.zero_grad()
            loss(model(xb)).backward()
            gathered = sx.all_gather(model.module.W.grad)
            assert np.array_equal(gathered[0], gathered[1])
            np.testing.assert_allclose(gathered[0].numpy(), wanted, rtol=1e-6)

    run_threads(train, 2)
