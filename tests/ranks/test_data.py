"""Metrics, arrays of a host and loaders on MPI ranks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist.utils.data import DataLoader, Dataset, LengthBucketSampler, Subset, one_hot, random_split
from tests.support.parallel import sharing
from tests.support.train import metric_checks

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


def test_a_split_is_the_same_on_every_rank() -> None:
    """Also if no seed was set: the ranks agree on one."""
    data = Dataset(np.arange(31))
    parts: list[Subset] = [*random_split(data, [20, 11]), *random_split(data, [0.5, 0.5])]
    for part in parts:
        indices = part.indices.tolist()
        assert sx.broadcast(indices) == indices
        seen = sx.all_gather([i for batch in DataLoader(part, 4) for i in batch.tolist()])
        assert sorted(i for rank in seen for i in rank) == sorted(indices)


def augmented(x, y, draw):
    return x + draw.normal(2), one_hot(y, 3)


def test_transformed_batches() -> None:
    """What all ranks get together is what one process gets."""
    x, y = np.arange(62.0).reshape(31, 2), np.arange(31) % 3
    loader = DataLoader(Dataset(x, y), 4, shuffle=True, seed=1, batch_transform=augmented, num_workers=1)
    whole = DataLoader(Dataset(x, y), 4, shuffle=True, seed=1, batch_transform=augmented, shard=False)
    for batch, expected in zip(loader, whole, strict=True):
        for own, all_rows in zip(batch, expected, strict=True):
            assert [row for rows in sx.all_gather(own.tolist()) for row in rows] == all_rows.tolist()


def test_padded_sequences() -> None:
    """All ranks pad to the longest sequence of the global batch."""
    lengths = np.random.default_rng(0).integers(1, 9, 31)
    data = [np.full(length, i + 1) for i, length in enumerate(lengths)]
    for batch in DataLoader(data, 4, sampler=LengthBucketSampler(lengths, 4)):
        shapes = sx.all_gather(batch.shape)
        longest = max(max((lengths[row[0] - 1] for row in rows), default=0) for rows in sx.all_gather(batch.tolist()))
        assert {shape[1] for shape in shapes} == {longest}
