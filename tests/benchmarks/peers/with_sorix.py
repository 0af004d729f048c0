"""sorix: the perceptrons, one process; its BLAS takes its threads from the environment."""

from __future__ import annotations

import importlib.metadata
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import sorix
from sorix import nn, optim

VERSION = importlib.metadata.version("sorix")


class Peer:
    """A process of sorix."""

    def __init__(self, threads: int, rank: int, ranks: int, meeting: str) -> None:
        self.rank, self.ranks = rank, ranks

    def prepare(self, act: str, workload: str, path: str) -> Callable[[], Any]:
        """A training step."""
        stored = np.load(path)
        layers: list[Any] = []
        for i, (inputs, outputs) in enumerate(itertools.pairwise(map(int, stored["sizes"]))):
            linear = nn.Linear(inputs, outputs)
            linear.W.data[...] = stored[f"arr_{2 * i}"].T
            linear.b.data[...] = stored[f"arr_{2 * i + 1}"]
            layers += [linear, nn.ReLU()]
        model, criterion = nn.Sequential(*layers[:-1]), nn.CrossEntropyLoss()
        optimizer = optim.SGDMomentum(model.parameters(), lr=1e-3, momentum=0.9)
        pairs = zip(stored["x"], stored["y"], strict=True)
        batches = itertools.cycle([(sorix.tensor(x), sorix.tensor(y.reshape(-1, 1))) for x, y in pairs])

        def step() -> Any:
            x, y = next(batches)
            loss = criterion(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.data

        return step
