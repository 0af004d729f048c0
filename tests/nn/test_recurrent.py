"""Recurrent layers: layouts, directions, states, dropout, empty batches, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn
from sorix_dist.core import Tensor
from sorix_dist.core.ops import recurrent
from tests.support.core.sharded import sharded

RNG = np.random.default_rng(0)
LAYERS = pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN], ids=["LSTM", "GRU", "RNN"])


def states_of(result: Any) -> list[np.ndarray]:
    output, state = result
    return [output.numpy(), *(s.numpy() for s in (state if isinstance(state, tuple) else (state,)))]


def start(layer: Any, *shape: int) -> Any:
    h = [RNG.standard_normal(shape) for _ in layer.states]
    return tuple(h) if len(h) == 2 else h[0]


@LAYERS
def test_layouts_agree(layer: Any) -> None:
    one = layer(3, 4, num_layers=2, bidirectional=True, dtype="float64")
    two = layer(3, 4, num_layers=2, bidirectional=True, batch_first=True, dtype="float64")
    two.load_state_dict(one.state_dict())
    x, hx = RNG.standard_normal((5, 2, 3)), start(layer, 4, 2, 4)
    first = states_of(one(x, hx))
    second = states_of(two(np.swapaxes(x, 0, 1), hx))
    assert first[0].shape == (5, 2, 8)
    np.testing.assert_allclose(np.swapaxes(second[0], 0, 1), first[0])
    for a, b in zip(first[1:], second[1:], strict=True):
        assert a.shape == (4, 2, 4)
        np.testing.assert_allclose(a, b)
    without = tuple(h[:, 1] for h in hx) if isinstance(hx, tuple) else hx[:, 1]
    reference = states_of(two(x[:, 1], without))
    for a, b in zip(reference, first, strict=True):
        np.testing.assert_allclose(a, b[:, 1])


@LAYERS
def test_a_sequence_in_two_parts_is_the_whole(layer: Any) -> None:
    rnn = layer(3, 4, num_layers=2, dtype="float64")
    x = RNG.standard_normal((6, 2, 3))
    output, state = rnn(x)
    first, between = rnn(x[:2])
    second, end = rnn(x[2:], between)
    np.testing.assert_allclose(np.concatenate([first.numpy(), second.numpy()]), output.numpy())
    for a, b in zip(states_of((second, end)), states_of((output, state)), strict=True):
        np.testing.assert_allclose(a[-1], b[-1])
    np.testing.assert_array_equal(states_of((output, state))[1][1], output.numpy()[-1])


@LAYERS
def test_backwards_is_forwards_over_the_reversed_sequence(layer: Any) -> None:
    rnn, there = layer(3, 4, bidirectional=True, dtype="float64"), layer(3, 4, dtype="float64")
    state = rnn.state_dict()
    there.load_state_dict({n: state[f"{n}_reverse"] for n in there.state_dict()})
    x = RNG.standard_normal((5, 2, 3))
    both, back = states_of(rnn(x)), states_of(there(x[::-1]))
    np.testing.assert_allclose(both[0][..., 4:], back[0][::-1])
    np.testing.assert_allclose(both[1][1], back[1][0])


@pytest.mark.filterwarnings("error")
@LAYERS
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_rows_and_dtype(layer: Any, dtype: str) -> None:
    rnn = layer(3, 4, num_layers=2, bidirectional=True, batch_first=True, dropout=0.5, dtype=dtype)
    for rows in (0, 2):
        x = Tensor(np.ones((rows, 5, 3), dtype), requires_grad=True)
        output, _ = rnn(x)
        assert output.shape == (rows, 5, 8)
        assert output.dtype == dtype
        output.sum().backward()
        assert x.grad.shape == x.shape
        for name, parameter in rnn.named_parameters():
            assert parameter.grad.dtype == dtype
            assert bool(parameter.grad.numpy().any()) == bool(rows), name
        rnn.zero_grad()


@LAYERS
def test_names_of_parameters(layer: Any) -> None:
    rows = 4 * layer.gates
    assert {n: p.shape for n, p in layer(3, 4, num_layers=2, bidirectional=True, bias=False).named_parameters()} == {
        f"weight_{part}_l{number}{back}": (rows, {"hh": 4, "ih": 3 if number == 0 else 8}[part])
        for number in (0, 1)
        for back in ("", "_reverse")
        for part in ("ih", "hh")
    }
    assert {n: p.shape for n, p in layer(3, 4).named_parameters() if "bias" in n} == {
        "bias_ih_l0": (rows,),
        "bias_hh_l0": (rows,),
    }
    assert np.abs(layer(3, 4).weight_hh_l0.numpy()).max() <= 0.5


@LAYERS
def test_dropout_between_layers_belongs_to_the_rows_of_the_batch(layer: Any) -> None:
    x = RNG.standard_normal((4, 6, 3))

    def run(*cuts: int) -> np.ndarray:
        parts = []
        for begin, end in zip((0, *cuts), (*cuts, 6), strict=True):
            sx.manual_seed(3)
            rnn = layer(3, 4, num_layers=2, dropout=0.5, dtype="float64")
            input = sharded(x[:, begin:end], begin, 6, axis=1)
            output, _ = rnn(input)
            assert output.place is input.place
            parts.append(output.numpy())
        return np.concatenate(parts, axis=1)

    np.testing.assert_allclose(run(1, 1, 4), run(), rtol=1e-12)
    sx.manual_seed(3)
    rnn = layer(3, 4, num_layers=2, dropout=0.5, dtype="float64")
    assert not np.allclose(rnn(x)[0].numpy(), rnn.eval()(x)[0].numpy())


@LAYERS
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("cache", "size"), [("_SECOND_CACHE", 0), ("_CACHED", 0), ("_CACHED", 16)])
def test_what_no_cache_holds(layer: Any, bias: bool, cache: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs are multiplied with the weights for all steps, not in each; gates get their slopes for few steps."""
    rnn, x = layer(3, 4, bidirectional=True, bias=bias, dtype="float64"), RNG.standard_normal((5, 2, 3))

    def run() -> list[Any]:
        rnn.zero_grad()
        leaf = Tensor(x, requires_grad=True)
        results = rnn(leaf)
        results[0].square().sum().backward()
        return [*states_of(results), leaf.grad.numpy(), *(p.grad.numpy().copy() for p in rnn.parameters())]

    results = run()
    monkeypatch.setattr(recurrent, cache, size)
    for one, other in zip(results, run(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


@LAYERS
def test_extreme_inputs_stay_finite(layer: Any) -> None:
    rnn = layer(2, 3)
    x = Tensor(np.array([[[1e4, -1e4]], [[-1e4, 1e4]]], np.float32), requires_grad=True)
    output, _ = rnn(x)
    output.sum().backward()
    assert np.isfinite(output.numpy()).all()
    assert np.isfinite(x.grad.numpy()).all()


@LAYERS
def test_bad_input_is_named(layer: Any) -> None:
    rnn = layer(3, 4, batch_first=True)
    name = layer.__name__
    for shape in ((2, 5, 4), (5,), (2, 0, 3)):
        with pytest.raises(ValueError, match=name) as raised:
            rnn(np.zeros(shape))
        assert "(N, T, 3)" in str(raised.value)
        assert str(shape) in str(raised.value)
    with pytest.raises(ValueError, match=r"h_0 must have shape \(1, 2, 4\), got shape \(1, 2, 5\)"):
        rnn(np.zeros((2, 5, 3)), start(layer, 1, 2, 5))
    with pytest.raises(ValueError, match="hidden_size must be >= 1, got 0"):
        layer(3, 0)
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\], got 1.2"):
        layer(3, 4, dropout=1.2)
    if layer is nn.LSTM:
        with pytest.raises(ValueError, match=r"hx must be a pair \(h_0, c_0\)"):
            rnn(np.zeros((2, 5, 3)), np.zeros((1, 2, 4)))


def test_repr() -> None:
    assert repr(nn.GRU(3, 4)).splitlines()[0] == "GRU("
    assert "3, 4, num_layers=2, batch_first=True, bidirectional=True" in repr(
        nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True)
    )


@LAYERS
def test_the_common_dtype(layer: Any) -> None:
    """That of the input, the states and the weights, as elsewhere."""
    narrow, wide = layer(3, 4), layer(3, 4, dtype="float64")
    x = RNG.standard_normal((5, 2, 3))
    assert wide(x.astype(np.float32))[0].dtype == np.float64
    assert narrow(x)[0].dtype == np.float64
    assert narrow(np.ones((5, 2, 3), int))[0].dtype == np.float32
    assert narrow(x.astype(np.float32), start(layer, 1, 2, 4))[0].dtype == np.float64
    leaf = Tensor(x.astype(np.float32), requires_grad=True)
    wide(leaf)[0].sum().backward()
    assert leaf.grad.numpy().dtype == np.float32


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_a_cell_does_one_step_of_its_layer(kind: str) -> None:
    layer, cell = getattr(nn, kind)(3, 4, dtype="float64"), getattr(nn, kind + "Cell")(3, 4, dtype="float64")
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})
    x, state = RNG.standard_normal((5, 2, 3)), None
    for t in range(5):
        state = cell(x[t], state)
    h = state[0] if kind == "LSTM" else state
    np.testing.assert_allclose(h.numpy(), layer(x)[0].numpy()[-1])
    single = cell(x[0, 1])
    np.testing.assert_allclose((single[0] if kind == "LSTM" else single).numpy(), layer(x[:1])[0].numpy()[0, 1])
    with pytest.raises(ValueError, match=r"Cell: input must have shape \(N, 3\), got shape \(5, 2, 3\)"):
        cell(x)
    with pytest.raises(ValueError, match=r"Cell: h_0 must have shape \(2, 4\), got shape \(3, 4\)"):
        cell(x[0], (np.zeros((3, 4)),) * 2 if kind == "LSTM" else np.zeros((3, 4)))


def test_the_nonlinearity_is_checked() -> None:
    for kind in (nn.RNN, nn.RNNCell):
        with pytest.raises(ValueError, match="nonlinearity must be 'tanh' or 'relu', got 'sin'"):
            kind(3, 4, nonlinearity="sin")
