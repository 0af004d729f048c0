"""Weights of PyTorch's models in ours and back, and states of its optimizers: the same outputs, the same next steps."""

from __future__ import annotations

import inspect
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim

torch = pytest.importorskip("torch")
rng = np.random.default_rng(0)


def floats(*shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


TOKENS = rng.integers(0, 7, (5, 6))
# Of each layer its name, arguments and options in both libraries, and an input. Square matrices wherever they can be.
LAYERS: list[Any] = [
    ("Linear", (4, 4), {}, floats(5, 4)),
    ("Linear", (4, 3), {"bias": False}, floats(5, 4)),
    ("Embedding", (7, 7), {}, TOKENS),
    ("EmbeddingBag", (7, 5), {"mode": "sum"}, TOKENS),
    ("BatchNorm1d", (4,), {}, floats(5, 4)),
    ("BatchNorm1d", (4,), {"momentum": None}, floats(5, 4)),
    ("BatchNorm1d", (4,), {"affine": False}, floats(5, 4)),
    ("BatchNorm2d", (4,), {}, floats(5, 4, 3, 3)),
    ("LayerNorm", (4,), {}, floats(5, 4)),
    ("GroupNorm", (2, 4), {}, floats(5, 4, 3)),
    ("Conv1d", (4, 4, 3), {}, floats(2, 4, 8)),
    ("Conv2d", (4, 4, 3), {"groups": 2}, floats(2, 4, 8, 8)),
    ("ConvTranspose2d", (4, 4, 3), {}, floats(2, 4, 8, 8)),
    ("LSTM", (4, 4), {"num_layers": 2, "bidirectional": True}, floats(5, 3, 4)),
    ("GRU", (4, 4), {"batch_first": True}, floats(5, 3, 4)),
    ("TransformerEncoderLayer", (4, 2, 4), {"dropout": 0.0}, floats(5, 3, 4)),
    ("TransformerEncoderLayer", (4, 2, 4), {"dropout": 0.0, "bias": False}, floats(5, 3, 4)),
]
# Layers that are added later come in by themselves, if both libraries have them.
LATER: list[Any] = [
    ("Conv3d", (4, 4, 3), {}, floats(2, 4, 5, 5, 5)),
    ("ConvTranspose1d", (4, 4, 3), {}, floats(2, 4, 8)),
    ("BatchNorm3d", (4,), {}, floats(2, 4, 3, 3, 3)),
    ("InstanceNorm1d", (4,), {"affine": True}, floats(2, 4, 6)),
    ("InstanceNorm2d", (4,), {"affine": True}, floats(2, 4, 6, 6)),
    ("InstanceNorm3d", (4,), {"affine": True}, floats(2, 4, 3, 3, 3)),
    ("RMSNorm", (4,), {}, floats(5, 4)),
    ("PReLU", (4,), {}, floats(5, 4)),
    ("RNN", (4, 4), {"num_layers": 2}, floats(5, 3, 4)),
    ("RNNCell", (4, 4), {}, floats(5, 4)),
    ("LSTMCell", (4, 4), {}, floats(5, 4)),
    ("GRUCell", (4, 4), {}, floats(5, 4)),
]
LAYERS += [row for row in LATER if hasattr(nn, row[0])]


def first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


def both(name: str, arguments: Any, options: Any) -> tuple[Any, Any]:
    """The layer in both libraries; PyTorch's with random numbers in every parameter and statistic."""
    theirs = getattr(torch.nn, name)(*arguments, **options)
    with torch.no_grad():
        for tensor in theirs.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape) * 0.5 + 0.2)
    return getattr(nn, name)(*arguments, **options), theirs


def inputs(x: Any) -> tuple[Any, Any]:
    return (sx.tensor(x), torch.tensor(x))


def assert_equal_outputs(ours: Any, theirs: Any, x: Any) -> None:
    ours.eval(), theirs.eval()
    mine, other = inputs(x)
    np.testing.assert_allclose(first(ours(mine)).numpy(), first(theirs(other)).detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "arguments", "options", "x"), LAYERS, ids=lambda value: str(value)[:30])
def test_weights_both_ways(name: str, arguments: Any, options: Any, x: Any) -> None:
    ours, theirs = (layer.double() for layer in both(name, arguments, options))
    x = x.astype(np.float64) if x.dtype == np.float32 else x
    ours.load_state_dict(theirs.state_dict())
    assert_equal_outputs(ours, theirs, x)
    fresh = getattr(torch.nn, name)(*arguments, **options).double()
    state = {key: torch.from_numpy(value) for key, value in sx.to_torch_state(ours).items()}
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in state.items())
    fresh.load_state_dict(state)
    assert_equal_outputs(ours, fresh, x)


OPTIMIZERS: list[Any] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.01}),
    ("AdamW", {"lr": 0.01, "betas": (0.8, 0.99)}),
    ("RMSprop", {"lr": 0.01, "momentum": 0.5}),
    ("RMSprop", {"lr": 0.01, "centered": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "maximize": True}),
    ("Adam", {"lr": 0.01, "amsgrad": True}),
    ("Adagrad", {"lr": 0.01, "lr_decay": 0.1, "initial_accumulator_value": 0.2}),
    ("Adamax", {"lr": 0.01}),
    ("NAdam", {"lr": 0.01}),
    ("RAdam", {"lr": 0.01}),
]


@pytest.mark.parametrize(("optimizer", "settings"), OPTIMIZERS, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize(
    ("name", "arguments", "options", "x"),
    [
        row
        for row in LAYERS
        if row[0] in ("Linear", "LSTM", "BatchNorm1d", "Embedding")
        # with biases, Adam would divide the rounding errors of a gradient that is zero by each other
        or (row[0] == "TransformerEncoderLayer" and "bias" in row[2])
        if row[2].get("affine", True)
    ],
    ids=lambda value: str(value)[:30],
)
def test_optimizer_states(name, arguments, options, x, optimizer, settings) -> None:
    ours, theirs = both(name, arguments, options)
    mine, other = inputs(x)
    target = torch.from_numpy(floats(*first(theirs(other)).shape))
    their_optimizer = getattr(torch.optim, optimizer)(theirs.parameters(), **settings)

    def step_of_theirs() -> None:
        their_optimizer.zero_grad()
        ((first(theirs(other)) - target) ** 2).mean().backward()
        their_optimizer.step()

    for _ in range(3):
        step_of_theirs()
    ours.load_state_dict(theirs.state_dict())
    our_optimizer = getattr(optim, optimizer)(ours.parameters(), **{**settings, "lr": 0.5})
    our_optimizer.load_state_dict(their_optimizer.state_dict())
    assert our_optimizer.param_groups[0]["lr"] == settings["lr"]
    assert set(our_optimizer.param_groups[0]) <= {*our_optimizer.defaults, "params"}
    for _ in range(2):
        step_of_theirs()
        our_optimizer.zero_grad()
        ((first(ours(mine)) - target.numpy()) ** 2).mean().backward()
        our_optimizer.step()
    for key, value in sx.to_torch_state(ours).items():
        np.testing.assert_allclose(value, theirs.state_dict()[key].numpy(), rtol=2e-4, atol=2e-6, err_msg=key)


@pytest.mark.parametrize("widths", [{}, {"kdim": 6, "vdim": 3}])
def test_attention(widths: Any) -> None:
    ours, theirs = nn.MultiheadAttention(4, 2, **widths), torch.nn.MultiheadAttention(4, 2, **widths)
    ours.load_state_dict(theirs.state_dict())
    assert sx.to_torch_state(ours).keys() == theirs.state_dict().keys()
    given = [floats(5, 3, width) for width in (4, widths.get("kdim", 4), widths.get("vdim", 4))]
    mine, other = ours(*map(sx.tensor, given))[0], theirs(*map(torch.tensor, given))[0]
    np.testing.assert_allclose(mine.numpy(), other.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["Encoder", "Decoder", ""])
def test_transformers(kind: str) -> None:
    def made(library: Any) -> Any:
        if kind:
            return getattr(library, f"Transformer{kind}")(getattr(library, f"Transformer{kind}Layer")(4, 2, 4, 0.0), 2)
        return library.Transformer(4, 2, 2, 2, 4, 0.0)

    ours, theirs = made(nn), made(torch.nn)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.rand(parameter.shape))
    ours.load_state_dict(theirs.state_dict())
    assert sx.to_torch_state(ours).keys() == theirs.state_dict().keys()
    given = [floats(5, 3, 4), floats(6, 3, 4)][: 1 if kind == "Encoder" else 2]
    mine, other = ours(*map(sx.tensor, given)), theirs(*map(torch.tensor, given))
    np.testing.assert_allclose(mine.numpy(), other.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_layers_with_weights_are_all_here() -> None:
    """A layer of both libraries that has parameters or statistics has a row above."""
    plain = {"Module", "Sequential", "ModuleList", "ModuleDict", "ParameterList", "ParameterDict", "Parameter"}
    apart = {"MultiheadAttention", "Transformer", "TransformerEncoder", "TransformerDecoder", "TransformerDecoderLayer"}
    apart |= {"Bilinear"}  # of two inputs, which test_module_database gives it
    named = {row[0] for row in LAYERS} | plain | apart
    for name in set(nn.__all__) - named:
        ours, theirs = getattr(nn, name), getattr(torch.nn, name, None)
        if isinstance(ours, type) and theirs is not None and issubclass(theirs, torch.nn.Module):
            try:
                assert not theirs().state_dict(), name
            except TypeError:  # it needs arguments: that it has none of its own shows in its source
                assert "Parameter(" not in inspect.getsource(theirs), name


def test_options_that_ours_do_not_have() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    theirs = torch.optim.SGD([weight], lr=0.1, momentum=0.9, maximize=True)
    weight.grad = torch.ones(3)
    theirs.step()
    ours = optim.SGD([sx.tensor(np.ones(3, np.float32), requires_grad=True)], lr=0.1, momentum=0.9)
    if "maximize" not in ours.defaults:
        with pytest.raises(ValueError, match="SGD has no option maximize, which PyTorch's state sets to True"):
            ours.load_state_dict(theirs.state_dict())


def net(library: Any) -> Any:
    return library.nn.Sequential(
        library.nn.Conv2d(1, 3, 3), library.nn.BatchNorm2d(3), library.nn.ReLU(), library.nn.Flatten(),
        library.nn.Linear(48, 16), library.nn.BatchNorm1d(16), library.nn.Linear(16, 16),
    )  # fmt: skip


def test_models_wrapped_by_either_library(tmp_path: Path) -> None:
    x = floats(5, 1, 6, 6)
    theirs, ours = net(torch), sx.DistributedDataParallel(net(sx))
    ours.load_state_dict({f"module.{name}": value for name, value in theirs.state_dict().items()})
    assert_equal_outputs(ours, theirs, x)
    sx.save(sx.to_torch_state(ours), tmp_path / "model.safetensors")
    back = {name: torch.from_numpy(value) for name, value in sx.load(tmp_path / "model.safetensors").items()}
    again = net(torch)
    again.load_state_dict(back)
    assert_equal_outputs(ours, again, x)
    saved = io.BytesIO()
    sx.save(ours.module, saved)
    saved.seek(0)
    assert_equal_outputs(sx.load(saved), theirs, x)


def test_bfloat16() -> None:
    theirs, ours = torch.nn.Linear(4, 4).to(torch.bfloat16), nn.Linear(4, 4)
    ours.load_state_dict(theirs.state_dict())
    assert np.array_equal(ours.W.numpy(), theirs.weight.detach().float().numpy().T)


def test_what_does_not_fit_is_refused() -> None:
    ours = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
    before = {name: value.numpy().copy() for name, value in ours.state_dict().items()}
    for theirs, message in (
        (torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)), "unknown.*0.bias"),
        (torch.nn.Sequential(torch.nn.Linear(4, 5, bias=False), torch.nn.BatchNorm1d(4)), r"'0.W' must have shape"),
        (torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False)), "lacks .*1.gamma"),
    ):
        with pytest.raises(ValueError, match=message):
            ours.load_state_dict(theirs.state_dict())
    assert all(np.array_equal(value.numpy(), before[name]) for name, value in ours.state_dict().items())


def test_the_example() -> None:
    script = Path(__file__).parents[2] / "examples" / "from_torch.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    before, after = (float(line.split("accuracy ")[1][:5]) for line in done.stdout.splitlines())
    assert before < 0.95 < after


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        ("eye_", (3, 5), {}),
        ("eye_", (4, 2), {}),
        ("dirac_", (4, 3, 3), {}),
        ("dirac_", (6, 2, 2, 3), {"groups": 3}),
        ("dirac_", (2, 4, 1, 2, 3), {"groups": 1}),
    ],
)
def test_identities(name: str, shape: tuple[int, ...], options: dict[str, int]) -> None:
    ours = getattr(nn.init, name)(sx.tensor(np.ones(shape)), **options)
    theirs = getattr(torch.nn.init, name)(torch.ones(shape, dtype=torch.float64), **options)
    np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
