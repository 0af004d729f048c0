"""A hundred epochs of every scheduler give PyTorch's learning rates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sorix_dist import nn, optim
from sorix_dist.optim import lr_scheduler

torch = pytest.importorskip("torch")

Make = Callable[[Any, Any], Any]  # of an optimizer and of the module with the schedulers

CASES: dict[str, Make] = {
    "step": lambda o, s: s.StepLR(o, 7, 0.5),
    "multi_step": lambda o, s: s.MultiStepLR(o, [5, 20, 20, 60], 0.3),
    "exponential": lambda o, s: s.ExponentialLR(o, 0.95),
    "cosine": lambda o, s: s.CosineAnnealingLR(o, 30, 0.001),
    "cosine_to_zero": lambda o, s: s.CosineAnnealingLR(o, T_max=100),
    "lambda": lambda o, s: s.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "lambdas": lambda o, s: s.LambdaLR(o, [lambda epoch: 0.9**epoch, lambda epoch: 1 + epoch % 3]),
    "linear": lambda o, s: s.LinearLR(o),
    "linear_down": lambda o, s: s.LinearLR(o, start_factor=1.0, end_factor=0.1, total_iters=60),
    "constant": lambda o, s: s.ConstantLR(o, 0.25, 12),
    "one_cycle": lambda o, s: s.OneCycleLR(o, [0.5, 0.2], total_steps=101),
    "one_cycle_epochs": lambda o, s: s.OneCycleLR(
        o, 0.5, epochs=20, steps_per_epoch=5, anneal_strategy="linear", three_phase=True, pct_start=0.4
    ),
    "one_cycle_momentum": lambda o, s: s.OneCycleLR(
        o, 0.5, 100, base_momentum=0.7, max_momentum=[0.8, 0.9], div_factor=10, final_div_factor=50, three_phase=True
    ),
    "polynomial": lambda o, s: s.PolynomialLR(o, 40, 2.0),
    "multiplicative": lambda o, s: s.MultiplicativeLR(o, lambda epoch: 0.9 + 0.01 * (epoch % 3)),
    "restarts": lambda o, s: s.CosineAnnealingWarmRestarts(o, 7, eta_min=0.01),
    "longer_restarts": lambda o, s: s.CosineAnnealingWarmRestarts(o, 3, 2),
    "triangular": lambda o, s: s.CyclicLR(o, 0.1, 0.5, 7),
    "triangular2": lambda o, s: s.CyclicLR(o, [0.1, 0.2], [0.5, 0.6], 7, 4, mode="triangular2"),
    "exp_range": lambda o, s: s.CyclicLR(o, 0.1, 0.5, 7, 9, "exp_range", 0.97, base_momentum=0.5, max_momentum=0.8),
    "own_peaks": lambda o, s: s.CyclicLR(o, 0.1, 0.5, 5, scale_fn=lambda cycle: 1 / cycle, cycle_momentum=False),
    "steps_count": lambda o, s: s.CyclicLR(o, 0.1, 0.5, 5, scale_fn=lambda i: 1 / (1 + i), scale_mode="iterations"),
    "warm_up_then_cosine": lambda o, s: s.SequentialLR(
        o, [s.LinearLR(o, 0.1, total_iters=10), s.CosineAnnealingLR(o, 80, 0.001)], [10]
    ),
    "three_in_a_row": lambda o, s: s.SequentialLR(
        o, [s.ConstantLR(o, 0.1, 20), s.ExponentialLR(o, 0.9), s.StepLR(o, 10)], [20, 50]
    ),
    "multiplied_after_another": lambda o, s: s.SequentialLR(
        o, [s.ExponentialLR(o, 0.9), s.MultiplicativeLR(o, lambda epoch: 0.95)], [10]
    ),
    "multiplied_before_another": lambda o, s: s.SequentialLR(
        o, [s.MultiplicativeLR(o, lambda epoch: 0.95), s.LinearLR(o, 0.1)], [10]
    ),
    **{
        f"swa_{strategy}_{epochs}": lambda o, s, strategy=strategy, epochs=epochs: swa(s).SWALR(
            o, [0.05, 0.02], epochs, strategy
        )
        for strategy in ("cos", "linear")
        for epochs in (0, 1, 10)
    },
}


def swa(schedulers: Any) -> Any:
    return (optim if schedulers is lr_scheduler else torch.optim).swa_utils


def two_groups(package: Any, parameter: Callable[[], Any], **options: Any) -> Any:
    groups = [{"params": [parameter()]}, {"params": [parameter()], "lr": 0.02}]
    return package.SGD(groups, lr=0.1, momentum=0.9, **options)


def both() -> tuple[Any, Any]:
    return (
        two_groups(optim, lambda: nn.Parameter(np.zeros(3))),
        two_groups(torch.optim, lambda: torch.nn.Parameter(torch.zeros(3))),
    )


def options_of(optimizer: Any) -> list[float]:
    return [value for group in optimizer.param_groups for value in (group["lr"], group["momentum"])]


def follow(ours: Any, theirs: Any, step: Callable[[Any, int], Any], schedulers: list[Any], epochs: int = 100) -> None:
    for epoch in range(epochs):
        np.testing.assert_allclose(options_of(ours), options_of(theirs), rtol=1e-12, atol=1e-15, err_msg=f"{epoch=}")
        theirs.step()
        for scheduler in schedulers:
            step(scheduler, epoch)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_a_hundred_epochs(name: str) -> None:
    ours, theirs = both()
    own, its = CASES[name](ours, lr_scheduler), CASES[name](theirs, torch.optim.lr_scheduler)
    follow(ours, theirs, lambda scheduler, epoch: scheduler.step(), [own, its])
    np.testing.assert_allclose(own.get_last_lr(), its.get_last_lr(), rtol=1e-12)


def test_two_schedulers_of_one_optimizer() -> None:
    """Schedulers that are stepped together multiply."""
    ours, theirs = both()
    schedulers = []
    for optimizer, package in ((ours, lr_scheduler), (theirs, torch.optim.lr_scheduler)):
        schedulers += [
            package.LinearLR(optimizer, 0.2, total_iters=8),
            package.ExponentialLR(optimizer, 0.97),
            package.MultiStepLR(optimizer, [30, 60]),
            package.CosineAnnealingLR(optimizer, 70),
        ]
    follow(ours, theirs, lambda scheduler, epoch: scheduler.step(), schedulers, epochs=70)


@pytest.mark.parametrize("eta_min", [0.0, 0.001])
def test_a_cosine_past_its_end_beside_another_scheduler(eta_min: float) -> None:
    ours, theirs = both()
    schedulers = []
    for optimizer, package in ((ours, lr_scheduler), (theirs, torch.optim.lr_scheduler)):
        schedulers += [package.CosineAnnealingLR(optimizer, 10, eta_min), package.ExponentialLR(optimizer, 0.99)]
    follow(ours, theirs, lambda scheduler, epoch: scheduler.step(), schedulers, epochs=45)


def test_a_polynomial_past_its_end_beside_another_scheduler() -> None:
    ours, theirs = both()
    schedulers = []
    for optimizer, package in ((ours, lr_scheduler), (theirs, torch.optim.lr_scheduler)):
        schedulers += [package.CosineAnnealingWarmRestarts(optimizer, 4), package.PolynomialLR(optimizer, 10)]
    follow(ours, theirs, lambda scheduler, epoch: scheduler.step(), schedulers, epochs=30)


@pytest.mark.parametrize("strategy", ["cos", "linear"])
def test_an_average_that_starts_late(strategy: str) -> None:
    """SWALR goes on from where another scheduler was."""
    ours, theirs = both()
    schedulers = []
    for optimizer, package in ((ours, lr_scheduler), (theirs, torch.optim.lr_scheduler)):
        schedulers += [package.CosineAnnealingLR(optimizer, 50), swa(package).SWALR(optimizer, 0.07, 5, strategy)]

    def step(scheduler: Any, epoch: int) -> None:
        if (epoch >= 15) == (type(scheduler).__name__ == "SWALR"):
            scheduler.step()

    follow(ours, theirs, step, schedulers, epochs=30)


def test_a_rate_set_by_hand_is_kept() -> None:
    ours, theirs = both()
    schedulers = [lr_scheduler.StepLR(ours, 5), torch.optim.lr_scheduler.StepLR(theirs, 5)]

    def step(scheduler: Any, epoch: int) -> None:
        if epoch == 12:
            scheduler.optimizer.param_groups[0]["lr"] = 0.5
        scheduler.step()

    follow(ours, theirs, step, schedulers, epochs=40)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
@pytest.mark.parametrize(
    "options", [{}, {"patience": 2, "cooldown": 3}, {"patience": 0, "factor": 0.5, "min_lr": 1e-3}]
)
def test_plateau(mode: str, threshold_mode: str, options: dict[str, Any]) -> None:
    ours, theirs = both()
    options = {"mode": mode, "threshold_mode": threshold_mode, "threshold": 0.05, "factor": 0.9, **options}
    schedulers = [
        lr_scheduler.ReduceLROnPlateau(ours, **options),
        torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, **options),
    ]
    metrics = (
        np.random.default_rng(0).standard_normal(100) * 0.2 + np.linspace(3, 0.5, 100)[:: 1 if mode == "min" else -1]
    )
    metrics[50] = np.nan
    follow(ours, theirs, lambda scheduler, epoch: scheduler.step(metrics[epoch]), schedulers)
