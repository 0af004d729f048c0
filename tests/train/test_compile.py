"""Captured steps have the bits of the step itself, or say why they run as they are."""

from __future__ import annotations

import argparse
import pickle
import re
import sys
import types
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.comm import run_threads
from sorix_dist.core.ops import activation
from sorix_dist.nn import functional as F
from sorix_dist.utils.data import DataLoader, Dataset
from tests.support.launching import needs_mpirun, run_command, run_ranks
from tests.support.train import compile_cases

X = np.random.default_rng(0).standard_normal((6, 8, 4)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 3, (6, 8))
CASES = [*zip(map(sx.tensor, X), map(sx.tensor, Y), strict=True)]


def beginning() -> tuple[nn.Module, optim.SGD]:
    sx.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    return model, optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def plain(model: nn.Module, optimizer: Any) -> Callable[..., Any]:
    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


def replays(step: Any) -> int:
    return sum(entry.runs for entry in step._programs.values())


def refused(step: Callable[..., Any], *args: Any) -> str:
    """Why a step runs as it is."""
    compiled = sx.compile(step)
    with pytest.warns(RuntimeWarning, match="runs as it is") as said:
        compiled(*args)
    assert said[0].filename == __file__
    for _ in range(4):
        compiled(*args)
    assert replays(compiled) == 0
    return compiled.reason


@pytest.mark.parametrize("case", compile_cases.CASES, ids=lambda case: case.__name__)
def test_bits(case: Any):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        eager, captured = compile_cases.trained(case, False), compile_cases.trained(case, True)
    assert eager[:2] == captured[:2]
    assert replays(captured[2]) > 3


@needs_mpirun
@pytest.mark.timeout(200)
@pytest.mark.parametrize(("ranks", "options"), [(3, []), (2, ["4"]), (4, ["4"])])
def test_bits_on_ranks(ranks: int, options: list[str]):
    """Uneven rows, and reproducible mode."""
    ended = run_ranks(ranks, "-m", "tests.support.train.compile_cases", *options, limit=150)
    assert ended.code == 0, ended.out + ended.err
    assert "8 cases" in ended.out


@pytest.mark.parametrize("shards", [None, 4])
@pytest.mark.parametrize("case", compile_cases.CASES, ids=lambda case: case.__name__)
def test_a_captured_step_beside_ranks_without_one(case: Any, shards: int | None):
    """Both compare the same numbers, such as class weights, in each step."""

    def train() -> Any:
        sx.init(virtual_shards=shards)
        return compile_cases.trained(case, sx.rank() == 0)[:2]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = run_threads(train, 2)
    assert first[1] == second[1]


BY_HAND: dict[str, Callable[[Any], Any]] = {
    "all_gather": lambda out: sx.cat(sx.all_gather(out), 0).sum(),
    "all_gather of objects": lambda out: len(sx.all_gather([0] * out.shape[1])),
    "all_gather of an array": lambda out: sx.all_gather(np.ones(2)),
    "all_reduce of a number": lambda out: sx.all_reduce(1.0),
    "all_reduce of an array": lambda out: sx.all_reduce(np.ones(2)),
    "broadcast_object_list": lambda out: sx.distributed.broadcast_object_list([1]),
    "should_stop": lambda out: sx.EarlyStopping(patience=9).should_stop(1.0),
}


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.filterwarnings("ignore:compile:RuntimeWarning")
def test_collectives_by_hand_are_refused(name: str):
    """One rank may replay where another one records: both must send the same messages."""
    collective = BY_HAND[name]

    def train(capture: bool) -> Any:
        sx.manual_seed(0)
        model = sx.DistributedDataParallel(nn.Linear(4, 3))
        optimizer = optim.SGD(model.parameters(), lr=0.1)

        def step(x: Any, y: Any) -> None:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            collective(model(x).detach())

        run = sx.compile(step) if capture else step
        for call in range(8):
            rows = 7 + call % 2
            for x, y in DataLoader(Dataset(X[call % 6][:rows], Y[call % 6][:rows]), batch_size=rows):
                run(x, y)
        return compile_cases.bits(model), run.reason if capture else ""

    eager, captured = (run_threads(train, 3, args=(capture,)) for capture in (False, True))
    for (wanted, _), (found, reason) in zip(eager, captured, strict=True):
        assert found == wanted
        assert re.search(rf"{name.split(' ')[0]} can't be captured.*{__name__.rpartition('.')[2]}\.py:\d+", reason)


@sx.compile
def weighted_step(model: Any, optimizer: Any, x: Any, y: Any) -> Any:
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y) * WEIGHT.get()
    loss.backward()
    optimizer.step()
    return loss


WEIGHT: ContextVar[float] = ContextVar("weight")


def test_threads_that_call_one_step():
    """Such as the ranks of sx.run with threads, which call a function of a module: each has programs of its own."""

    def train(number: int, step: Any) -> Any:
        model = nn.Linear(4, 3)
        for p in model.parameters():
            p.data = np.full(p.shape, 0.1, np.float32)
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        losses = []
        for call in range(60):
            WEIGHT.set(float(number + call // 20))
            losses.append(step(model, optimizer, sx.tensor(X[call % 6]), sx.tensor(Y[call % 6])).item())
        return losses, compile_cases.bits(model)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: train(number, weighted_step), range(1, 9)))
    assert found == [train(number, weighted_step.step) for number in range(1, 9)]
    assert weighted_step.reason is None
    assert "cross_entropy" in weighted_step.source


def test_a_step_of_a_module_is_pickled_by_its_name():
    assert pickle.loads(pickle.dumps(weighted_step)) is weighted_step


FORMS: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "arrays": lambda x, y: (x.copy(), y.copy()),
    "new tensors": lambda x, y: (sx.tensor(x), sx.tensor(y)),
    "a tensor and an array": lambda x, y: (sx.tensor(x), y),
}


@pytest.mark.parametrize("form", FORMS)
def test_batches_that_no_loader_has_made(form: str):
    """A wrapped model finds out by itself that they are rows of the batch."""

    def train(capture: bool) -> Any:
        sx.manual_seed(0)
        model = sx.DistributedDataParallel(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4)))
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def step(x: Any, y: Any) -> Any:
            optimizer.zero_grad()
            out = model(x)
            loss = F.cross_entropy(out[:, :3], y) + F.mse_loss(out, x)
            loss.backward()
            optimizer.step()
            return loss

        run = sx.compile(step) if capture else step
        losses = []
        for call in range(16):
            rows = 8 if call % 2 else 5
            losses.append(run(*FORMS[form](X[call % 6][:rows], Y[call % 6][:rows])).item())
        return losses, compile_cases.bits(model.module), replays(run) if capture else run

    (losses, weights, _), (*captured, runs) = train(False), train(True)
    assert [losses, weights] == captured
    assert runs == 12


def test_batches_of_several_ranks_that_no_loader_has_made():
    """How many rows the others have is known in the middle of the step only, and may be another number in each."""

    def train() -> str:
        model = sx.DistributedDataParallel(nn.Linear(4, 3))
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        step = sx.compile(plain(model, optimizer))
        for rows in (8, 8, 8, 8, 5):
            x, y = (X[0], Y[0]) if sx.rank() else (X[0][:rows], Y[0][:rows])
            step(x, y)
        assert replays(step) == 0
        return str(step.reason)

    for reason in run_threads(train, 2):
        assert "take it from a DataLoader" in reason


class Scaled(nn.Module):
    def __init__(self) -> None:
        self.linear = nn.Linear(4, 1)

    def forward(self, x: Any, scale: Any) -> Any:
        return self.linear(x) + self.linear(scale)


def test_an_input_that_is_rows_of_the_batch_by_chance():
    """Whether an array is as long as the batch on every rank may change while this rank's shapes stay."""

    def train() -> None:
        model = sx.DistributedDataParallel(Scaled())
        optimizer = optim.SGD(model.parameters(), lr=0.1)

        @sx.compile
        def step(x: Any, other: Any) -> None:
            optimizer.zero_grad()
            model(x, other).sum().backward()
            optimizer.step()

        for x, _ in 8 * [*DataLoader(Dataset(X[0], Y[0]), batch_size=8)]:
            step(x, X[1][:4])
        assert replays(step) > 3
        other = X[1][:1] if sx.rank() else X[1][:4]
        with pytest.raises(
            RuntimeError, match=r"counts as rows|ended|mismatch|rank 0" if sx.rank() else "counts as rows"
        ):
            step(x, other)

    run_threads(train, 2)


def test_source_is_a_program():
    model, optimizer = beginning()
    step = sx.compile(plain(model, optimizer))
    for batch in CASES[:3]:
        step(*batch)
    compile(step.source, "source", "exec")
    assert "relu(t" in step.source
    assert "linear(a0.array, layer_0_W_0, layer_0_b_0)" in step.source


def test_audit_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SORIX_DIST_COMPILE", "off")
    model, optimizer = beginning()
    step = sx.compile(plain(model, optimizer))
    for batch in CASES:
        step(*batch)
    assert not step.source
    monkeypatch.setenv("SORIX_DIST_COMPILE", "never")
    with pytest.raises(ValueError, match="must be 'audit', 'off' or unset, got 'never'"):
        sx.compile(plain(model, optimizer))


def test_audit_finds_what_has_changed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SORIX_DIST_COMPILE", "audit")
    model, optimizer = beginning()
    monkeypatch.setattr(np, "_scale", 1.0, raising=False)  # which is looked at nowhere

    @sx.compile
    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y) * np._scale
        loss.backward()
        optimizer.step()
        return loss

    for batch in CASES:
        step(*batch)
    monkeypatch.setattr(np, "_scale", 2.0)
    with pytest.raises(RuntimeError, match=r"not what the step does .*`t\d+, r\d+ = mul\("):
        step(*CASES[0])


def test_audit_computes_a_second_time(monkeypatch: pytest.MonkeyPatch):
    """An operation whose result does not follow from its inputs alone makes the same calls every time."""
    calls = iter(range(100))
    monkeypatch.setattr(activation, "_positive_part", lambda x: x + next(calls))
    step = sx.compile(lambda x: F.relu(x * 2))
    with pytest.raises(RuntimeError, match=r"in call 1: `t\d+, r\d+ = relu\(t\d+\)` gives other numbers .*test_comp"):
        [step(x) for x, _ in CASES]


# -- what may change between calls


def alike(change: Callable[..., None], epochs: int = 6) -> Any:
    """Trains as it is and captured, with `change(epoch, model, optimizer)` before each epoch; the captured step."""
    ends = []
    for capture in (False, True):
        model, optimizer = beginning()
        step = plain(model, optimizer)
        compiled = sx.compile(step) if capture else step
        results = []
        for epoch in range(epochs):
            change(epoch, model, optimizer)
            results += [compiled(*batch).item() for batch in CASES]
        ends.append((results, compile_cases.bits(model)))
    assert ends[0] == ends[1]
    assert replays(compiled)
    return compiled


def test_learning_rate_and_options():
    def change(epoch: int, model: nn.Module, optimizer: Any) -> None:
        optimizer.param_groups[0].update(lr=0.1 / (epoch + 1), momentum=0.5 + epoch / 20)

    alike(change)


def test_state_that_is_loaded():
    begun: dict[str, Any] = {}

    def change(epoch: int, model: nn.Module, optimizer: Any) -> None:
        if epoch == 0:
            begun.update({key: np.array(value) for key, value in model.state_dict().items()})
        if epoch == 4:
            model.load_state_dict(begun)

    alike(change)


def test_weights_that_are_set_by_hand():
    def change(epoch: int, model: nn.Module, optimizer: Any) -> None:
        with sx.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.9)

    alike(change)


def test_frozen_parameters():
    def change(epoch: int, model: nn.Module, optimizer: Any) -> None:
        next(iter(model.parameters())).requires_grad_(epoch % 2 == 0)

    alike(change)


def test_hooks_that_come_and_go():
    handles = []

    def change(epoch: int, model: nn.Module, optimizer: Any) -> None:
        if epoch == 2:
            handles.append(next(iter(model.parameters())).register_hook(lambda g: g * 2))
        if epoch == 4:
            handles.pop().remove()

    with pytest.warns(RuntimeWarning, match="hook of a parameter"):
        alike(change)


def test_modes_shapes_and_dtypes():
    sx.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 3))

    @sx.compile
    def predict(x: Any) -> Any:
        with sx.no_grad():
            return model(x)

    x = CASES[0][0]
    for _ in range(4):
        model.eval()
        kept = [predict(x).numpy() for _ in range(6)]
        assert all(np.array_equal(kept[0], other) for other in kept)
        model.train()
        assert not np.array_equal(predict(x).numpy(), predict(x).numpy())
        assert predict(x[:3]).shape == (3, 3)
        assert predict(sx.tensor(x.numpy().astype(np.float64))).dtype == sx.float64


def test_numbers_of_closure_arguments_and_modules():
    power = 1.0

    class Model(nn.Module):
        def __init__(self) -> None:
            self.shift = 0.0

        def forward(self, x: Any) -> Any:
            return x + self.shift

    model = Model()

    @sx.compile
    def step(x: Any, double: bool, *, offset: float = 0.0) -> Any:
        y = model(x) * power + offset
        return y * 2 if double else y

    x = sx.tensor(np.arange(3.0))
    for i in range(30):
        power, model.shift, double, offset = float(i % 3), float(i % 2), i % 5 == 0, float(i % 4)
        expected = ((x.numpy() + model.shift) * power + offset) * (2 if double else 1)
        np.testing.assert_array_equal(step(x, double, offset=offset).numpy(), expected.astype(np.float32))


def test_objects_of_the_closure_that_stay_for_many_calls():
    """A repeated call is recognised without a key; a change between such calls is seen, and so is a change back."""
    layers = [nn.Linear(3, 3), nn.Linear(3, 3), nn.Tanh()]
    layer: nn.Module = layers[0]

    @sx.compile
    def step(x: Any, y: Any) -> Any:
        with sx.no_grad():
            return layer(x) + y

    rows = [sx.tensor(np.random.default_rng(i).standard_normal((2, 3)).astype(np.float32)) for i in range(3)]
    wide = [sx.tensor(x.numpy().astype(np.float64)) for x in rows]
    for i in range(120):
        layer = layers[i // 9 % 3]
        x, y = ((wide if i // 7 % 2 else rows)[k % 3] for k in (i, i + i // 11 % 2))  # one array for both at times
        np.testing.assert_array_equal(step(x, y).numpy(), (layer(x) + y).numpy())
    assert replays(step) > 40
    assert step.reason is None


OPTIONS = [
    argparse.Namespace(factor=1.0, other=[1]),
    types.SimpleNamespace(factor=1.0),
    type("Options", (), {})(),
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: type(options).__name__)
def test_options_that_change_cost_no_key_while_they_stay(options: Any, monkeypatch: pytest.MonkeyPatch):
    options.factor = 1.0
    model, optimizer = beginning()

    def step(x: Any, y: Any) -> Any:
        loss = F.cross_entropy(model(x), y) * options.factor
        optimizer.zero_grad()
        loss.backward()
        return loss

    captured, keys = sx.compile(step), []
    key_of = captured._key
    monkeypatch.setattr(captured, "_key", lambda *args: keys.append(args) or key_of(*args))
    losses = [captured(*CASES[0]).item() for _ in range(6)]
    known = len(keys)
    losses += [captured(*CASES[0]).item() for _ in range(6)]
    assert (known, len({*losses}), replays(captured)) == (len(keys), 1, 10)
    options.factor = 2.0
    assert captured(*CASES[0]).item() == 2 * losses[0]
    assert len(keys) > known


def test_tensors_of_the_closure():
    table = sx.tensor(np.ones(3))

    @sx.compile
    def step(x: Any) -> Any:
        return x * table

    x = sx.tensor(np.arange(3.0))
    for i in range(12):
        if i % 2:
            table.array[:] = i  # the same memory
        else:
            table = sx.tensor(np.full(3, float(i)))
        np.testing.assert_array_equal(step(x).numpy(), x.numpy() * i)


def test_results_stay():
    """No later call writes into what an earlier one has returned."""
    model, _ = beginning()
    step = sx.compile(lambda x: (model(x) * 2).detach())
    results = [step(batch[0]) for batch in CASES * 3]
    assert replays(step)
    copies = [np.array(result.numpy()) for result in results]
    for batch in CASES:
        step(batch[0])
    assert all(np.array_equal(a.numpy(), b) for a, b in zip(results, copies, strict=True))


def test_methods_of_two_instances():
    class Trainer:
        def __init__(self, rate: float) -> None:
            self.model, self.optimizer = beginning()
            self.optimizer.param_groups[0]["lr"] = rate

        @sx.compile
        def step(self, x: Any, y: Any) -> Any:
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(x), y)
            loss.backward()
            self.optimizer.step()
            return loss

    trainers = [Trainer(0.1), Trainer(0.01)]
    captured = [[t.step(*batch).item() for batch in CASES * 2] for t in trainers]
    for rate, losses in zip((0.1, 0.01), captured, strict=True):
        model, optimizer = beginning()
        optimizer.param_groups[0]["lr"] = rate
        step = plain(model, optimizer)
        assert losses == [step(*batch).item() for batch in CASES * 2]
    assert all(replays(t.step) for t in trainers)


def test_nesting():
    model, optimizer = beginning()
    loss_of = sx.compile(lambda x, y: F.cross_entropy(model(x), y))

    @sx.compile
    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        loss = loss_of(x, y)
        loss.backward()
        optimizer.step()
        return loss

    losses = [step(*batch).item() for batch in CASES * 2]
    other, its_optimizer = beginning()
    again = plain(other, its_optimizer)
    assert losses == [again(*batch).item() for batch in CASES * 2]
    assert replays(step)


def test_exceptions_in_the_middle():
    model, optimizer = beginning()
    step = sx.compile(plain(model, optimizer))
    other, its_optimizer = beginning()
    again = plain(other, its_optimizer)
    for i, (x, y) in enumerate(CASES * 3):
        if i % 5 == 4:
            wrong = sx.tensor(y.numpy() + 3)
            for each in (step, again):
                with pytest.raises(IndexError, match=r"target must be in \[0, 3\)"):
                    each(x, wrong)
        assert step(x, y).item() == again(x, y).item()
    assert compile_cases.bits(model) == compile_cases.bits(other)


def test_draws_go_on():
    """Random numbers are drawn anew in every call, as they would be."""
    ends = []
    for capture in (False, True):
        sx.manual_seed(7)
        draw = (sx.compile if capture else lambda f: f)(lambda x: x + sx.randn(3) * sx.rand(3) + F.dropout(sx.ones(())))
        ends.append([draw(sx.zeros(3)).numpy().tobytes() for _ in range(12)])
    assert ends[0] == ends[1]
    assert len({*ends[0]}) == 12


# -- what is refused


def test_reading_numbers():
    model, _ = beginning()

    def branch(x: Any) -> Any:
        y = model(x).sum()
        return y * 2 if y > 0 else y

    assert "reads the numbers of a tensor" in refused(branch, CASES[0][0])
    assert "reads the numbers of a tensor" in refused(lambda x: x * x.sum().item(), CASES[0][0])
    assert "Python number" in refused(lambda x: 1.5, CASES[0][0])
    reason = refused(branch, CASES[0][0])
    assert "test_compile.py:" in reason


def test_arrays_from_nowhere():
    assert "comes from nowhere" in refused(lambda x: x * np.arange(4.0), CASES[0][0])
    assert "comes from nowhere" in refused(lambda x: x + np.random.default_rng().random(4), CASES[0][0])


def test_changes_that_no_program_sees():
    model, _ = beginning()
    weight = next(iter(model.parameters()))

    def by_hand(x: Any, y: Any) -> Any:
        F.cross_entropy(model(x), y).backward()
        weight.grad = None
        return x

    assert "grad" in refused(by_hand, *CASES[0])

    def in_place(x: Any) -> Any:
        with sx.no_grad():
            weight.mul_(0.5)
        return x * 2

    assert "in place" in refused(in_place, CASES[0][0])
    assert "barrier" in refused(lambda x: (sx.barrier(), x * 2)[1], CASES[0][0])


def test_rows_that_are_selected():
    """Their number follows from values."""
    reason = refused(lambda x: x[x[:, 0] > 0].sum(), CASES[0][0])
    assert "select" in reason or "mask" in reason or "number" in reason


def test_gradients_of_inputs():
    def step(x: Any) -> Any:
        x = x.detach().requires_grad_()
        return sx.grad((x**2).sum(), [x])[0]

    assert "grad" in refused(step, CASES[0][0])


def test_a_number_that_changes_every_time():
    count = 0

    @sx.compile
    def step(x: Any) -> Any:
        return x * count

    def check() -> None:
        nonlocal count
        for count in range(300):
            np.testing.assert_array_equal(step(x).numpy(), np.full(2, count, np.float32))

    x = sx.ones(2)
    with pytest.warns(RuntimeWarning, match="more than 256 kinds of calls"):
        check()


def test_what_is_no_function():
    with pytest.raises(TypeError, match="step must be a function, got int"):
        sx.compile(3)


def test_example():
    ended = run_command([sys.executable, "examples/compiled.py", "--epochs", "2"], limit=100)
    assert ended.code == 0, ended.err
    assert "the same weights: True" in ended.out
    assert "def step(a0, a1):" in ended.out
