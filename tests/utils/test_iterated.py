"""Samplers as PyTorch has them, which a loop asks for the indices of an epoch: on any number of ranks, and resumed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn
from sorix_dist.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
)

DATA = Dataset(np.arange(10))


class Odd(Sampler):
    def __init__(self, data: Any) -> None:
        super().__init__(data)
        self.data = data

    def __iter__(self) -> Iterator[int]:
        return iter([i for i in sx.randperm(len(self.data)).tolist() if i % 2])

    def __len__(self) -> int:
        return len(self.data) // 2


class OfEpoch:
    """Without a base class or a length, and with an epoch."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        yield from np.random.default_rng(self.epoch).permutation(10)


class Batches:
    def __iter__(self) -> Iterator[list[int]]:
        order = sx.randperm(10).tolist()
        yield from (order[:5], order[5:6], order[6:])

    def __len__(self) -> int:
        return 3


MADE: dict[str, tuple[Callable[[], DataLoader], list[Any]]] = {  # a loader, and the batches of its first epoch
    "odd": (lambda: DataLoader(DATA, 3, sampler=Odd(DATA)), [[7, 5, 1], [3, 9]]),
    "of the epoch": (lambda: DataLoader(DATA, 4, sampler=OfEpoch()), [[4, 6, 2, 7], [3, 5, 9, 0], [8, 1]]),
    "batches": (lambda: DataLoader(DATA, batch_sampler=Batches()), [[7, 5, 4, 1, 6], [2], [3, 0, 8, 9]]),
    "batches of odd": (lambda: DataLoader(DATA, batch_sampler=BatchSampler(Odd(DATA), 2, True)), [[7, 5], [1, 3]]),
    "a list": (lambda: DataLoader(DATA, 4, sampler=[3, 1, 2]), [[3, 1, 2]]),
    "lists": (lambda: DataLoader(DATA, batch_sampler=[[3, 1], [2]]), [[3, 1], [2]]),
    "random": (lambda: DataLoader(DATA, 6, sampler=RandomSampler(DATA)), [[7, 5, 4, 1, 6, 2], [3, 0, 8, 9]]),
    "some": (lambda: DataLoader(DATA, 4, sampler=RandomSampler(DATA, num_samples=3)), [[7, 5, 4]]),
    "drawn": (lambda: DataLoader(DATA, 9, sampler=RandomSampler(DATA, True, 4)), [[1, 3, 3, 7]]),
    "part": (lambda: DataLoader(DATA, 4, sampler=SubsetRandomSampler([2, 3, 4, 5, 6])), [[6, 4, 2, 3], [5]]),
    "in order": (lambda: DataLoader(DATA, 8, sampler=SequentialSampler(DATA)), [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9]]),
}
every_loader = pytest.mark.parametrize("name", MADE)


def epochs(name: str, count: int = 2) -> list[Any]:
    sx.manual_seed(3)
    loader = MADE[name][0]()
    return [[batch.tolist() for batch in loader] for _ in range(count)]


@every_loader
def test_an_epoch(name: str) -> None:
    assert epochs(name)[0] == MADE[name][1]
    sx.manual_seed(3)
    assert len(MADE[name][0]()) == len(MADE[name][1])


@every_loader
def test_any_number_of_ranks(name: str) -> None:
    for size in (2, 3):
        found = sx.run(epochs, args=(name,), num_proc=size, backend="threads")
        joined = [[list(itertools.chain(*parts)) for parts in zip(*batches)] for batches in zip(*found)]
        assert joined == epochs(name)


@every_loader
def test_a_saved_state_goes_on_within_the_epoch(name: str) -> None:
    sx.manual_seed(3)
    loader = MADE[name][0]()
    list(loader)
    state: Any = None
    for number, batch in enumerate(loader):
        if number == 0:
            state, rest = loader.state_dict(), []
        else:
            rest.append(batch.tolist())
    other = MADE[name][0]()
    other.load_state_dict(state)
    assert [batch.tolist() for batch in other] == rest


class Counting(OfEpoch):
    def __iter__(self) -> Iterator[Any]:
        self.epoch += 1
        return super().__iter__()


def test_an_order_that_is_lost_is_refused() -> None:
    """Of a sampler that counts its epochs by itself."""
    loader = DataLoader(DATA, 4, sampler=Counting())
    list(loader)
    next(batches := iter(loader))
    next(batches)
    with pytest.raises(ValueError, match=r"order is \d+ and was \d+ \(an order that goes on follows from set_epoch"):
        DataLoader(DATA, 4, sampler=Counting()).load_state_dict(loader.state_dict())
    list(loader)
    DataLoader(DATA, 4, sampler=Counting()).load_state_dict(loader.state_dict())


def test_the_epoch_is_set_by_the_loader_too() -> None:
    sampler = OfEpoch()
    loader = DataLoader(DATA, 4, sampler=sampler)
    loader.sampler.set_epoch(2)
    assert np.concatenate([b.numpy() for b in loader]).tolist() == np.random.default_rng(2).permutation(10).tolist()


def other_orders() -> None:
    order = np.random.default_rng(sx.rank()).permutation(10).tolist()
    model = sx.DistributedDataParallel(nn.Linear(1, 1))
    for x in DataLoader(DATA, 4, sampler=order):
        model(x.float().reshape(-1, 1)).mean().backward()


def test_lengths_of_batch_samplers() -> None:
    for sampler in (RandomSampler(DATA), SequentialSampler(DATA), range(10), Sampler(10)):
        assert [len(BatchSampler(sampler, 4, drop_last)) for drop_last in (True, False)] == [2, 3]


def test_ranks_of_other_orders_are_refused() -> None:
    with pytest.raises(RuntimeError, match="order of its sampler"):
        sx.run(other_orders, num_proc=2, backend="threads")


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"sampler": 3}, TypeError, "sampler must be a Sampler, or an object whose __iter__"),
        ({"sampler": iter([1])}, TypeError, "sampler must be a Sampler"),
        ({"batch_sampler": "ab"}, TypeError, "batch_sampler must be"),
        ({"sampler": RandomSampler}, TypeError, "sampler must be a Sampler, or an object whose __iter__"),
        ({"sampler": [1, 10]}, ValueError, r"the order of epoch 0 that list gives must name samples in \[0, 10\), got"),
        ({"sampler": []}, ValueError, "the order of epoch 0 that list gives must be a vector of at least one index"),
        ({"sampler": [0.5]}, ValueError, "an index that list gives must be an integer"),
        ({"batch_sampler": [1, 2]}, TypeError, "batch_sampler must give lists of indices, got an element of list"),
        ({"batch_sampler": [[1], []]}, ValueError, "list gives an empty batch, number 1"),
        ({"batch_sampler": [[1]], "batch_size": 3}, ValueError, "batch_sampler excludes batch_size"),
    ],
)
def test_refused(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        list(DataLoader(DATA, **options))
