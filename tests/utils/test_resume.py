"""A loader goes on where another one stopped, on any number of ranks: every sample of an epoch once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextvars import ContextVar
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sorix_dist as sx
from sorix_dist.utils.data import DataLoader, Dataset, DistributedSampler
from tests.support.utils.ranks import place

NUMBERS = 60


class Numbers:
    """A data set of one's own."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return {"x": np.float32(index), "y": index}


class Counting:
    """The numbers below a length, as a stream."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.length))


def values(batch: Any) -> list[int]:
    return [int(i) for i in (batch["y"] if isinstance(batch, dict) else batch).tolist()]


def seen(make: Any, ranks: int, pieces: int | None, state: Any, stop: int | None, loops: int = 1) -> Any:
    """What all ranks together see of each batch of some loops after a state, and the state of all after `stop`
    batches of the last loop."""
    parts, states = [], []
    for rank in range(ranks):
        with place(rank, ranks, pieces):
            loader = make()
            if state is not None:
                loader.load_state_dict(json.loads(json.dumps(state)))
            for _ in range(loops - 1):
                list(loader)
            mine = []
            for batch in islice(loader, stop):
                mine.append((values(batch), (batch["y"] if isinstance(batch, dict) else batch).rows))
            parts.append(mine)
            states.append(loader.state_dict())
    assert all(each == states[0] for each in states)
    batches = []
    for mine in zip(*parts, strict=True):
        batch = [i for numbers, _ in mine for i in numbers]
        assert [rows.stop - rows.start for _, rows in mine] == [len(numbers) for numbers, _ in mine]
        assert {rows.total for _, rows in mine} == {len(batch)}
        batches.append((mine[0][1].epoch, mine[0][1].batch, batch))
    return batches, states[0]


@given(
    length=st.integers(1, NUMBERS),
    batch=st.integers(1, 70),
    before=st.integers(1, 8),
    after=st.integers(1, 8),
    pieces=st.sampled_from([None, 8]),
    kind=st.sampled_from(["array", "own", "stream"]),
    drop_last=st.booleans(),
    workers=st.sampled_from([0, 0, 0, 2]),
    epoch=st.integers(0, 2),
    data=st.data(),
)
def test_every_sample_once_after_a_stop_at_any_batch(
    length, batch, before, after, pieces, kind, drop_last, workers, epoch, data
):
    drop_last = drop_last and (kind == "stream" or batch <= length)
    count = length // batch if drop_last else -(-length // batch)
    stop = data.draw(st.integers(0, count), label="batches before the stop")

    def make() -> DataLoader:
        source = {"array": lambda: Dataset(np.arange(length)), "own": lambda: Numbers(length)}.get(
            kind, lambda: Counting(length)
        )()
        order = {} if kind == "stream" else {"shuffle": True, "seed": 5}
        return DataLoader(source, batch_size=batch, drop_last=drop_last, num_workers=workers, **order)

    whole, end = seen(make, 1, None, None, None, loops=epoch + 1)
    assert (end["epoch"], end["batches"]) == (epoch + 1, 0)
    assert [(e, b) for e, b, _ in whole] == [(epoch, b) for b in range(count)]
    flat = [i for _, _, numbers in whole for i in numbers]
    assert len(set(flat)) == len(flat) == (count * batch if drop_last else length)
    assert drop_last or sorted(flat) == list(range(length))

    first, state = seen(make, before, pieces, None, stop, loops=epoch + 1)
    if stop:  # a loop of which no batch was taken has not begun
        assert (state["epoch"], state["batches"]) == (epoch, stop)
    rest, end = seen(make, after, pieces, state, None)
    assert first + rest == whole
    assert (end["epoch"], end["batches"]) == (epoch + 1, 0)


def test_the_state_is_that_of_what_was_handed_out():
    loader = DataLoader(Dataset(np.arange(10)), batch_size=4, seed=1, shuffle=True, num_workers=1, prefetch_factor=3)

    def at() -> tuple[int, int]:
        state = loader.state_dict()
        return state["epoch"], state["batches"]

    assert at() == (0, 0)
    assert [at() for _ in loader] == [(0, 1), (0, 2), (0, 3)]
    assert at() == (1, 0)
    for _ in loader:
        break
    assert at() == (1, 1)
    assert loader.epoch == 2
    loader.set_epoch(loader.epoch)
    assert at() == (2, 0)
    loader.set_epoch(5)
    assert at() == (5, 0)


def test_a_stop_after_the_last_batch_leaves_an_empty_rest():
    """What a script does at the end of an epoch is neither left out nor done twice."""
    data = Dataset(np.arange(10))
    first, second = (DataLoader(data, batch_size=4, shuffle=True, seed=1) for _ in range(2))
    states = [first.state_dict() for _ in first]
    second.load_state_dict(states[-1])
    assert second.epoch == 0
    assert list(second) == []
    assert second.epoch == 1
    assert [b.rows.epoch for b in second] == [1, 1, 1]


def test_naming_the_epoch_that_comes_keeps_the_place():
    data = Dataset(np.arange(10))
    sampler = DistributedSampler(data, seed=1)
    for loader in (DataLoader(data, 4, shuffle=True, seed=1), DataLoader(data, 4, sampler=sampler)):
        state = {**loader.state_dict(), "epoch": 2, "batches": 1}
        loader.load_state_dict(state)
        (loader.sampler if loader.sampler is sampler else loader).set_epoch(2)
        assert [batch.rows.batch for batch in loader] == [1, 2]
        loader.load_state_dict(state)
        (loader.sampler if loader.sampler is sampler else loader).set_epoch(1)
        assert [(batch.rows.epoch, batch.rows.batch) for batch in loader] == [(1, 0), (1, 1), (1, 2)]
        assert [(batch.rows.epoch, batch.rows.batch) for batch in loader] == [(2, 0), (2, 1), (2, 2)]


def test_the_seed_comes_from_the_state_where_nobody_chose_one(monkeypatch):
    data = Dataset(np.arange(30))

    def start(seed: int) -> DataLoader:
        """As in a process that has drawn this seed."""
        monkeypatch.setattr("sorix_dist.core.random._process", sx.core.random.Seed(seed, chosen=False))
        monkeypatch.setattr("sorix_dist.core.random._seed", ContextVar("seed", default=None))
        return DataLoader(data, 7, shuffle=True)

    with place(0, 1):
        saved = start(11)
        order = [values(batch) for batch in saved]
        state = {**saved.state_dict(), "epoch": 0}
        assert state["seed"] == 11
        later = start(12)
        assert [values(batch) for batch in later] != order
        later.load_state_dict(state)
        assert [values(batch) for batch in later] == order
        sx.manual_seed(13)
        with pytest.raises(ValueError, match="saved: seed is 13 and was 11"):
            DataLoader(data, 7, shuffle=True).load_state_dict(state)
        with pytest.raises(ValueError, match="saved: seed is 3 and was 11"):
            DataLoader(data, 7, shuffle=True, seed=3).load_state_dict(state)
        DataLoader(data, 7, seed=3).load_state_dict(DataLoader(data, 7).state_dict())  # no order follows from it


def test_states_of_other_loaders():
    sx.manual_seed(0)  # a seed that was chosen is not taken over
    data = Dataset(np.arange(30))
    state = DataLoader(data, 7, shuffle=True, seed=1).state_dict() | {"batches": 2}
    for other, message in [
        (DataLoader(data, 8, shuffle=True, seed=1), r"saved: batch_size is 8 and was 7 \(it may change between"),
        (DataLoader(Dataset(np.arange(31)), 7, shuffle=True, seed=1), "saved: length is 31 and was 30$"),
        (DataLoader(data, 7, shuffle=True, seed=1, drop_last=True), "saved: drop_last is True and was False$"),
        (DataLoader(data, 7), "saved: seed is None and was 1, shuffle is False and was True$"),
        (DataLoader(Counting(30), 7), "length is None and was 30"),
        (DataLoader(Dataset(np.arange(30) + 1), 7, shuffle=True, seed=1), r"saved: data is \d+ and was \d+ \(a digest"),
    ]:
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(state)
    loader = DataLoader(data, 7, shuffle=True, seed=1)
    with pytest.raises(ValueError, match="state_dict must have batches, got"):
        loader.load_state_dict({k: v for k, v in state.items() if k != "batches"})
    with pytest.raises(ValueError, match="batches must be at most 5, got 6"):
        loader.load_state_dict({**state, "batches": 6})
    for batches in (-1, 1.5, True, "1"):
        with pytest.raises(ValueError, match=r"batches must be (an integer )?>= 0, got"):
            loader.load_state_dict({**state, "batches": batches})
    with pytest.raises(ValueError, match="epoch must be an integer >= 0, got None"):
        loader.load_state_dict({**state, "epoch": None})
    assert loader.state_dict() == state | {"batches": 0}  # nothing was changed


class Half(Dataset):
    """A data set that makes its samples itself, and says itself what it is."""

    def __init__(self, name: int) -> None:
        self.name = name

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> Any:
        return np.float32(self.name + index / 2)

    def digest(self) -> int:
        return self.name


X, Y = np.linspace(0, 1, 30), np.arange(30) % 3


@pytest.mark.parametrize(
    ("data", "others"),
    [
        (lambda: Dataset(X, Y), [Dataset(X), Dataset(X[::-1], Y), Dataset(X, Y + 1), Dataset(X * 2, Y), X]),
        (lambda: Dataset(X.astype(np.float32)), [Dataset(-X)]),
        (lambda: X, [X * 2, sx.Tensor(X[::-1].copy()), Dataset(X, Y)]),
        (lambda: Half(3), [Half(4)]),
    ],
)
def test_other_data_of_the_same_length(data: Any, others: list[Any]) -> None:
    state = json.loads(json.dumps(DataLoader(data(), 7).state_dict()))
    DataLoader(data(), 5 + 2).load_state_dict(state)
    for other in others:
        loader = DataLoader(other, 7)
        before = loader.state_dict()
        with pytest.raises(ValueError, match="data is"):
            loader.load_state_dict({**state, "epoch": 3})
        assert loader.state_dict() == before
        DataLoader(other, 7).load_state_dict({name: value for name, value in state.items() if name != "data"})


def test_data_of_which_nothing_is_known():
    """A data set of one's own makes its samples as it likes; without shard, each rank may have its own."""
    DataLoader(Numbers(30), 7).load_state_dict(DataLoader(Dataset(X, Y), 7).state_dict() | {"data": None})
    DataLoader(Numbers(30), 7).load_state_dict(DataLoader(Numbers(30), 7).state_dict())
    DataLoader(-X, 7, shard=False).load_state_dict(DataLoader(X, 7, shard=False).state_dict())


@pytest.mark.parametrize("batches", [0, 3])
def test_the_batch_size_changes_between_two_epochs(batches: int) -> None:
    """Before the first batch of an epoch, and after the last one, whose epoch then ends without another batch."""
    data = Dataset(np.arange(10))
    state = DataLoader(data, 4, shuffle=True, seed=1).state_dict() | {"epoch": 1, "batches": batches}
    loader = DataLoader(data, 3, shuffle=True, seed=1, drop_last=True)
    loader.load_state_dict(json.loads(json.dumps(state)))
    assert [batch.rows.epoch for batch in loader] == ([1, 1, 1] if batches == 0 else [])
    expected = DataLoader(data, 3, shuffle=True, seed=1, drop_last=True)
    expected.set_epoch(2)
    assert [batch.tolist() for batch in loader] == [batch.tolist() for batch in expected]
    with pytest.raises(ValueError, match="batch_size is 3 and was 4"):
        DataLoader(data, 3, shuffle=True, seed=1, drop_last=True).load_state_dict(state | {"batches": 1})
    with pytest.raises(ValueError, match="batch_size is 3 and was 4"):  # a stream does not know how many there are
        DataLoader(Counting(10), 3).load_state_dict(DataLoader(Counting(10), 4).state_dict() | {"batches": 3})


def test_batch_size_per_rank_on_another_number_of_ranks():
    data = Dataset(np.arange(30))
    with place(0, 2):
        state = DataLoader(data, batch_size_per_rank=4).state_dict()
    with place(0, 3):
        message = r"batch_size is 12 and was 8 \(on another number of ranks, give batch_size=8\)"
        with pytest.raises(ValueError, match=message):
            DataLoader(data, batch_size_per_rank=4).load_state_dict(state)
        DataLoader(data, batch_size=8).load_state_dict(state)


def test_a_stream_that_has_become_shorter():
    loader = DataLoader(Counting(10), 4)
    loader.load_state_dict({**loader.state_dict(), "batches": 4})
    with pytest.raises(ValueError, match="must have the 4 batches that were read before the stop, got 3"):
        list(loader)
