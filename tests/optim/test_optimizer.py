"""What all optimizers share: groups, checks, skipped parameters, state, and memory that moves under them."""

from __future__ import annotations

from copy import deepcopy
from math import inf, nan
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import Tensor, nn, optim
from sorix_dist.core.flat import flatten, leaf_of

KINDS: list[Any] = [
    optim.SGD, optim.SGDMomentum, optim.RMSprop, optim.Adagrad, optim.Adam, optim.AdamW, optim.Adamax, optim.NAdam,
    optim.RAdam,
]  # fmt: skip
every_kind = pytest.mark.parametrize("kind", KINDS)
X = np.random.default_rng(0).standard_normal((8, 4))


def network() -> nn.Module:
    sx.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def train(model: nn.Module, optimizer: optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        out = model(Tensor(X))
        (out * out).mean().backward()
        optimizer.step()


def values(model: nn.Module) -> list[Any]:
    return [p.data.copy() for p in model.parameters()]


def same(one: list[Any], other: list[Any]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


# -- memory that moves


@every_kind
@pytest.mark.parametrize("order", ["same", "reversed", "superset", "one by one"])
def test_parameters_that_move_on_the_way(kind: Any, order: str) -> None:
    """Another flat storage takes the parameters over in the middle: the steps are the same to the last bit."""
    still, moving = network(), network()
    optimizers = [kind(m.parameters(), lr=0.05) for m in (still, moving)]
    train(still, optimizers[0], 6)
    train(moving, optimizers[1], 3)
    ps = moving.parameters()
    if order == "one by one":
        for p in ps:
            flatten([p])
    else:
        extra = [nn.Parameter(np.ones(7)), nn.Parameter(np.ones(3))]
        flatten({"same": ps, "reversed": ps[::-1], "superset": [extra[0], *ps[2:], extra[1], *ps[:2]]}[order])
    train(moving, optimizers[1], 3)
    assert same(values(still), values(moving))


@every_kind
def test_made_before_or_after_the_storage(kind: Any) -> None:
    models = [network() for _ in range(3)]
    optimizers = [kind(models[0].parameters(), lr=0.05)]
    flatten(models[1].parameters()[::-1])
    optimizers.append(kind(models[1].parameters(), lr=0.05))
    sx.DistributedDataParallel(models[2])
    optimizers.append(kind(models[2].parameters(), lr=0.05))
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer)
    assert same(values(models[0]), values(models[1]))
    assert same(values(models[0]), values(models[2]))


def test_a_wrapped_model_stays_where_it_is() -> None:
    """An optimizer of a wrapped model and one more parameter must not take the model's parameters away."""
    model, extra = network(), nn.Parameter(np.ones(3))
    sx.DistributedDataParallel(model)
    flat = leaf_of(model.parameters()[0]).flat
    optimizer = optim.SGD([extra, *model.parameters()], lr=0.1)
    assert all(leaf_of(p).flat is flat for p in model.parameters())
    extra.grad = np.ones(3)
    optimizer.step()
    assert np.allclose(extra.data, 0.9)


@every_kind
def test_two_optimizers_share_a_model(kind: Any) -> None:
    one, two = network(), network()
    train(one, kind(one.parameters(), lr=0.05))
    first, second = kind(two[0].parameters(), lr=0.05), kind(two[2].parameters(), lr=0.05)
    for _ in range(3):
        two.zero_grad()
        out = two(Tensor(X))
        (out * out).mean().backward()
        first.step()
        second.step()
    assert same(values(one), values(two))


@every_kind
def test_a_model_that_is_converted_under_its_optimizer(kind: Any) -> None:
    model = network().float()
    optimizer = kind(model.parameters(), lr=0.05)
    out = model(Tensor(X.astype(np.float32)))
    (out * out).mean().backward()
    optimizer.step()
    state = optimizer.state_dict()["state"]
    model.double()
    optimizer.zero_grad()
    optimizer.step()
    for number, entry in optimizer.state_dict()["state"].items():
        for name, value in entry.items():
            assert np.array_equal(value, state[number][name])
    train(model, optimizer)
    assert all(p.dtype == sx.float64 for p in model.parameters())


# -- parameters without a gradient


@every_kind
def test_a_parameter_without_gradient_is_left_alone(kind: Any) -> None:
    """No momentum, no decay, and its own count of steps stays: as if the optimizer were not there."""
    used, skipped = nn.Parameter(np.ones(3)), nn.Parameter(np.ones(3))
    optimizer = kind([used, skipped], lr=0.1, weight_decay=0.1)
    for p in (used, skipped):
        p.grad = np.ones(3)
    optimizer.step()
    before, state = skipped.data.copy(), optimizer.state_dict()["state"][1]
    for _ in range(4):
        skipped.grad = None
        used.grad = np.ones(3)
        optimizer.step()
    assert np.array_equal(skipped.data, before)
    after = optimizer.state_dict()["state"]
    assert after[1]["step"] == state["step"] == 1
    assert after[0]["step"] == 5
    assert all(np.array_equal(after[1][name], state[name]) for name in state)
    assert not np.array_equal(used.data, before)


@every_kind
def test_counts_of_parameters_that_take_turns(kind: Any) -> None:
    parameters = [nn.Parameter(np.ones(3)), nn.Parameter(np.ones(3))]
    optimizer = kind(parameters, lr=0.1)
    for turn in (0, 0, None, 1, 1, 1, None, 0):
        for i, p in enumerate(parameters):
            p.grad = np.ones(3) if i == turn else None
        optimizer.step()
    state = optimizer.state_dict()["state"]
    assert (state[0]["step"], state[1]["step"]) == (3, 3)


@every_kind
def test_a_frozen_parameter_does_not_move(kind: Any) -> None:
    model = network()
    optimizer = kind(model.parameters(), lr=0.1, weight_decay=0.1)
    model[0].requires_grad_(False)
    before = values(model)
    train(model, optimizer)
    after = values(model)
    assert same(before[:2], after[:2])
    assert not np.array_equal(before[2], after[2])
    model[0].requires_grad_(True)
    train(model, optimizer)
    assert not np.array_equal(before[0], values(model)[0])
    assert [entry["step"] for entry in optimizer.state_dict()["state"].values()] == [3, 3, 6, 6]


def test_a_parameter_that_was_never_used_has_no_state() -> None:
    p, q = nn.Parameter(np.ones(2)), nn.Parameter(np.ones(2))
    optimizer = optim.Adam([p, q])
    q.grad = np.ones(2)
    optimizer.step()
    assert list(optimizer.state_dict()["state"]) == [1]


def test_zero_grad() -> None:
    p, q = nn.Parameter(np.ones(2)), nn.Parameter(np.ones(2))
    optimizer = optim.SGD([p, q], lr=0.1, momentum=0.5)
    p.grad = np.ones(2)
    optimizer.step()
    optimizer.zero_grad()
    assert p.grad is None
    optimizer.step()
    assert np.allclose(p.data, 0.9)
    p.grad = np.ones(2)
    optimizer.zero_grad(set_to_none=False)
    assert p.grad.data.tolist() == [0, 0]
    assert q.grad is None
    optimizer.step()
    assert np.allclose(p.data, 0.9 - 0.1 * 0.5)
    (p * 3).sum().backward()
    assert p.grad.data.tolist() == [3, 3]


def test_closure() -> None:
    x = Tensor(np.array([2.0]), requires_grad=True)
    optimizer = optim.SGD([x], lr=0.25)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (x * x).sum()
        loss.backward()
        return loss

    with sx.no_grad():
        assert optimizer.step(closure).item() == 4
    assert x.item() == 1
    assert optimizer.step() is None


def test_tied_parameters_are_updated_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].W = model[0].W
    optimizer = optim.SGD(model.parameters(), lr=1.0)
    before = model[0].W.data.copy()
    model[0].W.grad = np.ones((2, 2))
    optimizer.step()
    assert np.allclose(model[1].W.data, before - 1)


# -- groups and options


def test_groups_with_options_of_their_own() -> None:
    p, q, r = (nn.Parameter(np.ones(2)) for _ in range(3))
    optimizer = optim.SGD([{"params": [p]}, {"params": q, "lr": 0.5, "name": "fast"}], lr=0.1)
    optimizer.add_param_group({"params": iter([r]), "lr": 1.0, "momentum": 0.9})
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.5, 1.0]
    for parameter in (p, q, r):
        parameter.grad = np.ones(2)
    optimizer.step()
    optimizer.step()
    assert [round(float(parameter.data[0]), 6) for parameter in (p, q, r)] == [0.8, 0.0, -1.9]


def test_options_may_change_between_steps() -> None:
    p = nn.Parameter(np.ones(2))
    optimizer = optim.SGD([p], lr=0.1)
    (group,) = optimizer.param_groups
    p.grad = np.ones(2)
    optimizer.step()
    assert np.allclose(p.data, 0.9)
    group["lr"] = np.float64(0.2)
    group["momentum"] = 0.5
    optimizer.step()
    assert np.allclose(p.data, 0.7)
    optimizer.step()
    assert np.allclose(p.data, 0.7 - 0.2 * 1.5)
    group["momentum"] = 0
    optimizer.step()
    assert np.allclose(p.data, 0.2)


def test_a_float64_rate_does_not_widen_float32() -> None:
    p, q = (nn.Parameter(np.linspace(0, 1, 50, dtype=np.float32)) for _ in range(2))
    for parameter, lr in ((p, 0.1), (q, np.float64(0.1))):
        optimizer = optim.Adam([parameter], lr=lr)
        parameter.grad = np.linspace(-1, 1, 50)
        optimizer.step()
    assert np.array_equal(p.data, q.data)


@every_kind
@pytest.mark.parametrize("none", [[], (), iter(()), [{"params": []}]])
def test_no_parameters(kind: Any, none: Any) -> None:
    with pytest.raises(ValueError, match="optimizer got an empty parameter list"):
        kind(none if isinstance(none, list | tuple) else iter(()))


@every_kind
@pytest.mark.parametrize(("name", "bad"), [("lr", -0.1), ("lr", nan), ("lr", inf), ("weight_decay", -1)])
def test_rates(kind: Any, name: str, bad: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be (>= 0|finite), got {bad}"):
        kind([nn.Parameter(np.ones(2))], **{name: bad})
    with pytest.raises(TypeError, match=f"{name} must be a number, got str '0.1'"):
        kind([nn.Parameter(np.ones(2))], **{name: "0.1"})


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (optim.SGD, {"momentum": 1}, r"momentum must be in \[0, 1\), got 1"),
        (optim.SGD, {"momentum": -0.1}, r"momentum must be in \[0, 1\), got -0.1"),
        (optim.SGD, {"dampening": 2}, r"dampening must be in \[0, 1\), got 2"),
        (optim.SGD, {"nesterov": True}, "nesterov needs a momentum and a dampening of 0, got momentum 0"),
        (optim.SGD, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "nesterov needs .* dampening 0.1"),
        (optim.Adagrad, {"lr_decay": -1}, "lr_decay must be >= 0, got -1"),
        (optim.Adagrad, {"initial_accumulator_value": nan}, "initial_accumulator_value must be >= 0, got nan"),
        (optim.NAdam, {"momentum_decay": -1}, "momentum_decay must be >= 0, got -1"),
        (optim.RMSprop, {"alpha": 1.5}, r"alpha must be in \[0, 1\), got 1.5"),
        (optim.RMSprop, {"decay": -1}, r"alpha must be in \[0, 1\), got -1"),
        (optim.RMSprop, {"eps": -1e-8}, "eps must be >= 0, got -1e-08"),
        (optim.Adam, {"eps": nan}, "eps must be >= 0, got nan"),
        (optim.Adam, {"betas": (0.9, 1.0)}, r"betas\[1\] must be in \[0, 1\), got 1.0"),
        (optim.Adam, {"betas": (-0.9, 0.9)}, r"betas\[0\] must be in \[0, 1\), got -0.9"),
        (optim.Adam, {"betas": 0.9}, "betas must be two numbers, got 0.9"),
        (optim.AdamW, {"betas": (0.9,)}, r"betas must be two numbers, got \(0.9,\)"),
    ],
)
def test_options(kind: Any, options: dict[str, Any], message: str) -> None:
    p = nn.Parameter(np.ones(2))
    with pytest.raises(ValueError, match=message):
        kind([p], **options)
    with pytest.raises(ValueError, match=message):
        kind([{"params": [p], **({"alpha": -1.0} if "decay" in options else options)}])


@pytest.mark.parametrize(
    ("kind", "name"),
    [(optim.SGD, "nesterov"), (optim.RMSprop, "centered"), (optim.Adam, "amsgrad"), (optim.AdamW, "maximize")],
)
def test_a_switch_is_true_or_false(kind: Any, name: str) -> None:
    for bad in ("no", None, 2):
        with pytest.raises(TypeError, match=f"{name} must be True or False, got .*{bad or ''}"):
            kind([nn.Parameter(np.ones(2))], momentum=0.9, **{name: bad}) if kind is optim.SGD else kind(
                [nn.Parameter(np.ones(2))], **{name: bad}
            )


def test_positions_are_those_of_pytorch() -> None:
    p = [nn.Parameter(np.ones(2))]
    (sgd,) = optim.SGD(p, 0.1, 0.9, 0.0, 0.01, True).param_groups
    assert (sgd["momentum"], sgd["dampening"], sgd["weight_decay"], sgd["nesterov"]) == (0.9, 0.0, 0.01, True)
    (rmsprop,) = optim.RMSprop(p, 0.1, 0.8, 1e-3, 0.01, 0.9, True).param_groups
    assert (rmsprop["alpha"], rmsprop["eps"], rmsprop["weight_decay"], rmsprop["momentum"]) == (0.8, 1e-3, 0.01, 0.9)
    assert optim.RMSprop(p).param_groups[0]["lr"] == 1e-2


def test_what_says_how_pytorch_computes_is_ignored() -> None:
    p = [nn.Parameter(np.ones(2))]
    for kind in KINDS:
        if kind is optim.SGDMomentum:
            continue
        made = kind(p, foreach=True, fused=None, capturable=False)
        assert not {"foreach", "fused", "capturable"} & made.param_groups[0].keys()
        with pytest.raises(TypeError, match="unexpected keyword argument 'weightdecay'"):
            kind(p, weightdecay=0.1)


def test_a_state_of_an_earlier_version_loads() -> None:
    p = nn.Parameter(np.ones(2))
    optimizer = optim.Adam([p])
    p.grad = np.ones(2)
    optimizer.step()
    state = optimizer.state_dict()
    for name in ("amsgrad", "maximize"):
        del state["param_groups"][0][name]
    again = optim.Adam([p])
    again.load_state_dict(state)
    assert again.param_groups[0]["maximize"] is False


@every_kind
def test_parameters_are_checked(kind: Any) -> None:
    p = nn.Parameter(np.ones(2))
    with pytest.raises(TypeError, match="params must hold tensors, got ndarray at 1"):
        kind([p, np.ones(2)])
    with pytest.raises(TypeError, match="params must be a list of tensors or of groups, got a Parameter"):
        kind(p)
    with pytest.raises(TypeError, match=r"params must hold tensors, got Linear at 0; model.parameters\(\) gives"):
        kind(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(TypeError, match="params must hold tensors, got dict at 1"):
        kind([p, {"params": [p]}])
    with pytest.raises(TypeError, match="params must have an order, got a set"):
        kind([{"params": {p}}])
    with pytest.raises(ValueError, match="tensor 0 is computed by an operation"):
        kind([p * 2])
    with pytest.raises(ValueError, match="tensor 0 must be of floating point dtype, got int64"):
        kind([Tensor(np.ones(2, np.int64))])
    with pytest.raises(ValueError, match="tensor 1 appears twice"):
        kind([p, p])
    with pytest.raises(ValueError, match="tensor 0 appears twice"):
        kind([{"params": [p]}, {"params": [p]}])
    with pytest.raises(ValueError, match=r"options must be among .*'lr'.*, got \['weightdecay'\]"):
        kind([{"params": [p], "weightdecay": 1}])


# -- state


@pytest.mark.parametrize(
    ("kind", "options"),
    [*((kind, {}) for kind in KINDS), *((kind, {"momentum": 0.9}) for kind in (optim.SGD, optim.RMSprop))],
)
@pytest.mark.parametrize("moved", [False, True])
def test_state_goes_on_in_another_optimizer(kind: Any, options: dict[str, Any], moved: bool) -> None:
    through, first, second = network(), network(), network()
    whole = kind(through.parameters(), lr=0.05, **options)
    train(through, whole, 6)
    one = kind(first.parameters(), lr=0.05, **options)
    train(first, one, 3)
    weights, state = first.state_dict(), one.state_dict()
    train(first, one, 2)
    two = kind(second.parameters(), lr=0.9, **options)
    second.load_state_dict(weights)
    if moved:
        flatten([nn.Parameter(np.ones(3)), *second.parameters()[::-1]])
    two.load_state_dict(state)
    if moved:
        flatten(second.parameters())
    train(second, two, 3)
    assert two.param_groups[0]["lr"] == 0.05
    assert same(values(through), values(second))
    three = kind(first.parameters(), lr=0.9, **options)
    train(first, three, 1)
    first.load_state_dict(weights)
    three.load_state_dict(state)
    train(first, three, 3)
    assert same(values(through), values(first))


def test_the_form_of_a_state() -> None:
    p, q = nn.Parameter(np.ones((2, 3), np.float32)), nn.Parameter(np.ones(1, np.float32))
    optimizer = optim.Adam([{"params": [p]}, {"params": [q], "lr": 0.5}])
    p.grad, q.grad = np.ones((2, 3)), np.ones(1)
    optimizer.step()
    state = optimizer.state_dict()
    assert [group["params"] for group in state["param_groups"]] == [[0], [1]]
    assert [group["lr"] for group in state["param_groups"]] == [1e-3, 0.5]
    assert list(state["state"][0]) == ["step", "exp_avg", "exp_avg_sq"]
    assert state["state"][0]["exp_avg"].shape == (2, 3)
    state["state"][0]["exp_avg"].data[...] = 77
    state["param_groups"][0]["lr"] = 77
    again = optimizer.state_dict()
    assert again["state"][0]["exp_avg"].data.max() < 1
    assert again["param_groups"][0]["lr"] == 1e-3


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    p, q = nn.Parameter(np.ones((2, 3))), nn.Parameter(np.ones(1))
    optimizer = optim.Adam([p, q], lr=0.1)
    p.grad, q.grad = np.ones((2, 3)), np.ones(1)
    optimizer.step()
    good = optimizer.state_dict()

    def spoiled(change: Any) -> dict[str, Any]:
        state = optimizer.state_dict()
        state["param_groups"][0]["lr"] = 5.0
        change(state)
        return state

    def entry(state: dict[str, Any]) -> dict[str, Any]:
        return state["state"][1]

    cases = [
        (lambda s: s["param_groups"].append(s["param_groups"][0]), r"groups of \[2\] parameters, got \[2, 2\]"),
        (lambda s: s["param_groups"][0]["params"].pop(), r"groups of \[2\] parameters, got \[1\]"),
        (lambda s: s.pop("state"), r"must have 'state' and 'param_groups', got \['param_groups'\]"),
        (lambda s: s["param_groups"][0].pop("betas"), r"group 0 of state_dict lacks \['betas'\]"),
        (lambda s: s["param_groups"][0].update(eps=-1), "eps must be >= 0"),
        (lambda s: entry(s).pop("exp_avg"), r"state of parameter 1 lacks \['exp_avg'\]"),
        (lambda s: entry(s).update(exp_avg=np.ones(2)), r"'exp_avg' of parameter 1 must be float64 \(1,\), got"),
        (lambda s: entry(s).update(exp_avg=np.ones(1, complex)), r"'exp_avg' of parameter 1 must be float64"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(spoiled(change))
        after = optimizer.state_dict()
        assert after["param_groups"] == good["param_groups"]
        assert np.array_equal(after["state"][1]["exp_avg"], good["state"][1]["exp_avg"])


def test_repr() -> None:
    made = optim.SGD([nn.Parameter(np.ones(2))], lr=0.1)
    assert repr(made).startswith("SGD(1 parameters, lr=0.1, weight_decay=0.0, momentum=0.0")


def test_an_optimizer_without_update() -> None:
    p = nn.Parameter(np.ones(2))
    p.grad = np.ones(2)
    optimizer = optim.Optimizer([p])
    with pytest.raises(NotImplementedError, match="Optimizer must implement update"):
        optimizer.step()


def test_hooks_around_a_step() -> None:
    """They see and change the step's arguments, also of an optimizer that is written as for PyTorch."""

    class Moving(optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {"lr": 0.1})

        def step(self, by: float = 1.0) -> float:
            with sx.no_grad():
                for group in self.param_groups:
                    for p in group["params"]:
                        p.add_(by)
            return by

    p = nn.Parameter(np.zeros(2))
    seen: list[Any] = []
    optimizer = Moving([p])
    before = optimizer.register_step_pre_hook(lambda o, args, kwargs: ((), {"by": 2 * args[0]}))
    after = optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append((o, args, kwargs, p.data.tolist())))
    assert optimizer.step(3.0) == 6
    assert seen == [(optimizer, (), {"by": 6}, [6, 6])]
    before.remove()
    after.remove()
    assert (optimizer.step(1.0), p.data.tolist(), len(seen)) == (1, [7, 7], 1)

    p.grad = sx.ones(2)
    plain = optim.SGD([p], lr=1.0)
    plain.register_step_pre_hook(lambda o, args, kwargs: o.param_groups[0].update(lr=2.0))
    plain.register_step_post_hook(lambda o, args, kwargs: o.zero_grad())
    plain.step()
    assert (p.data.tolist(), p.grad) == ([5, 5], None)
    with pytest.raises(TypeError, match="a hook of a step must be a function"):
        plain.register_step_post_hook(3)  # type: ignore[arg-type]
    copy = deepcopy(plain)
    copy.param_groups[0]["params"][0].grad = sx.ones(2)
    copy.step()
    assert (copy.param_groups[0]["params"][0].data.tolist(), p.data.tolist()) == ([3, 3], [5, 5])


def test_a_captured_step_with_hooks_runs_as_it_is() -> None:
    p = nn.Parameter(np.zeros(2))
    optimizer = optim.SGD([p], lr=1.0)
    seen: list[Any] = []
    optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append(p.data.tolist()))

    @sx.compile
    def step(x: Any) -> Any:
        optimizer.zero_grad()
        loss = (p * x).sum()
        loss.backward()
        optimizer.step()
        return loss

    with pytest.warns(RuntimeWarning, match=r"step runs as it is: optimizer.step with hooks"):
        step(sx.ones(2))
    for _ in range(4):
        step(sx.ones(2))
    assert seen == [[-n, -n] for n in (1, 2, 3, 4, 5)]
