"""Optimizers that users write as for PyTorch: on one process, on several ranks, saved, loaded, and in error."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from pickle import loads
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.comm.pickling import dumps
from sorix_dist.utils.data import DataLoader, Dataset
from tests.support.users_optimizers import trials, turn

TRIALS = trials(sx)
every_trial = pytest.mark.parametrize("name", TRIALS)
X = np.random.default_rng(0).standard_normal((23, 5))
Y = np.sin(X[:, :3]) + X[:, 2:]


def wrapped(**options: Any) -> nn.Module:
    sx.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    return sx.DistributedDataParallel(network, **options)


def train(model: nn.Module, optimizer: Any, how: str, epochs: int = 2, schedule: Any = None) -> None:
    for _ in range(epochs):
        for xb, yb in DataLoader(Dataset(X, Y), batch_size=10):

            def backward(xb: Any = xb, yb: Any = yb) -> Any:
                loss = ((model(xb) - yb) ** 2).mean()
                loss.backward()
                return loss

            turn(optimizer, how, backward)
        if schedule is not None:
            schedule.step()


def weights(model: nn.Module) -> Any:
    return np.concatenate([p.numpy().ravel() for p in model.parameters()])


def trained(name: str, shards: int | None = None, storage: str = "shared") -> Any:
    sx.init(virtual_shards=shards)
    model = wrapped(storage=storage)
    make, how = TRIALS[name]
    optimizer = make(model.parameters())
    train(model, optimizer, how, schedule=optim.lr_scheduler.StepLR(optimizer, 1, 0.5))
    sx.assert_replicas_equal(model)
    return weights(model)


VALUES = {
    "Lion": 2.4764008427955213,
    "AdaBelief": 2.688372329266997,
    "Adan": 2.228002443864996,
    "LARS": 2.806853832131435,
    "Sophia": 2.552629064250859,
    "SAM": 3.244618389157718,
    "SAM two steps": 2.639421028119404,
    "Lookahead": 2.8300614544633946,
    "Lookahead of Lion": 2.6671537613123664,
}


@every_trial
def test_values(name: str) -> None:
    """The sum of the weights after six steps, which PyTorch's give too (tests/parity)."""
    assert trained(name).sum() == pytest.approx(VALUES[name], rel=1e-9)


@every_trial
@pytest.mark.parametrize("storage", ["shared", "replicated"])
def test_any_number_of_ranks(name: str, storage: str) -> None:
    one = trained(name)
    for ranks in (2, 3, 5):
        for found in sx.run(trained, args=(name, None, storage), num_proc=ranks, backend="threads"):
            np.testing.assert_allclose(found, one, rtol=1e-11, atol=1e-12)


@every_trial
def test_the_same_bits(name: str) -> None:
    assert len({sx.run(trained, args=(name, 4), num_proc=n, backend="threads")[0].tobytes() for n in (1, 2, 3)}) == 1


def resumed(name: str, directory: str) -> None:
    """A checkpoint, and a copy of the state, go on where they were taken. (SAM's does not have that of its base.)"""
    make, how = TRIALS[name]
    model = wrapped()
    optimizer = make(model.parameters())
    train(model, optimizer, how)
    sx.Checkpointer(directory).save(1, model=model, optimizer=optimizer)
    state, at = copy.deepcopy(optimizer.state_dict()), {k: v.numpy() for k, v in model.state_dict().items()}
    train(model, optimizer, how)
    end = weights(model)
    again = wrapped()
    optimizer = make(again.parameters())
    sx.Checkpointer(directory).load_latest(model=again, optimizer=optimizer)
    train(again, optimizer, how)
    assert np.array_equal(weights(again), end)
    again.load_state_dict(at)
    optimizer.load_state_dict(state)
    train(again, optimizer, how)
    assert np.array_equal(weights(again), end)


@pytest.mark.parametrize("name", ["Lion", "AdaBelief", "Adan", "LARS", "Sophia"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_states_go_on(name: str, ranks: int, tmp_path: Path) -> None:
    sx.run(resumed, args=(name, str(tmp_path)), num_proc=ranks, backend="threads")


@pytest.mark.parametrize("name", ["Lion", "AdaBelief"])
def test_copies_keep_their_parameters(name: str) -> None:
    model = nn.Linear(5, 3).double()
    optimizer = TRIALS[name][0](model.parameters())

    def step(model: nn.Module, optimizer: Any) -> None:
        (model(sx.tensor(X)) ** 2).mean().backward()
        optimizer.step()

    step(model, optimizer)
    twin, its = copy.deepcopy((model, optimizer))
    assert [*map(id, its.state)] == [*map(id, twin.parameters())]
    model.zero_grad()
    step(model, optimizer)
    step(twin, its)
    assert np.array_equal(twin.W.numpy(), model.W.numpy())


def test_groups() -> None:
    """A group may have options of its own. Users can read the state of the package's optimizers, but not write it."""
    first, second = nn.Parameter(sx.ones(2)), nn.Parameter(sx.ones(2))
    optimizer = TRIALS["Lion"][0]([first])
    optimizer.add_param_group({"params": [second], "lr": 0.5, "mine": 3})
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.5]
    (first.sum() + second.sum()).backward()
    optimizer.step()
    assert second.tolist() == pytest.approx([0.45, 0.45])
    adam = optim.Adam([first], lr=0.1)
    assert not adam.state
    adam.step()
    assert [*adam.state[first]] == ["step", "exp_avg", "exp_avg_sq"]
    with pytest.raises(RuntimeError, match="read-only"):
        adam.state[first]["exp_avg"].zero_()
    with pytest.raises(AttributeError, match=r"Adam: state can't be set"):
        adam.state = {}
    with pytest.raises(ValueError, match="must keep their parameters"):
        adam.param_groups = optimizer.param_groups


# -- refused


def stepping(change: Callable[[Any], Any]) -> type[optim.Optimizer]:
    class Own(optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {"lr": 0.1})

        @sx.no_grad()
        def step(self, closure: Any = None) -> None:
            for p in self.param_groups[0]["params"]:
                change(p)

    return Own


def differs() -> None:
    model = wrapped()
    optimizer = stepping(lambda p: p.add_(sx.rank() * 0.1))(model.parameters())
    train(model, optimizer, "plain")


def too_early() -> None:
    model = wrapped()
    optimizer = TRIALS["Lion"][0](model.parameters())
    for xb, yb in model.accumulate([*DataLoader(Dataset(X, Y), batch_size=12)]):
        ((model(xb) - yb) ** 2).mean().backward()
        optimizer.step()


def in_turns() -> None:
    sx.init(virtual_shards=2)
    model = nn.Linear(5, 3)
    sx.LocalSGD(model, TRIALS["Lion"][0](model.parameters()), every=2)


REFUSED: list[tuple[Callable[[], None], type[Exception], str]] = [
    (differs, RuntimeError, "not at the same place|optimizers differ"),
    (too_early, RuntimeError, "step: the gradients of the last backwards are not synchronised yet"),
    (in_turns, TypeError, r"LocalSGD needs an optimizer that defines update\(\), and Lion has a step\(\) of its own"),
]


@pytest.mark.parametrize(("script", "kind", "message"), REFUSED, ids=[r[0].__name__ for r in REFUSED])
def test_refused(script: Callable[[], None], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        sx.run(script, num_proc=2, backend="threads")


def test_a_step_that_fails_changes_nothing() -> None:
    def change(p: Any) -> None:
        p.add_(1.0)
        raise KeyError("mine")

    model = wrapped()
    before = weights(model)
    (model(sx.tensor(X)) ** 2).mean().backward()
    with pytest.raises(KeyError, match="mine"):
        stepping(change)(model.parameters()).step()
    assert np.array_equal(weights(model), before)
    with pytest.raises(RuntimeError, match="read-only"), sx.no_grad():
        next(model.parameters()).add_(1.0)


def test_a_class_of_a_notebook_is_sent_to_the_ranks() -> None:
    space: dict[str, Any] = {"__name__": "__main__", "sx": sx}
    exec(  # as a cell does
        "class Descent(sx.optim.Optimizer):\n"
        "    def __init__(self, params):\n"
        "        super().__init__(params, {'lr': 0.1})\n"
        "    def step(self):\n"
        "        for p in self.param_groups[0]['params']:\n"
        "            p.data -= 0.1 * p.grad\n",
        space,
    )
    sent = loads(dumps(space["Descent"]))

    def run() -> Any:
        model = wrapped()
        train(model, sent(model.parameters()), "step", epochs=1)
        return weights(model)

    one, (two, _) = run(), sx.run(run, num_proc=2, backend="threads")
    np.testing.assert_allclose(two, one, rtol=1e-12)


def test_without_a_step() -> None:
    class Nothing(optim.Optimizer):
        pass

    with pytest.raises(NotImplementedError, match="Nothing must implement step, as it was given a dict of defaults"):
        Nothing([nn.Parameter(sx.ones(2))], {"lr": 0.1}).step()
