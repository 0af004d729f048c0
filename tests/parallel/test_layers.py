"""Layers and losses that are compositions of operations train alike on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.comm.threads import run_threads
from sorix_dist.utils.data import DataLoader, Dataset

RNG = np.random.default_rng(0)
ROWS = 11
VECTORS, SEQUENCES = RNG.standard_normal((ROWS, 4)), RNG.standard_normal((ROWS, 5, 4))
IMAGES, VOLUMES = RNG.standard_normal((ROWS, 2, 6, 6)), RNG.standard_normal((ROWS, 2, 4, 4, 4))
LABELS, SIGNS = RNG.integers(0, 3, ROWS), np.where(RNG.random(ROWS) < 0.5, 1.0, -1.0)


class Pairs(nn.Module):
    def __init__(self) -> None:
        self.first, self.both, self.drop = nn.Linear(4, 3), nn.Bilinear(3, 4, 3), nn.AlphaDropout(0.3)

    def forward(self, x: Any) -> Any:
        return self.drop(self.both(self.first(x), x))


class Views(nn.Module):
    """Three views of an input."""

    def __init__(self) -> None:
        self.body = nn.Linear(4, 5)

    def forward(self, x: Any) -> Any:
        return self.body(x), self.body(x * 0.5), self.body(-x)


class Cells(nn.Module):
    def __init__(self) -> None:
        self.lstm, self.gru, self.rnn = nn.LSTMCell(4, 4), nn.GRUCell(4, 4), nn.RNNCell(4, 3)

    def forward(self, x: Any) -> Any:
        states: list[Any] = [None, None, None]
        for t in range(x.shape[1]):
            states[0] = self.lstm(x[:, t], states[0])
            states[1] = self.gru(states[0][0], states[1])
            states[2] = self.rnn(states[1], states[2])
        return states[2]


def classified(model: Any, x: Any, y: Any) -> Any:
    return nn.CrossEntropyLoss()(model(x), y)


CASES: dict[str, tuple[Callable[[], nn.Module], np.ndarray, Callable[..., Any], np.ndarray]] = {
    "activations": (
        lambda: nn.Sequential(
            nn.Linear(4, 6), nn.Mish(), nn.Linear(6, 6), nn.PReLU(6), nn.Hardswish(), nn.RMSNorm(6), nn.GLU(), nn.SELU()
        ),
        VECTORS, classified, LABELS,
    ),
    "images": (
        lambda: nn.Sequential(
            nn.ZeroPad2d(1), nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.PixelShuffle(2),
            nn.Upsample(scale_factor=2, mode="bilinear"), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(9, 3),
        ),
        IMAGES, classified, LABELS,
    ),
    "signals": (
        lambda: nn.Sequential(
            nn.Upsample(size=7), nn.Flatten(), nn.Unflatten(1, (2, 49)), nn.ConvTranspose1d(2, 2, 3), nn.AvgPool1d(2),
            nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(4, 3),
        ),
        IMAGES, classified, LABELS,
    ),
    "volumes": (
        lambda: nn.Sequential(
            nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.InstanceNorm3d(4), nn.Flatten(), nn.Linear(256, 3)
        ),
        VOLUMES, classified, LABELS,
    ),
    "recurrent": (
        lambda: nn.RNN(4, 3, 2, bidirectional=True, batch_first=True), SEQUENCES,
        lambda m, x, y: nn.CrossEntropyLoss()(m(x)[0][:, -1, :3], y), LABELS,
    ),
    "cells": (Cells, SEQUENCES, classified, LABELS),
    "decoder": (
        lambda: nn.TransformerDecoderLayer(4, 2, 8, batch_first=True), SEQUENCES,
        lambda m, x, y: nn.CrossEntropyLoss()(m(x, x * 2)[:, 0, :3], y), LABELS,
    ),
    "bilinear": (
        Pairs, VECTORS, lambda m, x, y: nn.MultiMarginLoss(2, 0.5, np.array([1.0, 2.0, 0.5]))(m(x), y), LABELS,
    ),
    "triplet": (Views, VECTORS, lambda m, x, y: nn.TripletMarginLoss(3.0, swap=True)(*m(x)), SIGNS),
    "cosine": (Views, VECTORS, lambda m, x, y: nn.CosineEmbeddingLoss(0.1)(*m(x)[:2], y), SIGNS),
    "ranking": (
        lambda: nn.Linear(4, 2), VECTORS,
        lambda m, x, y: nn.MarginRankingLoss(1.0)(*m(x).unbind(1), y), SIGNS,
    ),
    "gaussian": (
        Views, VECTORS,
        lambda m, x, y: nn.GaussianNLLLoss(full=True)(m(x)[0].mean(1), y, m(x)[1].mean(1).exp()), SIGNS,
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:attention works on the rows")  # of the last batch, which has one
@pytest.mark.parametrize("name", CASES)
def test_any_number_of_ranks(name: str) -> None:
    make, data, loss, target = CASES[name]

    def trained(wrapped: bool = True) -> dict[str, np.ndarray]:
        sx.manual_seed(3)
        bare = make().double()
        model = sx.DistributedDataParallel(bare) if wrapped else bare
        optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for x, y in DataLoader(Dataset(data, target), batch_size=5, shuffle=True):
            optimizer.zero_grad()
            loss(model, x, y).backward()
            optimizer.step()
        return {key: np.array(value) for key, value in bare.state_dict().items()}

    alone = trained(False)
    for size in (1, 2, 3):
        for state in run_threads(trained, size, timeout=60):
            for key, value in alone.items():
                np.testing.assert_allclose(state[key], value, rtol=0, atol=1e-11, err_msg=f"{key} on {size} ranks")
