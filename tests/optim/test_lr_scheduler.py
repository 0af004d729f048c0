"""Schedules: their values epoch by epoch, how they resume, and how they live together on one optimizer."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, inf, nan, pi
from typing import Any

import numpy as np
import pytest

from sorix_dist import Tensor, nn, optim
from sorix_dist.optim import lr_scheduler as s


def sgd(*lrs: float, **options: Any) -> optim.SGD:
    return optim.SGD([{"params": [nn.Parameter(np.zeros(1))], "lr": lr} for lr in lrs], **options)


def lrs(optimizer: optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def follow(scheduler: Any, epochs: int) -> list[float]:
    """The rate of the first group in epochs 0 to `epochs` - 1."""
    seen = []
    for _ in range(epochs):
        seen.append(scheduler.optimizer.param_groups[0]["lr"])
        assert scheduler.get_last_lr() == lrs(scheduler.optimizer)
        assert scheduler.get_lr() == pytest.approx(scheduler.get_last_lr())
        scheduler.step()
    return seen


TABLES: dict[str, tuple[Callable[[Any], Any], list[float]]] = {
    "step": (lambda o: s.StepLR(o, 2), [1, 1, 0.1, 0.1, 0.01]),
    "step_float": (lambda o: s.StepLR(o, 2.0), [1, 1, 0.1, 0.1, 0.01]),
    "step_gamma": (lambda o: s.StepLR(o, step_size=3, gamma=0.5), [1, 1, 1, 0.5, 0.5, 0.5, 0.25]),
    "multi_step": (lambda o: s.MultiStepLR(o, [3, 1, 3], 0.5), [1, 0.5, 0.5, 0.125, 0.125]),
    "exponential": (lambda o: s.ExponentialLR(o, 0.5), [1, 0.5, 0.25, 0.125]),
    "cosine": (
        lambda o: s.CosineAnnealingLR(o, 4, eta_min=0.2),
        [0.2 + 0.4 * (1 + cos(pi * epoch / 4)) for epoch in range(11)],
    ),
    "lambda": (lambda o: s.LambdaLR(o, lambda epoch: 1 / (epoch + 1)), [1, 1 / 2, 1 / 3, 1 / 4]),
    "warm_up": (lambda o: s.LinearLR(o, 0.25, total_iters=3), [0.25, 0.5, 0.75, 1, 1, 1]),
    "linear_defaults": (lambda o: s.LinearLR(o), [1 / 3 + 2 / 3 * min(e, 5) / 5 for e in range(8)]),
    "constant": (lambda o: s.ConstantLR(o, 0.5, 3), [0.5, 0.5, 0.5, 1, 1]),
    "constant_of_nothing": (lambda o: s.ConstantLR(o, 0.0, 2), [0, 0, 1, 1]),
    "polynomial": (lambda o: s.PolynomialLR(o, 4, 2.0), [1, 9 / 16, 4 / 16, 1 / 16, 0, 0]),
    "multiplicative": (lambda o: s.MultiplicativeLR(o, lambda epoch: 1 / (1 + epoch)), [1, 1 / 2, 1 / 6, 1 / 24]),
    "restarts": (
        lambda o: s.CosineAnnealingWarmRestarts(o, 2, 2),
        [1, 0.5, *((1 + cos(pi * epoch / 4)) / 2 for epoch in range(4)), 1],
    ),
    "cyclic": (
        lambda o: s.CyclicLR(o, 1.0, 3.0, 2, 4, "triangular2", cycle_momentum=False),
        [1, 2, 3, 2.5, 2, 1.5, 1, 1.5, 2, 1.75, 1.5],
    ),
    "one_cycle": (
        lambda o: s.OneCycleLR(
            o, 8, total_steps=9, pct_start=0.5, div_factor=8, final_div_factor=10, anneal_strategy="linear",
            cycle_momentum=False,
        ),
        [1, 3, 5, 7, 8 - 7.9 * 0.5 / 4.5, 8 - 7.9 * 1.5 / 4.5, 8 - 7.9 * 2.5 / 4.5, 8 - 7.9 * 3.5 / 4.5, 0.1],
    ),
    "sequence": (
        lambda o: s.SequentialLR(o, [s.LinearLR(o, 0.5, total_iters=2), s.ExponentialLR(o, 0.5)], [3]),
        [0.5, 0.75, 1, 1, 0.5, 0.25],
    ),
}  # fmt: skip
every_schedule = pytest.mark.parametrize("name", TABLES)


@every_schedule
def test_values(name: str) -> None:
    make, wanted = TABLES[name]
    assert follow(make(sgd(1.0)), len(wanted)) == pytest.approx(wanted)


@every_schedule
def test_every_group_follows(name: str) -> None:
    make, wanted = TABLES[name]
    optimizer = sgd(1.0, 2.0)
    scheduler = make(optimizer)
    for value in wanted[:-1]:
        first, second = lrs(optimizer)
        assert first == pytest.approx(value)
        if name == "cosine":
            assert second - 0.2 == pytest.approx((first - 0.2) * 1.8 / 0.8, abs=1e-12)
        else:
            assert second == pytest.approx(first * (1 if name in ("one_cycle", "cyclic") else 2))
        scheduler.step()


@every_schedule
def test_rounding_does_not_add_up(name: str) -> None:
    """The rate of an epoch is that of the formula, however it was reached."""
    make, wanted = TABLES[name]
    stepped, jumped = make(sgd(0.1)), make(sgd(0.1))
    for _ in wanted[1:]:
        stepped.step()
    jumped.step(len(wanted) - 1)
    assert lrs(stepped.optimizer) == lrs(jumped.optimizer)


@every_schedule
@pytest.mark.parametrize("with_optimizer", [False, True])
def test_resuming(name: str, with_optimizer: bool) -> None:
    make, wanted = TABLES[name]
    whole = follow(make(sgd(1.0, 3.0)), len(wanted))
    first = make(sgd(1.0, 3.0))
    follow(first, len(wanted) // 2)
    state, optimizer_state = first.state_dict(), first.optimizer.state_dict()
    follow(first, 1)
    second = make(sgd(1.0, 3.0))
    if with_optimizer:
        second.optimizer.load_state_dict(optimizer_state)
    second.load_state_dict(state)
    assert follow(second, len(wanted) - len(wanted) // 2) == whole[len(wanted) // 2 :]


def test_last_epoch() -> None:
    optimizer = sgd(1.0)
    with pytest.raises(ValueError, match="group 0 of the optimizer has no 'initial_lr'"):
        s.ExponentialLR(optimizer, 0.5, last_epoch=2)
    follow(s.ExponentialLR(optimizer, 0.5), 3)
    assert follow(s.ExponentialLR(optimizer, 0.5, last_epoch=2), 2) == [0.125, 0.0625]
    assert follow(s.StepLR(sgd(1.0), 2, 0.5, -1), 3) == [1, 1, 0.5]


def test_a_state_can_be_saved_and_is_a_copy() -> None:
    scheduler = s.MultiStepLR(sgd(1.0), [1, 2])
    state = scheduler.state_dict()
    assert "optimizer" not in state
    state["milestones"].append(99)
    assert scheduler.milestones == [1, 2]
    function = s.LambdaLR(sgd(1.0), lambda epoch: 0.5)
    assert not any(callable(value) for value in function.state_dict().values())
    assert function.state_dict()["last_epoch"] == 0


def test_a_state_that_does_not_fit() -> None:
    scheduler = s.StepLR(sgd(1.0), 2)
    state = scheduler.state_dict()
    with pytest.raises(ValueError, match=r"lacks \['step_size'\] and has unknown \['T_max', 'eta_min'\]"):
        scheduler.load_state_dict(s.CosineAnnealingLR(sgd(1.0), 3).state_dict() | {"gamma": 1})
    with pytest.raises(ValueError, match="must be of 1 parameter groups, got 2"):
        scheduler.load_state_dict(s.StepLR(sgd(1.0, 2.0), 2).state_dict())
    assert scheduler.state_dict() == state
    sequence = s.SequentialLR(scheduler.optimizer, [scheduler], [])
    with pytest.raises(ValueError, match="must be of 1 schedulers, got 0"):
        sequence.load_state_dict(state)


def test_schedulers_that_are_stepped_together_multiply() -> None:
    optimizer = sgd(1.0)
    together = [s.LinearLR(optimizer, 0.5, total_iters=2), s.ExponentialLR(optimizer, 0.5), s.StepLR(optimizer, 2)]
    seen = []
    for _ in range(4):
        seen += lrs(optimizer)
        for scheduler in together:
            scheduler.step()
    assert seen == pytest.approx([0.5, 0.75 * 0.5, 1 * 0.25 * 0.1, 0.125 * 0.1])


def test_a_rate_that_the_user_sets_is_kept() -> None:
    scheduler = s.ExponentialLR(sgd(1.0, 1.0), 0.5)
    scheduler.step()
    scheduler.optimizer.param_groups[0]["lr"] = 8.0
    for wanted in ([4, 0.25], [2, 0.125]):
        scheduler.step()
        assert lrs(scheduler.optimizer) == wanted
    formula = s.LambdaLR(sgd(1.0), lambda epoch: epoch)
    formula.optimizer.param_groups[0]["lr"] = 8.0
    formula.step()
    assert lrs(formula.optimizer) == [1]


def test_a_change_beside_a_cosine_stays_past_its_turning_point() -> None:
    optimizer = sgd(1.0)
    cosine, other = s.CosineAnnealingLR(optimizer, 2, 0.1), s.ExponentialLR(optimizer, 0.5)
    seen = []
    for _ in range(5):
        seen += lrs(optimizer)
        cosine.step()
        other.step()
    assert seen == pytest.approx([1, 0.275, 0.05, 0.25, 0.2])


@pytest.mark.parametrize(("kind", "option"), [(optim.SGD, {"momentum": 0.9}), (optim.Adam, {"betas": (0.9, 0.99)})])
def test_the_momentum_of_a_cycle_resumes(kind: Any, option: dict[str, Any]) -> None:
    """Also where the scheduler is made after the optimizer was restored, which sets the momentum of step 0."""

    def made() -> Any:
        return kind([nn.Parameter(np.zeros(1))], **option)

    for make in (
        lambda o: s.OneCycleLR(o, 1.0, 20),
        lambda o: s.CyclicLR(o, 0.1, 1.0, 5),
        lambda o: s.SequentialLR(o, [s.LinearLR(o, total_iters=2), s.OneCycleLR(o, 1.0, 20)], [2]),
    ):
        first = made()
        scheduler = make(first)
        for _ in range(7):
            scheduler.step()
        second = made()
        second.load_state_dict(first.state_dict())
        again = make(second)
        again.load_state_dict(scheduler.state_dict())
        for _ in range(3):
            own, others = ({k: v for k, v in o.param_groups[0].items() if k != "params"} for o in (first, second))
            assert own == others
            scheduler.step()
            again.step()


def test_training_uses_the_rate() -> None:
    p = nn.Parameter(np.zeros(1))
    optimizer = optim.SGD([p], lr=1.0)
    scheduler = s.StepLR(optimizer, 1, 0.5)
    for wanted in (-1, -1.5, -1.75):
        p.grad = np.ones(1)
        optimizer.step()
        scheduler.step()
        assert p.item() == wanted


@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize("kind", [optim.Adam, optim.SGD])
def test_one_cycle_moves_the_momentum(kind: Any, three_phase: bool) -> None:
    options = {"momentum": 0.9} if kind is optim.SGD else {"betas": (0.9, 0.98)}
    optimizer = kind([nn.Parameter(np.zeros(1))], lr=7.0, **options)
    scheduler = s.OneCycleLR(optimizer, 1.0, 21, pct_start=0.5 - 1 / 42, three_phase=three_phase)
    group = optimizer.param_groups[0]
    rates, momenta = [], []
    for _ in range(21):
        rates.append(group["lr"])
        momenta.append(group["momentum"] if kind is optim.SGD else group["betas"][0])
        scheduler.step()
    assert rates[0] == pytest.approx(1 / 25)
    assert np.argmax(rates) == np.argmin(momenta) == 9
    assert rates[9] == pytest.approx(1)
    assert momenta[9] == pytest.approx(0.85)
    assert momenta[0] == momenta[20] == pytest.approx(0.95)
    assert rates[20] == pytest.approx(1 / 25e4)
    assert (rates[18] == pytest.approx(1 / 25)) is three_phase
    assert "betas" not in group or group["betas"][1] == 0.98


def test_one_cycle_ends() -> None:
    scheduler = s.OneCycleLR(sgd(1.0), 1.0, epochs=2, steps_per_epoch=2, cycle_momentum=False)
    for _ in range(4):
        scheduler.step()
    with pytest.raises(ValueError, match="total_steps 4, got step 5"):
        scheduler.step()
    assert scheduler.last_epoch == 4
    single = s.OneCycleLR(sgd(1.0), 3.0, total_steps=1, pct_start=1.0, cycle_momentum=False)
    assert np.isfinite(lrs(single.optimizer)).all()


def plateau(values: list[Any], **options: Any) -> list[float]:
    optimizer = sgd(1.0)
    scheduler = s.ReduceLROnPlateau(optimizer, **{"factor": 0.5, "patience": 1, **options})
    seen = []
    for value in values:
        scheduler.step(value)
        seen += lrs(optimizer)
    assert scheduler.get_last_lr() == scheduler.get_lr() == lrs(optimizer)
    return seen


def test_plateau() -> None:
    assert plateau([3, 2, 2, 2, 2, 1, 1]) == [1, 1, 1, 0.5, 0.5, 0.5, 0.5]
    assert plateau([3, 2, 2, 2, 2, 2, 2]) == [1, 1, 1, 0.5, 0.5, 0.25, 0.25]
    assert plateau([1, 2, 2, 2], mode="max") == [1, 1, 1, 0.5]
    assert plateau([10, 9.2, 9.1], threshold=0.1, patience=0) == [1, 0.5, 0.25]
    assert plateau([10, 9.2, 8.4], threshold=0.5, threshold_mode="abs", patience=0) == [1, 1, 1]
    assert plateau([1, 2, 2, 2, 2, 2], cooldown=2, patience=0) == [1, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert plateau([1, 2, 3, 4], patience=0, min_lr=0.4) == [1, 0.5, 0.4, 0.4]
    assert plateau([1, 2, 3, 4], patience=0, eps=0.4) == [1, 0.5, 0.5, 0.5]
    assert plateau([nan, nan, 1, nan, inf], patience=0) == [0.5, 0.25, 0.25, 0.125, 0.0625]
    assert plateau([Tensor(1.0), np.float32(2), np.array(3)], patience=0) == [1, 0.5, 0.25]


def test_plateau_takes_the_arguments_in_order() -> None:
    optimizer = sgd(1.0, 1.0)
    scheduler = s.ReduceLROnPlateau(optimizer, "max", 0.1, 0, min_lr=[0.5, 0.01], threshold=0.0)
    for value in (1, 1, 1):
        scheduler.step(value)
    assert lrs(optimizer) == [0.5, pytest.approx(0.01)]


def test_plateau_resumes() -> None:
    first = s.ReduceLROnPlateau(sgd(1.0), factor=0.5, patience=2)
    for value in (1, 1, 1):
        first.step(value)
    second = s.ReduceLROnPlateau(sgd(1.0), factor=0.5, patience=7)
    second.load_state_dict(first.state_dict())
    second.step(1)
    assert lrs(second.optimizer) == [0.5]


def test_arguments_are_checked() -> None:
    o = sgd(1.0)
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: s.StepLR(o, 0), "step_size must be >= 1, got 0"),
        (lambda: s.StepLR(o, 2.5), "step_size must be an integer >= 1, got 2.5"),  # type: ignore[arg-type]
        (lambda: s.CosineAnnealingLR(o, 0), "T_max must be >= 1, got 0"),
        (lambda: s.LinearLR(o, 0), r"start_factor must be in \(0, 1\], got 0"),
        (lambda: s.LinearLR(o, end_factor=2), r"end_factor must be in \[0, 1\], got 2"),
        (lambda: s.LinearLR(o, total_iters=0), "total_iters must be >= 1, got 0"),
        (lambda: s.ConstantLR(o, total_iters=0), "total_iters must be >= 1, got 0"),
        (lambda: s.PolynomialLR(o, 0), "total_iters must be >= 1, got 0"),
        (lambda: s.CosineAnnealingWarmRestarts(o, 5, 0), "T_mult must be >= 1, got 0"),
        (lambda: s.CyclicLR(o, 0.1, 1.0, 0), "step_size_up must be >= 1, got 0"),
        (lambda: s.CyclicLR(o, 0.1, 1.0, mode="square"), "mode must be 'triangular', .*, got 'square'"),
        (lambda: s.CyclicLR(o, 0.1, 1.0, scale_mode="epoch"), "scale_mode must be 'cycle' or 'iterations'"),
        (lambda: s.ConstantLR(o, 2), r"factor must be in \[0, 1\], got 2"),
        (lambda: s.LambdaLR(o, [abs, abs]), "lr_lambda must be one value or one for each of 1 parameter groups, got 2"),
        (lambda: s.OneCycleLR(o, 1.0), "needs total_steps, or both epochs and steps_per_epoch"),
        (lambda: s.OneCycleLR(o, 1.0, epochs=3), "needs total_steps, or both epochs and steps_per_epoch"),
        (lambda: s.OneCycleLR(o, 1.0, 0), "total_steps must be >= 1, got 0"),
        (
            lambda: s.OneCycleLR(o, [1.0, 2.0], 5),
            "max_lr must be .* one for each of 1 parameter groups, got 2",
        ),
        (lambda: s.OneCycleLR(o, 1.0, 5, pct_start=2), r"pct_start must be in \[0, 1\], got 2"),
        (lambda: s.OneCycleLR(o, 1.0, 5, anneal_strategy="sin"), "must be 'cos' or 'linear', got 'sin'"),
        (lambda: s.SequentialLR(o, [s.StepLR(o, 1)], [3]), "milestones must be one less than schedulers"),
        (lambda: s.SequentialLR(o, [], []), "milestones must be one less than schedulers"),
        (lambda: s.SequentialLR(o, [s.StepLR(o, 1)] * 3, [5, 3]), r"milestones must increase, got \[5, 3\]"),
        (lambda: s.SequentialLR(o, [s.StepLR(sgd(1.0), 1)], []), "belongs to another optimizer"),
        (lambda: s.SequentialLR(o, [s.ReduceLROnPlateau(o)], []), "needs a metric"),
        (lambda: s.ReduceLROnPlateau(o, "least"), "mode must be 'min' or 'max', got 'least'"),
        (lambda: s.ReduceLROnPlateau(o, np.array(["min", "max"])), "mode must be 'min' or 'max', got array"),
        (lambda: s.ReduceLROnPlateau(o, factor=1.0), "factor must be < 1.0, got 1.0"),
        (
            lambda: s.ReduceLROnPlateau(o, min_lr=[0, 1]),
            "min_lr must be .* one for each of 1 parameter groups, got 2",
        ),
        (lambda: s.ReduceLROnPlateau(o, threshold_mode="x"), "threshold_mode must be 'rel' or 'abs', got 'x'"),
    ]
    for make, message in cases:
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(TypeError, match="optimizer must be an Optimizer, got Linear"):
        s.StepLR(nn.Linear(1, 1), 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cycle_momentum needs an optimizer with momentum or betas"):
        s.OneCycleLR(Plain([nn.Parameter(np.zeros(1))]), 1.0, 5)


class Plain(optim.Optimizer):
    """An optimizer without momentum."""


def test_groups_that_come_too_late() -> None:
    optimizer = sgd(1.0)
    scheduler = s.StepLR(optimizer, 1)
    optimizer.add_param_group({"params": nn.Parameter(np.zeros(1))})
    with pytest.raises(ValueError, match="was made for 1 parameter groups, the optimizer has 2 now"):
        scheduler.step()


def test_a_multiplied_rate_goes_on_from_another_schedulers() -> None:
    optimizer = sgd(1.0)
    sequence = s.SequentialLR(optimizer, [s.ExponentialLR(optimizer, 0.5), s.MultiplicativeLR(optimizer, _tenth)], [2])
    rates = []
    for _ in range(4):
        rates += lrs(optimizer)
        sequence.step()
    np.testing.assert_allclose(rates, [1.0, 0.5, 0.05, 0.005])


def _tenth(epoch: int) -> float:
    return 0.1


def test_a_polynomial_past_its_end_leaves_the_rate_to_others() -> None:
    optimizer = sgd(1.0)
    polynomial = s.PolynomialLR(optimizer, 2)
    for _ in range(2):
        polynomial.step()
    optimizer.param_groups[0]["lr"] = 0.3
    polynomial.step()
    assert lrs(optimizer) == [0.3]
