"""load_latest gives all parts their states, or changes nothing: on one rank and on several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.comm import run_threads
from sorix_dist.core import random as rng
from sorix_dist.train.metrics import Accuracy
from sorix_dist.train.run_state import counts
from sorix_dist.utils.data import DataLoader, Dataset
from tests.support.train.saving import Part


class Picky(Part):
    """A part that takes half of a state over before it finds out that it does not like it."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if state["array"][0] == 1:
            raise RuntimeError("not this one")


class Remapped(nn.Linear):
    """A model that reads states with other names than its own."""

    def load_state_dict(self, state_dict: Any, strict: bool = True) -> Any:
        return super().load_state_dict({name.removeprefix("old."): value for name, value in state_dict.items()}, strict)

    def state_dict(self) -> dict[str, Any]:
        return {f"old.{name}": value for name, value in super().state_dict().items()}


class Unborn:
    """A part that has no state before it was given one."""

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


class Run:
    """Parts of every kind."""

    def __init__(self, seed: int, **other: Any) -> None:
        sx.manual_seed(seed)
        generator = np.random.default_rng(other.get("data", 0))
        self.model = sx.DistributedDataParallel(nn.Sequential(nn.Linear(3, other.get("width", 4)), nn.Dropout(0.5)))
        self.bare = Remapped(2, 2)
        kind = other.get("optimizer", optim.Adam)
        self.optimizer = kind(self.model.parameters(), lr=0.01 * seed)
        self.scheduler = optim.lr_scheduler.SequentialLR(
            self.optimizer,
            [
                optim.lr_scheduler.StepLR(self.optimizer, 2),
                other.get("schedule", optim.lr_scheduler.StepLR)(self.optimizer, 3),
            ],
            [3],
        )
        self.loader = DataLoader(
            Dataset(generator.standard_normal((20, 3)).astype(np.float32)), other.get("batch", 5), shuffle=True
        )
        self.metric = Accuracy(top_k=other.get("top_k", 1))
        self.first, self.last = Part(seed, 3), other.get("last", Part)(seed, 3)
        if "without" in other:
            delattr(self, other["without"])

    def train(self, steps: int) -> None:
        for x in self.loader:
            self.optimizer.zero_grad()
            self.model(x).mean().backward()
            self.optimizer.step()
            self.scheduler.step()
            self.metric.update(np.eye(3)[:2], np.array([0, 2]))
            steps -= 1
            if not steps:
                break

    def everything(self) -> dict[str, Any]:
        """All that there is, random streams and the counts of masks included."""
        states = {name: tree(part.state_dict()) for name, part in vars(self).items()}
        return {"random": tree(rng.state()), **states, "counts": tree(counts(vars(self)))}


def tree(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: tree(entry) for name, entry in value.items()}
    if isinstance(value, sx.Tensor | np.ndarray):
        return np.asarray(value).tobytes()
    return [tree(entry) for entry in value] if isinstance(value, list) else value


MISFITS: dict[str, dict[str, Any]] = {
    "model": {"width": 5},
    "optimizer": {"optimizer": optim.SGDMomentum},
    "scheduler": {"schedule": optim.lr_scheduler.CosineAnnealingLR},
    "loader": {"batch": 4},
    "the loader's data": {"data": 1},
    "metric": {"top_k": 2},
    "last": {"last": Picky},
    "a part that is not there": {"without": "last"},
}


def refused(folder: Path, other: dict[str, Any]) -> None:
    """Asserts that a run with one part that does not fit is as it was before it tried to load."""
    first = Run(1)
    first.train(3)
    saved = {**vars(first)}
    if "without" in other:
        saved.pop(other["without"])
        other = {}
    sx.Checkpointer(folder).save(3, **saved)
    expected = first.everything()
    run = Run(2, **other)
    run.train(2)
    before = run.everything()
    with pytest.raises((ValueError, RuntimeError, TypeError)):
        sx.Checkpointer(folder).load_latest(**vars(run))
    assert run.everything() == before
    if len(saved) == len(vars(first)):
        fitting = Run(2)
        sx.Checkpointer(folder).load_latest(**vars(fitting))
        assert fitting.everything() == expected


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("other", MISFITS.values(), ids=MISFITS)
def test_one_part_that_does_not_fit(other: dict[str, Any], size: int, tmp_path: Path) -> None:
    if "schedule" in other:
        other = {"schedule": lambda optimizer, _: optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)}
    run_threads(refused, size, args=(tmp_path, other), timeout=60)


def on_one_rank(folder: Path) -> None:
    """Only the last rank has another loader."""
    first = Run(1)
    first.train(3)
    sx.Checkpointer(folder).save(3, **vars(first))
    run = Run(2)
    if sx.rank() == sx.size() - 1:
        run.loader = DataLoader(run.loader.dataset, 5)
    before = run.everything()
    with pytest.raises(ValueError, match="this loader is not like the one"):
        sx.Checkpointer(folder).load_latest(**vars(run))
    assert run.everything() == before


def test_a_part_that_does_not_fit_on_one_rank(tmp_path: Path) -> None:
    run_threads(on_one_rank, 3, args=(tmp_path,), timeout=60)


@pytest.mark.parametrize("order", [1, -1])
def test_classes_of_ones_own(order: int, tmp_path: Path) -> None:
    """A check that does not speak for a load_state_dict is not asked; who has no state yet is given one."""
    model, unborn = Remapped(2, 2), Unborn()
    unborn.value = 3
    checkpointer = sx.Checkpointer(tmp_path)
    checkpointer.save(1, model=model, unborn=unborn, part=Part(1, 2))
    new = {"model": Remapped(2, 2), "unborn": Unborn(), "part": Part(0, 2)}
    checkpointer.load_latest(**dict([*new.items()][::order]))
    assert (new["model"].W.numpy() == model.W.numpy()).all()
    assert new["unborn"].value == 3
    others = [Part(7, 2), Remapped(2, 2)]
    before: Callable[[], list[Any]] = lambda: [others[0].array.tolist(), others[1].W.numpy().tolist()]  # noqa: E731
    expected = before()
    with pytest.raises(RuntimeError, match="not this one"):
        checkpointer.load_latest(**dict([("model", others[1]), ("part", Picky(5, 2))][::order]))
    assert before() == expected


def test_memory_that_only_a_wrapper_may_change(tmp_path: Path) -> None:
    wrapped, part = sx.DistributedDataParallel(nn.Linear(2, 2)), Part(1, 2)
    checkpointer = sx.Checkpointer(tmp_path)
    optimizer = optim.Adam(wrapped.parameters())
    checkpointer.save(1, model=wrapped, optimizer=optimizer, part=part)
    part.array = part.array + 1
    with pytest.raises(RuntimeError, match="the memory of this tensor is read-only"):
        checkpointer.load_latest(part=part, optimizer=optimizer, model=wrapped.module)
    assert (part.array == 2).all()
