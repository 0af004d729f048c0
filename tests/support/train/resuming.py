"""Runs that are stopped and go on, beside one that is not: on threads here, under mpirun in tests/ranks."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.core import random as rng
from sorix_dist.utils.data import DataLoader, Dataset

EPOCHS, ROWS, BATCH = 3, 97, 20
STEPS = EPOCHS * -(-ROWS // BATCH)
OPTIMIZERS = {
    "momentum": lambda parameters: optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
    "Adam": lambda parameters: optim.Adam(parameters, lr=0.01),
    "RMSprop": lambda parameters: optim.RMSprop(parameters, lr=0.01),
}


class Net(nn.Module):
    """Everything that remembers something: batch statistics, dropout layers and dropout as a function."""

    def __init__(self) -> None:
        self.first = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))
        self.layers = [nn.Linear(8, 8), nn.Dropout(0.2)]
        self.last = nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return self.last(nn.functional.dropout(x, 0.1, self.training))


class Run:
    """A training run from its beginning, or from the newest checkpoint of a folder."""

    def __init__(self, folder: Path, optimizer: str, seed: int | None, mean: Any = 0.0) -> None:
        if seed is not None:
            sx.manual_seed(seed)
        generator = np.random.default_rng(0)
        data = Dataset(generator.standard_normal((ROWS, 6)), generator.integers(0, 3, ROWS))
        self.model = sx.DistributedDataParallel(Net())
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.scheduler = optim.lr_scheduler.CosineAnnealingLR(self.optimizer, STEPS)
        self.loader = DataLoader(data, batch_size=BATCH, shuffle=True)
        self.mean = mean
        self.step = 0
        self.parts = {name: getattr(self, name) for name in ("model", "optimizer", "scheduler", "loader")}
        self.checkpointer = sx.Checkpointer(folder)
        found = self.checkpointer.load_latest(**self.parts)
        if found is not None:
            self.step, self.mean = found["step"], found["mean"]

    def train(self, until: int) -> None:
        """Trains until so many steps are done in all; saves after the last one."""
        criterion = nn.CrossEntropyLoss()
        while self.step < until:
            for x, y in self.loader:
                self.optimizer.zero_grad()
                noise = sx.tensor(rng.generator().standard_normal(6))
                loss = criterion(self.model(x + noise), y)
                loss.backward()
                self.optimizer.step()
                self.scheduler.step()
                self.step += 1
                self.mean = 0.9 * self.mean + float(self.model.module.last.W.numpy().sum())
                self.after_step()
                if self.step == until:
                    break
        self.checkpointer.save(self.step, **self.parts, mean=self.mean)

    def after_step(self) -> None:
        """For what else a run does after each step."""

    def digest(self) -> str:
        """A digest of every bit that the run has made."""
        everything = hashlib.sha256(repr((self.mean, self.scheduler.state_dict(), rng.state())).encode())
        for value in self.model.state_dict().values():
            everything.update(value.numpy().tobytes())
        state = self.optimizer.state_dict()
        everything.update(repr(state["param_groups"]).encode())
        for entry in state["state"].values():
            for name, value in sorted(entry.items()):
                everything.update(f"{name}{np.asarray(value).tobytes()}".encode())
        return everything.hexdigest()


def stopped_and_not(root: Path, optimizer: str, stops: list[int], seed: int | None) -> None:
    """Asserts that a run that is stopped after each of some steps ends with the bits of one that is not."""
    whole = Run(root / "whole", optimizer, 5)
    whole.train(STEPS)
    expected = whole.digest()
    Run(root / "stopped", optimizer, 5).train(stops[0])
    for stop in [*stops[1:], STEPS]:
        run = Run(root / "stopped", optimizer, seed)
        assert 0 < run.step < stop
        run.train(stop)
    assert run.digest() == expected
    other = Run(root / "other", optimizer, 6)  # the digest does see differences
    other.train(STEPS)
    assert other.digest() != expected


def a_part(folder: Path, optimizer: str, until: int, shards: int) -> str:
    """Trains in reproducible mode from where the folder has got to; the digest of what there is then."""
    sx.init(virtual_shards=shards)
    run = Run(folder, optimizer, 5)
    run.train(until)
    return run.digest()
