"""What an epoch is: how long a sampler's order makes it, and that a look at the first batch is none."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn
from sorix_dist.utils.data import DataLoader, Dataset, DistributedSampler, Sampler, WeightedRandomSampler
from tests.support.utils.ranks import place

DATA = Dataset(np.arange(10))


class Part(Sampler):
    """Some of the samples, in one epoch more than in another."""

    def __init__(self, length: int, counts: tuple[int, ...] = (7, 3, 13)) -> None:
        super().__init__(length)
        self.counts = counts

    def order(self, epoch: int) -> Any:
        count = self.counts[epoch % len(self.counts)]
        return (np.arange(count) * 3 + epoch) % self.length


def values(loader: DataLoader) -> list[list[int]]:
    return [batch.tolist() for batch in loader]


# -- orders of another length than the data set


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_order_sets_the_length_of_the_epoch(ranks: int, drop_last: bool) -> None:
    wanted = [Part(10).order(epoch).tolist() for epoch in range(4)]
    whole: list[list[list[int]]] = []
    for rank in range(ranks):
        with place(rank, ranks):
            loader = DataLoader(DATA, 3, sampler=Part(10), drop_last=drop_last)
            for epoch in range(4):
                count = len(wanted[epoch]) // 3 if drop_last else -(-len(wanted[epoch]) // 3)
                assert len(loader) == count
                batches = []
                for batch in loader:
                    assert len(loader) == count
                    batches.append(batch)
                assert [batch.rows.total for batch in batches] == [3] * (len(wanted[epoch]) // 3) + (
                    [len(wanted[epoch]) % 3] if not drop_last and len(wanted[epoch]) % 3 else []
                )
                whole = [*whole, [[]] * count] if rank == 0 else whole
                whole[epoch] = [had + b.tolist() for had, b in zip(whole[epoch], batches, strict=True)]
    for epoch, batches in enumerate(whole):
        flat = [i for batch in batches for i in batch]
        assert flat == wanted[epoch][: len(flat)]
        assert len(flat) == len(wanted[epoch]) // 3 * 3 if drop_last else len(flat) == len(wanted[epoch])


@pytest.mark.parametrize("after", [1, 3])
@pytest.mark.parametrize("stop", [0, 1, 2, 4, 5])
def test_a_stop_in_such_an_epoch_leaves_its_rest(stop: int, after: int) -> None:
    loader = DataLoader(DATA, 3, sampler=Part(10))
    values(loader), values(loader)
    first = [batch.tolist() for batch in islice(loader, stop)]
    state = loader.state_dict()
    assert (state["epoch"], state["batches"], state["samples"]) == (2, stop, 13)
    rest: list[list[int]] = []
    for rank in range(after):
        with place(rank, after):
            other = DataLoader(DATA, 3, sampler=Part(10))
            other.load_state_dict(state)
            mine = values(other)
            rest = mine if not rest else [a + b for a, b in zip(rest, mine, strict=True)]
            assert len(other) == 3  # of epoch 3
    wanted = Part(10).order(2).tolist()
    assert [i for batch in first + rest for i in batch] == wanted


def test_the_state_of_another_order_is_refused() -> None:
    state = DataLoader(DATA, 3, sampler=Part(10)).state_dict()
    with pytest.raises(ValueError, match="saved: samples is 8 and was 7"):
        DataLoader(DATA, 3, sampler=Part(10, (8,))).load_state_dict(state)
    with pytest.raises(ValueError, match="state_dict must have samples"):
        DataLoader(DATA, 3, sampler=Part(10)).load_state_dict(DataLoader(DATA, 3).state_dict())
    with pytest.raises(ValueError, match="batches must be at most 3, got 4"):
        DataLoader(DATA, 3, sampler=Part(10)).load_state_dict({**state, "batches": 4})


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([], r"Odd\.order\(0\) must be a vector of at least one index, got shape \(0,\)"),
        ([[1, 2]], r"must be a vector of at least one index, got shape \(1, 2\)"),
        ([0.5], r"got shape \(1,\) and dtype float64"),
        ([True] * 10, r"dtype bool"),
        ([3, 10], r"Odd\.order\(0\) must name samples in \[0, 10\), got 10"),
        ([3, -1], r"must name samples in \[0, 10\), got -1"),
    ],
)
def test_bad_orders(order: Any, message: str) -> None:
    class Odd(Sampler):
        def order(self, epoch: int) -> Any:
            return order

    loader = DataLoader(DATA, 3, sampler=Odd(10))
    for use in (len, list):
        with pytest.raises(ValueError, match=message):
            use(loader)


def test_drop_last_needs_a_full_batch_in_every_epoch() -> None:
    with pytest.raises(ValueError, match="batch_size must be at most an epoch's length 7 with drop_last, got 8"):
        DataLoader(DATA, 8, sampler=Part(10), drop_last=True)
    loader = DataLoader(DATA, 4, sampler=Part(10), drop_last=True)
    assert len(values(loader)) == 1
    with pytest.raises(ValueError, match="an epoch's length 3 with drop_last, got 4"):
        values(loader)


def test_a_distributed_sampler_with_an_order_of_its_own() -> None:
    class Few(DistributedSampler):
        def order(self, epoch: int) -> Any:
            return np.arange(7 - epoch)

    parts = [Few(DATA, num_replicas=3, rank=rank) for rank in range(3)]
    assert [len(part) for part in parts] == [3, 2, 2]
    assert sorted(i for part in parts for i in part) == list(range(7))
    assert [len(part) for part in parts] == [2, 2, 2]
    assert len(DataLoader(DATA, 2, sampler=Few(DATA))) == 4


def test_weighted_draws() -> None:
    weights = np.array([0, 1, 0, 3, 0, 0, 0, 0, 0, 0.0])
    draws = WeightedRandomSampler(weights, 4000, seed=1)
    loader = DataLoader(DATA, 64, sampler=draws)
    assert len(loader) == 63
    first = np.concatenate([batch.numpy() for batch in loader])
    assert len(first) == 4000
    assert set(first.tolist()) == {1, 3}
    assert (first == 3).mean() == pytest.approx(0.75, abs=0.03)  # 4 standard deviations
    assert not np.array_equal(first, np.concatenate([batch.numpy() for batch in loader]))
    again = DataLoader(DATA, 64, sampler=WeightedRandomSampler(weights, 4000, seed=1))
    np.testing.assert_array_equal(first, np.concatenate([batch.numpy() for batch in again]))
    parts = []
    for rank in range(3):
        with place(rank, 3):
            parts.append(values(DataLoader(DATA, 64, sampler=WeightedRandomSampler(weights, 4000, seed=1))))
    together = [i for batches in zip(*parts, strict=True) for part in batches for i in part]
    assert together == first.tolist()
    once = WeightedRandomSampler(np.arange(10), 9, replacement=False, seed=1)
    assert sorted(once.order(0).tolist()) == list(range(1, 10))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2], 0), "num_samples must be >= 1, got 0"),
        (([[1, 2]], 1), "weights must be a vector of finite numbers >= 0"),
        (([1, -2], 1), "weights must be a vector of finite numbers >= 0"),
        (([1, np.nan], 1), "weights must be a vector of finite numbers >= 0"),
        (([0, 0], 1), "that are not all 0"),
        (([0, 1, 1], 3, False), "num_samples must be at most 2, the number of weights above 0, without replacement"),
    ],
)
def test_bad_weights(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightedRandomSampler(*arguments)


# -- a look at the first batch


def make(kind: str, workers: int) -> DataLoader:
    if kind == "stream":
        return DataLoader(type("Stream", (), {"__iter__": lambda self: iter(range(10))})(), 4, num_workers=workers)
    sampler = DistributedSampler(DATA, seed=3) if kind == "sampler" else None
    order = {"sampler": sampler} if sampler else {"shuffle": True, "seed": 3}
    return DataLoader(DATA, 12 if kind == "one batch" else 4, num_workers=workers, **order)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["array", "sampler", "stream", "one batch"])
def test_a_look_is_no_epoch(kind: str, workers: int) -> None:
    wanted, loader = make(kind, workers), make(kind, workers)
    for epoch in range(3):
        before = loader.state_dict()
        looks = [next(iter(loader)).tolist() for _ in range(2)]
        assert loader.state_dict() == before
        assert loader.epoch == epoch
        rows = next(iter(loader)).rows
        assert (rows.epoch, rows.batch) == (epoch, 0)
        batches = values(loader)
        assert batches == values(wanted)
        assert looks == [batches[0]] * 2
    assert loader.state_dict() == wanted.state_dict()


def test_a_look_into_the_rest_of_an_epoch() -> None:
    loader, other = make("array", 0), make("array", 0)
    whole = values(make("array", 0))
    other.load_state_dict({**loader.state_dict(), "batches": 1})
    assert next(iter(other)).tolist() == whole[1]
    assert next(iter(other)).tolist() == whole[1]
    assert other.state_dict()["batches"] == 1
    assert values(other) == whole[1:]


def test_a_look_that_somebody_still_holds() -> None:
    """As in `images, labels = next(dataiter)` of a tutorial, before the training loop."""
    wanted, loader = make("array", 0), make("array", 0)
    held = iter(loader)
    first = next(held).tolist()
    epochs = [values(loader) for _ in range(2)]
    assert epochs == [values(wanted) for _ in range(2)]
    assert first == epochs[0][0]
    state = loader.state_dict()
    del held
    assert loader.state_dict() == state
    held = iter(loader)
    next(held)
    values(loader)
    assert next(held).rows.epoch == 2  # it goes on, and counts no second time
    assert loader.epoch == 3


def test_batches_by_next_are_an_epoch_from_the_second_on() -> None:
    loader, wanted = make("array", 0), make("array", 0)
    for epoch in range(2):
        batches, found = iter(loader), []
        while True:
            try:
                found.append(next(batches).tolist())
            except StopIteration:
                break
            assert loader.state_dict()["batches"] == len(found)
            assert loader.state_dict()["epoch"] == epoch
        assert found == values(wanted)
    assert loader.state_dict() == wanted.state_dict()


LEAVE: list[Callable[[DataLoader], None]] = []


def leaving(function: Callable[[DataLoader], None]) -> Callable[[DataLoader], None]:
    LEAVE.append(function)
    return function


@leaving
def by_break(loader: DataLoader) -> None:
    for _ in loader:
        break


@leaving
def by_enumerate(loader: DataLoader) -> None:
    for step, _ in enumerate(loader):
        if step == 0:
            break


@leaving
def by_zip(loader: DataLoader) -> None:
    for _ in zip(loader, range(1), strict=False):
        pass


@leaving
def by_islice(loader: DataLoader) -> None:
    for _ in islice(loader, 1):
        pass


@leaving
def by_return(loader: DataLoader) -> None:
    assert any(batch.array.size for batch in loader)


@leaving
def by_an_error(loader: DataLoader) -> None:
    def work() -> None:
        for _ in loader:
            raise KeyError

    with pytest.raises(KeyError):
        work()


@leaving
def by_progress_bar(loader: DataLoader) -> None:
    tqdm = pytest.importorskip("tqdm").tqdm
    for _ in tqdm(loader, file=io.StringIO()):
        break


@pytest.mark.parametrize("leave", LEAVE, ids=lambda f: f.__name__)
def test_a_loop_that_is_left_early_is_an_epoch(leave: Callable[[DataLoader], None]) -> None:
    loader, wanted = make("array", 0), make("array", 0)
    leave(loader)
    assert loader.epoch == 1
    if leave is not by_zip:  # which asks for a batch more
        assert (loader.state_dict()["epoch"], loader.state_dict()["batches"]) == (0, 1)
    values(wanted)
    assert values(loader) == values(wanted)


def test_two_loops_at_once_are_two_epochs() -> None:
    loader, wanted = make("array", 0), make("array", 0)
    pairs = [(a.tolist(), b.tolist()) for a, b in zip(loader, loader, strict=True)]
    assert pairs == list(zip(values(wanted), values(wanted), strict=True))


def test_dropout_draws_what_it_draws_without_a_look() -> None:
    def train(look: bool) -> list[Any]:
        sx.manual_seed(4)
        model = nn.Sequential(nn.Linear(1, 6), nn.Dropout(0.5))
        loader = DataLoader(Dataset(np.arange(10, dtype=np.float32)[:, None]), 4, shuffle=True)
        found = []
        for _ in range(2):
            if look:
                next(iter(loader))
            found.extend(model(batch).tolist() for batch in loader)
        return found

    assert train(look=True) == train(look=False)
