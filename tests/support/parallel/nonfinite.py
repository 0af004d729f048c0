"""What becomes of gradients that are not finite, as checks that every rank of a communicator runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.utils.data import DataLoader, Dataset

ROWS, BATCH, BAD = 40, 10, 23  # the bad row is in the third batch
SHARDS = 8

Batch = tuple[Any, Any]


class Training:
    """A model, its optimizer with momentum, and batches of which one has a NaN in a row that one rank holds."""

    def __init__(self, nonfinite: Any) -> None:
        sx.manual_seed(3)
        self.model = sx.DistributedDataParallel(
            nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), nonfinite=nonfinite
        )
        self.optimizer = optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        generator = np.random.default_rng(0)
        x = generator.standard_normal((ROWS, 4)).astype(np.float32)
        x[BAD, 1] = np.nan
        self.loader = DataLoader(Dataset(x, generator.integers(0, 3, ROWS)), batch_size=BATCH)

    def pieces(self, count: int) -> Iterator[list[Batch]]:
        """So many batches for each step."""
        batches = list(self.loader)
        return (batches[i : i + count] for i in range(0, len(batches), count))

    def backward(self, pieces: list[Batch]) -> None:
        self.optimizer.zero_grad()
        if len(pieces) == 1:
            ((x, y),) = pieces
            nn.CrossEntropyLoss()(self.model(x), y).backward()
        else:
            for x, y in self.model.accumulate(pieces):
                nn.CrossEntropyLoss()(self.model(x), y).backward()

    def state(self) -> bytes:
        """The bytes of weights and momentum."""
        state = self.optimizer.state_dict()["state"]
        momentum = [np.asarray(value) for entry in state.values() for _, value in sorted(entry.items())]
        return b"".join([*(p.numpy().tobytes() for p in self.model.parameters()), *(m.tobytes() for m in momentum)])


def bad_rank(pieces: list[Batch]) -> int | None:
    """The rank that holds the bad row, None if none of the pieces has it."""
    everywhere = sx.all_gather(any(bool(np.isnan(x.numpy()).any()) for x, _ in pieces))
    return everywhere.index(True) if any(everywhere) else None


def without_the_bad_step(count: int) -> bytes:
    """The end of a training that never sees the batches of the bad step."""
    training = Training("raise")
    for pieces in training.pieces(count):
        if bad_rank(pieces) is None:
            training.backward(pieces)
            training.optimizer.step()
    return training.state()


def raises(count: int) -> None:
    """All ranks get the same error, which says whose it is and where; the next steps are right."""
    training = Training("raise")
    raised = 0
    for pieces in training.pieces(count):
        rank = bad_rank(pieces)
        if rank is None:
            training.backward(pieces)
            training.optimizer.step()
            continue
        before = training.state()
        with pytest.raises(FloatingPointError, match=rf"that of '0\.W' on rank {rank} is nan") as caught:
            training.backward(pieces)
        assert re.search(r"in backward number \d+, at \S*nonfinite\.py:\d+", str(caught.value))
        assert sx.all_gather(str(caught.value)) == [str(caught.value)] * sx.size()
        assert str(caught.value).count("on rank") == 1
        assert all(p.grad is None for p in training.model.parameters())
        training.optimizer.step()
        assert training.state() == before
        raised += 1
    assert raised == 1
    assert training.state() == without_the_bad_step(count)


def skips(count: int) -> None:
    """A step is left out on all ranks: neither weights nor momentum move; the next steps are right."""
    training = Training("skip")
    skipped = 0
    for pieces in training.pieces(count):
        before, bad = training.state(), bad_rank(pieces) is not None
        training.backward(pieces)
        training.optimizer.step()
        assert (training.state() == before) == bad
        skipped += bad
    assert skipped == 1
    assert training.state() == without_the_bad_step(count)
    assert len(set(sx.all_gather(training.state()))) == 1


def allows(count: int) -> None:
    """NaN gets into the weights of all ranks: without it, the other choices would be tested with nothing."""
    training = Training("allow")
    for pieces in training.pieces(count):
        training.backward(pieces)
        training.optimizer.step()
    assert all(np.isnan(p.numpy()).any() for p in training.model.parameters())


def keeps_what_was_there() -> None:
    """Without zero_grad, `grad` keeps what earlier backwards have added."""
    for nonfinite in ("skip", "raise"):
        training = Training(nonfinite)
        batches = list(training.pieces(1))
        training.backward(batches[0])
        before = _gradients(training.model)
        x, y = batches[BAD // BATCH][0]
        with nullcontext() if nonfinite == "skip" else pytest.raises(FloatingPointError):
            nn.CrossEntropyLoss()(training.model(x), y).backward()
        assert all(map(np.array_equal, before, _gradients(training.model)))


def a_backward_that_raises_keeps_what_was_there() -> None:
    """Also in a model that it would not have reached."""
    reached, other = (sx.DistributedDataParallel(nn.Linear(2, 2)) for _ in range(2))
    x = sx.tensor(np.full((2, 2), 1 + sx.rank(), np.float32))
    for model in (reached, other):
        loss_of_slope_one(model(x)).backward()
    before = _gradients(reached) + _gradients(other)

    def fail(gradient: Any) -> None:
        raise ValueError("on the way")

    # Its later half comes first in a backward.
    half = reached(x)
    half.register_hook(fail)
    loss = loss_of_slope_one(half + reached(x))
    with pytest.raises(ValueError, match="on the way"):
        loss.backward()
    assert all(map(np.array_equal, before, _gradients(reached) + _gradients(other)))


def _gradients(model: sx.DistributedDataParallel) -> list[Any]:
    return [None if p.grad is None else p.grad.numpy().copy() for p in model.parameters()]


class Branches(nn.Module):
    """Two layers, whose gradients are those of different inputs."""

    def __init__(self) -> None:
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Any, z: Any) -> Any:
        return self.first(x) + self.second(z)


LARGE = float(np.finfo(np.float32).max)


def loss_of_slope_one(scores: Any) -> Any:
    """One whose gradient is 1 for each score that is about zero."""
    return nn.functional.l1_loss(scores, sx.tensor(np.full(scores.shape, -1.0, np.float32)), reduction="sum")


def names_the_parameter() -> None:
    """Not the first parameter but the one that overflows, on the rank where it does."""
    module = Branches()
    for parameter in module.parameters():
        parameter.data[...] = 0
    model = sx.DistributedDataParallel(module)
    last = sx.size() - 1
    z = np.full((2, 2), LARGE if sx.rank() == last else 1, np.float32)
    with np.errstate(over="ignore"), pytest.raises(FloatingPointError, match=rf"'second\.W' on rank {last} is inf\."):
        loss_of_slope_one(model(sx.tensor(np.ones((2, 2), np.float32)), sx.tensor(z))).backward()


def overflow_of_the_sum() -> None:
    """Every rank's own gradient is finite, but not their sum."""
    module = nn.Linear(2, 1, bias=False)
    module.W.data[...] = 0
    model = sx.DistributedDataParallel(module)
    x = np.full((1, 2), LARGE * (0.75 + sx.rank() / 100), np.float32)
    with np.errstate(over="ignore"), pytest.raises(FloatingPointError, match="the sum over the ranks overflows"):
        loss_of_slope_one(model(sx.tensor(x))).backward()


def leaves_out_all_models_of_a_backward() -> None:
    """Also one whose gradients nobody watches: an optimizer over both moves neither, on any number of ranks."""
    watched, other = (
        sx.DistributedDataParallel(nn.Linear(2, 2), nonfinite=each)  # type: ignore[arg-type]
        for each in ("skip", "allow")
    )
    x = np.full((2, 2), 1 + sx.rank(), np.float32)
    scores = watched(sx.tensor(x))
    scores.register_hook(lambda gradient: gradient * np.float32(np.nan))
    (loss_of_slope_one(scores) + loss_of_slope_one(other(sx.tensor(x)))).backward()
    assert all(p.grad is None for model in (watched, other) for p in model.parameters())


def asks_only_the_models_that_a_backward_reaches() -> None:
    """Another one has no say in what becomes of it, and keeps what earlier backwards have left."""
    for earlier in (False, True):
        reached, other = (
            sx.DistributedDataParallel(nn.Linear(2, 2), nonfinite=each)  # type: ignore[arg-type]
            for each in ("skip", "raise")
        )
        x = sx.tensor(np.full((2, 2), 1 + sx.rank(), np.float32))
        if earlier:
            loss_of_slope_one(other(x)).backward()
        before = _gradients(other)
        scores = reached(x)
        scores.register_hook(lambda gradient: gradient * np.float32(np.nan))
        loss_of_slope_one(scores).backward()
        assert _gradients(reached) == [None, None]
        assert all(map(np.array_equal, before, _gradients(other)))
