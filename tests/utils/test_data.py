"""Data sets, the order of their samples, and the rows that ranks take."""

from __future__ import annotations

from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sorix_dist as sx
from sorix_dist.utils.data import BatchSampler, DataLoader, Dataset, Sampler, shard_bounds


@given(st.integers(0, 300), st.integers(1, 20))
def test_shares_are_contiguous_and_even(total: int, size: int) -> None:
    shares = [shard_bounds(total, rank, size) for rank in range(size)]
    assert shares[0][0] == 0
    assert shares[-1][1] == total
    assert all(a[1] == b[0] for a, b in pairwise(shares))
    lengths = [stop - start for start, stop in shares]
    assert max(lengths) - min(lengths) <= 1


@given(
    st.integers(1, 200), st.integers(1, 50), st.integers(1, 7), st.booleans(), st.integers(0, 2**40), st.integers(0, 9)
)
def test_ranks_together_visit_the_order_of_one(
    length: int, batch: int, size: int, shuffle: bool, seed: int, epoch: int
) -> None:
    """Global batch b is the same rows whatever the number of ranks, and an epoch is every sample once."""
    sampler = BatchSampler(Sampler(length, shuffle, seed), batch)
    alone = [indices.tolist() for _, indices in sampler.batches(epoch, 0, 1)]
    assert len(alone) == len(sampler)
    assert sorted(chain.from_iterable(alone)) == list(range(length))
    parts = [list(sampler.batches(epoch, rank, size)) for rank in range(size)]
    for number, whole in enumerate(alone):
        mine = [part[number] for part in parts]
        assert [i for _, indices in mine for i in indices.tolist()] == whole
        assert {(rows.total, rows.epoch, rows.batch) for rows, _ in mine} == {(len(whole), epoch, number)}
        assert [rows.stop - rows.start for rows, _ in mine] == [len(indices) for _, indices in mine]


def test_order_follows_from_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return Sampler(50, shuffle=True, seed=seed).order(epoch).tolist()

    np.random.default_rng().random()
    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4
    sx.manual_seed(1)
    sampler = Sampler(50, shuffle=True)
    assert sampler.order(3).tolist() == order(1, 3)


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64, np.int64, np.uint8, bool])
def test_digest_tells_data_from_other_data(kind: type) -> None:
    labels = np.arange(1000) % 10

    def digest(numbers: Any, y: Any = labels) -> int:
        return Dataset((numbers * 100).astype(kind), y).digest()

    numbers = np.random.default_rng(0).random((1000, 7, 3))
    numbers[numbers < 0.005] = 0
    others = [numbers[::-1], numbers[:, ::-1], np.random.default_rng(1).random((1000, 7, 3))]
    assert digest(numbers) == digest(numbers.copy())
    if kind is not bool:
        assert len({digest(each) for each in (numbers, *others)}) == 4
    assert digest(numbers, labels[::-1]) != digest(numbers)
    assert digest(numbers, None) != digest(numbers)


def test_digest_does_not_tell_processors_apart() -> None:
    """Which round in other ways, so that one has 1e-9 where another has 0."""
    numbers = np.random.default_rng(0).standard_normal((500, 20))
    numbers[:, 3], numbers[::7, 5] = 0, np.nan
    rounded = numbers * (1 + 1e-7)
    rounded[:, 3] = np.random.default_rng(1).standard_normal(500) * 1e-9
    assert Dataset(rounded).digest() == Dataset(numbers).digest()
    assert Dataset(rounded.astype(np.float32)).digest() == Dataset(numbers.astype(np.float32)).digest()
    assert Dataset(-numbers).digest() != Dataset(numbers).digest()


def test_digest_of_a_memory_map(tmp_path: Any) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(0).random((50, 40, 40)))
    assert Dataset(np.load(path, mmap_mode="r")).digest() == Dataset(np.load(path)).digest()


def test_drop_last() -> None:
    sampler = BatchSampler(Sampler(10), 4, drop_last=True)
    assert [rows.total for rows, _ in sampler.batches(0, 0, 1)] == [4, 4]
    with pytest.raises(ValueError, match="batch_size must be at most the data set's length 3 with drop_last, got 4"):
        BatchSampler(Sampler(3), 4, drop_last=True)


def test_epochs_advance_by_themselves() -> None:
    sx.manual_seed(0)
    loader = DataLoader(Dataset(np.arange(20)), batch_size=6, shuffle=True)
    epochs = [[x for batch in loader for x in batch.tolist()] for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    for _ in loader:  # a loop that is left early is an epoch too
        break
    assert loader.epoch == 4
    loader.set_epoch(1)
    assert [x for batch in loader for x in batch.tolist()] == epochs[1]
    assert len(loader) == 4


def test_arrays_come_in_one_piece_with_their_dtype() -> None:
    x, y = np.random.default_rng(0).random((10, 2, 3)), np.arange(10, dtype=np.int32)
    xb, yb = next(iter(DataLoader(Dataset(x, y), batch_size=4)))
    assert xb.dtype == "float64"
    assert yb.dtype == "int32"
    assert np.array_equal(xb.numpy(), x[:4])
    assert xb.rows == yb.rows
    assert xb.rows[:-1] == (0, 4, 4, 0, 0)
    only = next(iter(DataLoader(Dataset(x), batch_size=4)))
    assert only.shape == (4, 2, 3)


class _Pair(NamedTuple):
    image: Any
    label: Any


def test_data_sets_and_batches_of_ones_own() -> None:
    class Squares(Dataset):
        def __init__(self) -> None:
            super().__init__()

        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int) -> Any:
            return {"x": np.float32(index), "pair": (index, sx.tensor([float(index)]))}

    batch = next(iter(DataLoader(Squares(), batch_size=3)))
    assert batch["x"].tolist() == [0, 1, 2]
    assert batch["x"].dtype == "float32"
    assert batch["pair"][0].dtype == "int64"
    assert batch["pair"][1].shape == (3, 1)
    pairs = DataLoader(Squares(), batch_size=3, collate_fn=lambda samples: _Pair(np.ones(len(samples)), None))
    first = next(iter(pairs))
    assert isinstance(first, _Pair)
    assert first.image.rows.total == 3


def test_transforms() -> None:
    data = Dataset(
        np.arange(6.0).reshape(3, 2), np.arange(3), transform=lambda x: x * 2, target_transform=lambda y: y + 1
    )
    xb, yb = next(iter(DataLoader(data, batch_size=2)))
    assert xb.tolist() == [[0, 2], [4, 6]]
    assert yb.tolist() == [1, 2]
    assert data[2][1] == 3
    assert len(data) == 3
    assert data.fetch(np.array([], int))[0].shape == (0, 2)
