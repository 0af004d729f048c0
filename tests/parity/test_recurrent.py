"""Recurrent layers compute, differentiate and train as PyTorch's do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sorix_dist import nn, optim
from sorix_dist.core import Tensor

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(0)


def parts(result: Any) -> list[Any]:
    output, state = result
    return [output, *(state if isinstance(state, tuple) else (state,))]


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_recurrent(name: str, layers: int, bidirectional: bool, bias: bool, batch_first: bool, given: bool) -> None:
    options = {"num_layers": layers, "bidirectional": bidirectional, "bias": bias, "batch_first": batch_first}
    theirs = getattr(torch.nn, name)(3, 4, **options).double()
    ours = getattr(nn, name)(3, 4, **options, dtype="float64")
    ours.load_state_dict({n: p.detach().numpy() for n, p in theirs.named_parameters()})
    arrays = [RNG.standard_normal((5, 6, 3))]
    rows = 5 if batch_first else 6
    if given:
        count = layers * (2 if bidirectional else 1)
        arrays += [RNG.standard_normal((count, rows, 4)) for _ in range(2 if name == "LSTM" else 1)]
    mine = [Tensor(a, requires_grad=True) for a in arrays]
    their = [torch.tensor(a, requires_grad=True) for a in arrays]

    def run(layer: Any, inputs: list[Any]) -> list[Any]:
        states = inputs[1:]
        return parts(layer(inputs[0], *([tuple(states)] if len(states) == 2 else states)))

    got, expected = run(ours, mine), run(theirs, their)
    weights = [RNG.standard_normal(g.shape) for g in got]
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a.numpy(), b.detach().numpy(), rtol=1e-10, atol=1e-12)
    sum((g * w).sum() for g, w in zip(got, weights, strict=True)).backward()
    sum((e * torch.tensor(w)).sum() for e, w in zip(expected, weights, strict=True)).backward()
    for a, b in zip(mine, their, strict=True):
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-9, atol=1e-11)
    wanted = dict(theirs.named_parameters())
    for n, parameter in ours.named_parameters():
        np.testing.assert_allclose(parameter.grad.numpy(), wanted[n].grad.numpy(), rtol=1e-9, atol=1e-11, err_msg=n)

    optimizer = optim.SGD(ours.parameters(), lr=0.05, momentum=0.9)
    other = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9)
    for _ in range(20):
        optimizer.zero_grad()
        other.zero_grad()
        loss, target = (run(ours, mine)[0] ** 2).mean(), (run(theirs, their)[0] ** 2).mean()
        loss.backward()
        target.backward()
        optimizer.step()
        other.step()
        assert loss.item() == pytest.approx(target.item(), rel=1e-9)
    for n, value in ours.state_dict().items():
        np.testing.assert_allclose(value, wanted[n].detach().numpy(), rtol=1e-8, atol=1e-10, err_msg=n)


@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [(), (6,)], ids=str)
def test_cells(name: str, bias: bool, rows: tuple[int, ...]) -> None:
    theirs, ours = getattr(torch.nn, name)(3, 4, bias).double(), getattr(nn, name)(3, 4, bias, dtype="float64")
    ours.load_state_dict({n: p.detach().numpy() for n, p in theirs.named_parameters()})
    x, h = RNG.standard_normal((*rows, 3)), RNG.standard_normal((*rows, 4))
    mine, other = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    for given in (None, (h, h + 1) if name == "LSTMCell" else h):
        wanted = (
            None
            if given is None
            else torch.tensor(np.array(given))
            if name != "LSTMCell"
            else tuple(map(torch.tensor, given))
        )
        got, expected = ours(mine, given), theirs(other, wanted)
        pairs = zip(got, expected, strict=True) if name == "LSTMCell" else [(got, expected)]
        for a, b in pairs:
            np.testing.assert_allclose(a.numpy(), b.detach().numpy(), rtol=1e-10, atol=1e-12)
    (got[1] if name == "LSTMCell" else got).sum().backward()
    (expected[1] if name == "LSTMCell" else expected).sum().backward()
    np.testing.assert_allclose(mine.grad.numpy(), other.grad.numpy(), rtol=1e-9, atol=1e-11)
    for n, parameter in ours.named_parameters():
        theirs_grad = dict(theirs.named_parameters())[n].grad.numpy()
        np.testing.assert_allclose(parameter.grad.numpy(), theirs_grad, rtol=1e-9, atol=1e-11, err_msg=n)


def test_relu_recurrence() -> None:
    theirs, ours = torch.nn.RNN(3, 4, 2, "relu").double(), nn.RNN(3, 4, 2, "relu", dtype="float64")
    ours.load_state_dict({n: p.detach().numpy() for n, p in theirs.named_parameters()})
    x = RNG.standard_normal((5, 6, 3))
    np.testing.assert_allclose(ours(x)[0].numpy(), theirs(torch.tensor(x))[0].detach().numpy(), rtol=1e-10)
