"""What a loader accepts, and the rows that its batches say they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn
from sorix_dist.comm import run_threads
from sorix_dist.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, Sampler
from tests.support.utils.ranks import place


class Words:
    """Sequences of different lengths: sample i is i + 1 times the number i."""

    def __init__(self, length: int = 10) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return np.full(index + 1, index)


def padded(samples: list[Any]) -> Any:
    """A row for each sample."""
    longest = max(map(len, samples))
    return sx.tensor(np.stack([np.pad(s, (0, longest - len(s))) for s in samples])), sx.tensor(
        [len(s) for s in samples]
    )


def joined(samples: list[Any]) -> Any:
    """All elements of all samples one after the other: as many rows as samples only where each has one element."""
    return sx.tensor(np.concatenate(samples))


def summed(samples: list[Any]) -> Any:
    """A row for each sample, and a number for all of them."""
    return padded(samples)[0], sx.tensor(float(len(samples)))


def padded_arrays(samples: list[Any]) -> Any:
    """As NumPy arrays."""
    words, lengths = padded(samples)
    return words.numpy(), lengths.numpy().astype(np.int16)


def tags(batch: Any) -> list[Any]:
    """What each tensor says of its rows, without the order of the samples."""
    tensors = batch if isinstance(batch, tuple) else (batch,)
    return [tensor.rows and tensor.rows[:-1] for tensor in tensors]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("collate_fn", "tagged"),
    [(padded, True), (padded_arrays, True), (joined, False), (np.concatenate, False), (summed, False)],
)
def test_all_ranks_tag_or_none(collate_fn: Any, tagged: bool, size: int) -> None:
    for batch_size in (1, 2, 4, 7):
        for rank in range(size):
            with place(rank, size):
                for number, batch in enumerate(DataLoader(Words(), batch_size, collate_fn=collate_fn)):
                    total = min(batch_size, 10 - number * batch_size)
                    start, stop = total * rank // size, total * (rank + 1) // size
                    wanted = (start, stop, total, 0, number) if tagged else None
                    assert set(tags(batch)) == {wanted}
                    if tagged:
                        assert [len(tensor) for tensor in batch] == [stop - start] * 2


def test_a_rank_without_rows_has_the_form_of_a_batch() -> None:
    with place(0, 3):
        words, lengths = next(iter(DataLoader(Words(), 1, collate_fn=padded)))
    assert words.shape == (0, 1)
    assert lengths.shape == (0,)
    assert words.dtype == "int64"


def test_a_collate_fn_that_changes_its_mind() -> None:
    """It leaves samples out, but not of the first two: the other ranks have tagged this batch."""

    def valid(samples: list[Any]) -> Any:
        return sx.tensor([len(s) for s in samples if len(s) != 6])

    batches = iter(DataLoader(Words(), 4, collate_fn=valid))
    assert next(batches).rows[:-1] == (0, 4, 4, 0, 0)
    with pytest.raises(
        ValueError, match=r"must make 4 rows of 4 samples.*of shape \(3,\).*one_row_per_sample=False"
    ) as e:
        next(batches)
    assert "batch 1 of epoch 0" in e.value.__notes__[0]
    kept = list(DataLoader(Words(), 4, collate_fn=valid, one_row_per_sample=False))
    assert [(len(batch), batch.rows) for batch in kept] == [(4, None), (3, None), (2, None)]


def test_a_collate_fn_that_needs_two_samples() -> None:
    def pairs(samples: list[Any]) -> Any:
        if len(samples) < 2:
            raise ArithmeticError("a pair has two")
        return sx.tensor([len(s) for s in samples])

    with pytest.raises(ArithmeticError) as caught:
        next(iter(DataLoader(Words(), 4, collate_fn=pairs)))
    assert "one_row_per_sample=True" in caught.value.__notes__[0]
    batch = next(iter(DataLoader(Words(), 4, collate_fn=pairs, one_row_per_sample=True)))
    assert batch.rows[:-1] == (0, 4, 4, 0, 0)


def test_a_collate_fn_is_tried_once_a_loader() -> None:
    calls: list[int] = []

    def counted(samples: list[Any]) -> Any:
        calls.append(len(samples))
        return padded(samples)

    loader = DataLoader(Words(), 5, collate_fn=counted)
    list(loader), list(loader)
    assert calls == [1, 2, 5, 5, 5, 5]
    calls.clear()
    list(DataLoader(Words(1), 5, collate_fn=counted))
    assert calls == [1, 2, 1]
    calls.clear()
    list(DataLoader(Words(), 5, collate_fn=counted, shard=False))
    assert calls == [5, 5]


def test_nothing_is_tagged_that_is_not_shared() -> None:
    with place(1, 2):
        batches = list(DataLoader(Dataset(np.arange(6)), 4, shard=False))
    assert [batch.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5]]
    assert [batch.rows for batch in batches] == [None, None]


def test_gradients_with_a_collate_fn_are_those_of_one_process() -> None:
    """Tagged or not, with ranks that have no rows."""
    x = np.random.default_rng(0).standard_normal((11, 3))

    def steps(collate_fn: Any, batch_size: int) -> Any:
        sx.manual_seed(1)
        model = nn.Linear(3, 2)
        for parameter in model.parameters():
            parameter.data = parameter.data.astype(np.float64)
        model = sx.DistributedDataParallel(model)
        for batch in DataLoader(Dataset(x), batch_size, collate_fn=collate_fn):
            nn.CrossEntropyLoss()(model(batch), np.zeros(len(batch), int)).backward()
        return [p.grad.numpy().copy() for p in model.parameters()]

    def twice(samples: list[Any]) -> Any:
        return sx.tensor(np.repeat(samples, 2, axis=0))

    for collate_fn in (lambda samples: sx.tensor(np.stack(samples)), twice):
        for batch_size in (2, 4):
            wanted = run_threads(steps, 1, (collate_fn, batch_size))[0]
            for got in run_threads(steps, 3, (collate_fn, batch_size), timeout=60):
                assert all(np.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(got, wanted, strict=True))


class Numbers(IterableDataset):
    """The numbers from 100 * epoch on."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.epoch = 0
        self.told: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.told.append(epoch)

    def __iter__(self) -> Iterator[Any]:
        for i in range(self.length):
            yield np.float32(100 * self.epoch + i), i


@pytest.mark.parametrize("pieces", [None, 8])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_a_stream_is_shared_row_by_row(size: int, pieces: int | None) -> None:
    numbers = Numbers(23)
    whole = [(x.tolist(), y.tolist(), x.rows, y.rows) for x, y in DataLoader(numbers, 5)]
    assert numbers.told == [0]
    assert [len(x) for x, *_ in whole] == [5, 5, 5, 5, 3]
    parts = []
    for rank in range(size):
        with place(rank, size, pieces):
            loader = DataLoader(Numbers(23), 5)
            parts.append(list(loader))
            assert [x.rows.epoch for x, _ in loader] == [1] * 5
            assert loader.dataset.told == [0, 1]
    for number, batches in enumerate(zip(*parts, strict=True)):
        assert [i for x, _ in batches for i in x.tolist()] == whole[number][0]
        assert all(x.rows == y.rows and len(x) == len(y) == x.rows.stop - x.rows.start for x, y in batches)
        assert all((x.dtype, y.dtype) == ("float32", "int64") for x, y in batches)


def test_streams() -> None:
    loader = DataLoader(Numbers(23), 5, drop_last=True)
    assert [len(x) for x, _ in loader] == [5, 5, 5, 5]
    assert [x.tolist() for x in DataLoader(iter(range(5)), 3)] == [[0, 1, 2], [3, 4]]
    assert [x.rows.total for x in DataLoader((i for i in range(3)), 1, collate_fn=sx.tensor)] == [1, 1, 1]
    once = DataLoader(iter(range(5)), 3)
    list(once)
    with pytest.raises(ValueError, match="at least one sample, got none from range_iterator in epoch 1; an iterator"):
        list(once)
    with pytest.raises(TypeError, match="length of a DataLoader over Numbers, a stream, is unknown"):
        len(loader)
    with pytest.raises(ValueError, match="shuffle=True needs a data set with __len__ and __getitem__, got Numbers"):
        DataLoader(Numbers(5), shuffle=True)
    with pytest.raises(ValueError, match="sampler needs a data set with __len__ and __getitem__, got Numbers"):
        DataLoader(Numbers(5), sampler=Sampler(5))
    with pytest.raises(NotImplementedError, match="Half must define __iter__"):
        list(DataLoader(type("Half", (IterableDataset,), {})()))


def test_a_data_set_with_indices_is_told_the_epoch_too() -> None:
    class Changing(Words):
        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __getitem__(self, index: int) -> Any:
            return index + 100 * self.epoch

    loader = DataLoader(Changing(3))
    assert [[b.tolist() for b in loader] for _ in range(2)] == [[[0, 1, 2]], [[100, 101, 102]]]


def test_batch_size_per_rank() -> None:
    data = Dataset(np.arange(20))
    for size in (1, 2, 3):
        with place(size - 1, size):
            loader = DataLoader(data, batch_size_per_rank=4)
            assert loader.batch_size == 4 * size
            assert len(loader) == -(-20 // (4 * size))
            assert [len(batch) for batch in loader][:-1] == [4] * (len(loader) - 1)
            assert DataLoader(data, batch_size_per_rank=4, shard=False).batch_size == 4
    with pytest.raises(ValueError, match="exclude each other, got batch_size=4 and batch_size_per_rank=2"):
        DataLoader(data, 4, batch_size_per_rank=2)
    with pytest.raises(ValueError, match="batch_size_per_rank must be >= 1, got 0"):
        DataLoader(data, batch_size_per_rank=0)
    with place(0, 6), pytest.raises(ValueError, match="at most the data set's length 20 with drop_last, got 24"):
        len(DataLoader(data, batch_size_per_rank=4, drop_last=True))


def test_distributed_sampler_as_in_pytorch() -> None:
    data = Dataset(np.arange(10))
    sampler = DistributedSampler(data, seed=3)
    loader = DataLoader(data, 4, sampler=sampler)
    same = DataLoader(data, 4, shuffle=True, seed=3)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        orders.append([batch.tolist() for batch in loader])
        assert orders[-1] == [batch.tolist() for batch in same]
    sampler.set_epoch(1)
    assert [batch.tolist() for batch in loader] == orders[1]
    assert [batch.tolist() for batch in loader] == orders[2]  # it advances by itself

    parts = [DistributedSampler(data, num_replicas=3, rank=rank, seed=3) for rank in range(3)]
    assert [len(part) for part in parts] == [4, 3, 3]
    taken = [list(part) for part in parts]
    assert sorted(i for part in taken for i in part) == list(range(10))
    assert [list(part) for part in parts] != taken
    parts[0].set_epoch(0)
    assert list(parts[0]) == taken[0]
    with place(1, 3):
        assert list(DistributedSampler(data, seed=3)) == taken[1]
    assert list(DistributedSampler(data, shuffle=False)) == list(range(10))


def test_an_order_of_ones_own() -> None:
    class Backwards(Sampler):
        def order(self, epoch: int) -> Any:
            return np.arange(self.length)[::-1]

    assert [b.tolist() for b in DataLoader(Dataset(np.arange(3)), 2, sampler=Backwards(3))] == [[2, 1], [0]]


def test_bad_samplers() -> None:
    data = Dataset(np.arange(10))
    with pytest.raises(TypeError, match="sampler must be a Sampler, or an object whose __iter__ gives the indices"):
        DataLoader(data, sampler=3)
    with pytest.raises(ValueError, match="sampler excludes shuffle and seed"):
        DataLoader(data, shuffle=True, sampler=Sampler(10))
    with pytest.raises(ValueError, match="sampler must be of the data set's length 10, got 9"):
        DataLoader(data, sampler=Sampler(9))
    with pytest.raises(TypeError, match="dataset must have __len__, got int"):
        DistributedSampler(10)
    with pytest.raises(ValueError, match="num_replicas and rank go together, got 2 and None"):
        DistributedSampler(data, 2)
    with pytest.raises(ValueError, match="rank must be less than num_replicas, got rank 2 of 2"):
        DistributedSampler(data, 2, 2)
    with pytest.raises(ValueError, match="num_replicas must be >= 1, got 0"):
        DistributedSampler(data, 0, 0)
    with pytest.raises(ValueError, match="epoch must be >= 0, got -1"):
        DistributedSampler(data).set_epoch(-1)


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="collate_fn must be a function of a list of samples, got str"):
        DataLoader(Words(), collate_fn="stack")  # type: ignore[arg-type]
    for dataset, missing in [(3, "__len__"), (type("Sized", (), {"__len__": lambda self: 3})(), "__getitem__")]:
        with pytest.raises(TypeError, match=f"dataset must have {missing}, or __iter__ alone"):
            DataLoader(dataset)
    with pytest.raises(
        ValueError, match=r"same shape to be stacked, got \(1,\) and \(2,\) \(number 1 of the batch\)"
    ) as e:
        list(DataLoader(Words(), 2))
    assert "whose samples are 0, 1" in e.value.__notes__[0]


def test_a_memory_map_is_read_batch_by_batch(tmp_path: Any) -> None:
    path = tmp_path / "large.npy"
    rows, columns = 40_000, 1_000  # 160 MB, of which the file system stores nothing
    np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, columns)).flush()
    data = Dataset(np.load(path, mmap_mode="r"), np.arange(rows))
    base = data.X
    while base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert base is not None
    before = resident_file_pages()
    batches = iter(DataLoader(data, 64, shuffle=True, seed=0, num_workers=1))
    x, y = next(batches)
    assert x.shape == (64, columns)
    assert y.shape == (64,)
    assert x.array.base is None  # the batch itself is memory of its own
    assert resident_file_pages() - before < 60e6


def resident_file_pages() -> int:
    """Bytes of mapped files that this process holds in memory."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssFile"))
