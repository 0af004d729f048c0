"""sx.summary: shapes, parameters and arithmetic of a model, which stays as it was."""

from __future__ import annotations

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn
from sorix_dist.comm import run_threads


def by_name(summary: object) -> dict[str, object]:
    return {layer.name: layer for layer in summary.layers}  # type: ignore[attr-defined]


def test_convolutional_network() -> None:
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(16 * 64, 10))
    model[0].bias.requires_grad = False
    found = sx.summary(model, (5, 1, 8, 8))
    layers = by_name(found)
    assert layers["0"].shape == (5, 16, 8, 8)
    assert layers["0"].flops == 2 * 5 * 8 * 8 * 16 * 9
    assert layers["1"].flops == 0
    assert layers["3"].shape == (5, 10)
    assert layers["3"].flops == 2 * 5 * 16 * 64 * 10
    assert layers["3"].output_bytes == 5 * 10 * 4
    assert found.total("parameters") == sum(p.numel for p in model.parameters())
    assert found.total("trained") == found.total("parameters") - 16
    text = str(found).splitlines()
    assert text[0].split() == ["layer", "output", "shape", "parameters", "FLOPs"]
    assert f"{found.total('parameters'):,} parameters, {found.total('trained'):,} of them trained" in text[-2]
    assert "parameters and buffers" in text[-1]


def test_tokens() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            self.embedding = nn.Embedding(50, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.lstm = nn.LSTM(8, 6, batch_first=True, bidirectional=True)
            self.unused = nn.Linear(3, 3)

        def forward(self, tokens: object) -> object:
            x = self.embedding(tokens)
            return self.lstm(self.attention(x, need_weights=False)[0])

    layers = by_name(sx.summary(Model(), np.zeros((2, 7), np.int64)))
    assert layers["embedding"].flops == 0
    assert layers["attention"].flops == 2 * 14 * 8 * 24 + 2 * 2 * 2 * 7 * 7 * 8
    assert layers["out_proj"].flops == 2 * 14 * 64
    assert layers["lstm"].flops == 2 * 14 * 2 * (4 * 6 * 8 + 4 * 6 * 6)
    assert layers["attention"].output_bytes == 0  # out_proj's
    assert layers["lstm"].output_bytes == 4 * (2 * 7 * 12 + 2 * 2 * 2 * 6)  # with the last states
    assert layers["unused"].shape is None
    assert "not called" in str(sx.summary(Model(), (2, 7), dtype=np.int64))


def test_shared_parameters_count_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].W = model[0].W
    found = sx.summary(model, (2, 4))
    assert found.total("parameters") == 16 + 4 + 4
    assert found.total("flops") == 2 * 2 * 2 * 16


def test_wrong_inputs() -> None:
    with pytest.raises(ValueError, match="summary: inputs must be a shape"):
        sx.summary(nn.Linear(3, 2), "x")
    with pytest.raises(TypeError, match="integers") as caught:
        sx.summary(nn.Embedding(5, 2), (2, 7))
    assert "for tokens, give dtype=np.int64" in caught.value.__notes__[0]


def test_changes_nothing() -> None:
    sx.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    model[1].eval()
    before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    attributes = [set(vars(module)) - {"training"} for module in model.modules()]
    modes = [module.training for module in model.modules()]
    drawn = sx.core.random.generator().bit_generator.state
    sx.summary(model, (8, 3))
    assert all(np.array_equal(value.numpy(), before[name]) for name, value in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert attributes == [set(vars(module)) - {"training"} for module in model.modules()]
    assert str(drawn) == str(sx.core.random.generator().bit_generator.state)
    with pytest.raises(ValueError) as caught:
        sx.summary(model, (8, 5))
    assert "raised in summary's forward of inputs of shape (8, 5)" in caught.value.__notes__[0]
    assert modes == [module.training for module in model.modules()]
    assert attributes == [set(vars(module)) - {"training"} for module in model.modules()]


def test_one_rank_alone() -> None:
    def work() -> int:
        model = sx.DistributedDataParallel(nn.Linear(3, 4))
        return sx.summary(model, (8, 3)).total("parameters") if sx.is_main_process() else 16

    assert run_threads(work, 2, timeout=60) == [16, 16]


def test_wrong_input() -> None:
    with pytest.raises(TypeError, match="model must be a Module, got int"):
        sx.summary(3, (1, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"inputs must be a shape \(integers >= 1\), a tensor or an array, got \(0, 2"):
        sx.summary(nn.Linear(2, 2), (0, 2))
