"""Learning rates that change with the epoch (or with the step: whatever `step()` is called after)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from math import cos, pi
from typing import Any

from sorix_dist.core.arguments import at_least
from sorix_dist.core.capture import host
from sorix_dist.optim.optimizer import Optimizer
from sorix_dist.optim.scheduler import LRScheduler, ReduceLROnPlateau, SequentialLR

__all__ = [
    "ConstantLR", "CosineAnnealingLR", "ExponentialLR", "LRScheduler", "LambdaLR", "LinearLR", "MultiStepLR",
    "OneCycleLR", "ReduceLROnPlateau", "SequentialLR", "StepLR",
]  # fmt: skip


class StepLR(LRScheduler):
    """The rate times gamma every `step_size` epochs."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1) -> None:
        at_least(1, step_size=step_size)
        self.step_size = step_size
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def lrs_at(self, epoch: int) -> list[float]:
        return self.scaled(self.gamma ** (epoch // self.step_size))


class MultiStepLR(LRScheduler):
    """The rate times gamma at each of the epochs `milestones`."""

    def __init__(
        self, optimizer: Optimizer, milestones: Sequence[int], gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        self.milestones = sorted(milestones)
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def lrs_at(self, epoch: int) -> list[float]:
        return self.scaled(self.gamma ** bisect_right(self.milestones, epoch))


class ExponentialLR(LRScheduler):
    """The rate times gamma every epoch."""

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def lrs_at(self, epoch: int) -> list[float]:
        return self.scaled(self.gamma**epoch)


class CosineAnnealingLR(LRScheduler):
    """Half a cosine from the rate to `eta_min` in `T_max` epochs, and back (Loshchilov and Hutter 2017)."""

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1) -> None:
        at_least(1, T_max=T_max)
        self.T_max = T_max
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def lrs_at(self, epoch: int) -> list[float]:
        height = (1 + cos(pi * epoch / self.T_max)) / 2
        return [self.eta_min + (base - self.eta_min) * height for base in self.base_lrs]

    def carry_over(self, lr: float, was: float, now: float) -> float:
        return self.eta_min + super().carry_over(lr - self.eta_min, was - self.eta_min, now - self.eta_min)


class LinearLR(LRScheduler):
    """A warm-up: the rate times a factor from `start_factor` to `end_factor` in `total_iters` epochs."""

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        if not 0 < start_factor <= 1:
            raise ValueError(f"start_factor must be in (0, 1], got {start_factor}")
        if not 0 <= end_factor <= 1:
            raise ValueError(f"end_factor must be in [0, 1], got {end_factor}")
        self.start_factor, self.end_factor = start_factor, end_factor
        at_least(1, total_iters=total_iters)
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def lrs_at(self, epoch: int) -> list[float]:
        done = min(epoch, self.total_iters) / self.total_iters
        return self.scaled(self.start_factor + (self.end_factor - self.start_factor) * done)


class ConstantLR(LRScheduler):
    """The rate times `factor` for `total_iters` epochs, and then the rate itself."""

    def __init__(self, optimizer: Optimizer, factor: float = 1 / 3, total_iters: int = 5, last_epoch: int = -1) -> None:
        if not 0 <= factor <= 1:
            raise ValueError(f"factor must be in [0, 1], got {factor}")
        self.factor = factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def lrs_at(self, epoch: int) -> list[float]:
        return self.scaled(self.factor if epoch < self.total_iters else 1.0)


class LambdaLR(LRScheduler):
    """The rate times `lr_lambda(epoch)`: one function, or a list with one for each parameter group."""

    not_saved = ("optimizer", "lr_lambdas")
    absolute = True

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
        last_epoch: int = -1,
    ) -> None:
        self._attach(optimizer)
        count = len(optimizer.param_groups)
        self.lr_lambdas = [lr_lambda] * count if callable(lr_lambda) else list(lr_lambda)
        if len(self.lr_lambdas) != count:
            raise ValueError(f"lr_lambda must be one function or {count}, got {len(self.lr_lambdas)}")
        super().__init__(optimizer, last_epoch)

    def lrs_at(self, epoch: int) -> list[float]:
        return [base * factor(epoch) for base, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)]


class OneCycleLR(LRScheduler):
    """From max_lr / div_factor up to max_lr, down to a `final_div_factor`-th of that (Smith and Topin 2018).

    It is stepped after every batch, `total_steps` (or epochs x steps_per_epoch) times in all, and replaces
    the rates that the optimizer had. max_lr: a number, or one for each parameter group.
    pct_start: the share of the steps that go up; anneal_strategy: "cos" or "linear".
    three_phase: first down as fast as up, then to the end.
    cycle_momentum: meanwhile momentum (or betas[0]) goes from max_momentum to base_momentum and back.
    """

    absolute = True

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | Sequence[float] = 0.85,
        max_momentum: float | Sequence[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
    ) -> None:
        self._attach(optimizer)
        if total_steps is not None:
            at_least(1, total_steps=total_steps)
            self.total_steps = total_steps
        elif epochs is None or steps_per_epoch is None:
            raise ValueError("OneCycleLR needs total_steps, or both epochs and steps_per_epoch")
        else:
            at_least(1, epochs=epochs, steps_per_epoch=steps_per_epoch)
            self.total_steps = epochs * steps_per_epoch
        if not 0 <= pct_start <= 1:
            raise ValueError(f"pct_start must be in [0, 1], got {pct_start}")
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(f"anneal_strategy must be 'cos' or 'linear', got {anneal_strategy!r}")
        if cycle_momentum and any(_momentum_name(group) is None for group in optimizer.param_groups):
            raise ValueError("cycle_momentum needs an optimizer with momentum or betas; say cycle_momentum=False")
        self.anneal_strategy = anneal_strategy
        self.cycle_momentum = cycle_momentum
        last = self.total_steps - 1
        top = pct_start * self.total_steps - 1
        ends = [top, 2 * top, last] if three_phase else [top, last]
        self.ends: list[float] = ends  # the step at which each phase ends
        self.lr_knots = [
            [
                most / div_factor,
                most,
                *([most / div_factor] if three_phase else []),
                most / div_factor / final_div_factor,
            ]
            for most in self._per_group("max_lr", max_lr)
        ]
        self.momentum_knots = [
            [most, least, most, *([most] if three_phase else [])]
            for least, most in zip(
                self._per_group("base_momentum", base_momentum),
                self._per_group("max_momentum", max_momentum),
                strict=True,
            )
        ]
        if last_epoch == -1:
            for group, (start, *_) in zip(optimizer.param_groups, self.lr_knots, strict=True):
                group["lr"] = group["initial_lr"] = start
        super().__init__(optimizer, last_epoch)

    def lrs_at(self, epoch: int) -> list[float]:
        return [self._between(knots, epoch) for knots in self.lr_knots]

    @host
    def step(self, epoch: int | None = None) -> None:
        """Sets the rates, and the momentum, of the next step, or of step `epoch`."""
        super().step(epoch)
        if not self.cycle_momentum:
            return
        for group, knots in zip(self.optimizer.param_groups, self.momentum_knots, strict=True):
            momentum = self._between(knots, self.last_epoch)
            if _momentum_name(group) == "betas":
                group["betas"] = (momentum, *group["betas"][1:])
            else:
                group["momentum"] = momentum

    def _between(self, knots: list[float], step: int) -> float:
        """The value at a step: from knot to knot, one phase each."""
        if step > self.total_steps:
            raise ValueError(f"OneCycleLR was made for total_steps {self.total_steps}, got step {step}")
        phase = next((i for i, end in enumerate(self.ends) if step <= end), len(self.ends) - 1)
        start, end = self.ends[phase - 1] if phase else 0.0, self.ends[phase]
        done = (step - start) / (end - start) if end != start else 1.0
        low, high = knots[phase], knots[phase + 1]
        if self.anneal_strategy == "linear":
            return low + (high - low) * done
        return high + (low - high) / 2 * (1 + cos(pi * done))

    def _per_group(self, name: str, value: float | Sequence[float]) -> list[float]:
        count = len(self.optimizer.param_groups)
        values: list[float] = list(value) if isinstance(value, Sequence) else [value] * count
        if len(values) != count:
            raise ValueError(f"{name} must be a number or one for each of {count} groups, got {len(values)}")
        return values


def _momentum_name(group: dict[str, Any]) -> str | None:
    return next((name for name in ("betas", "momentum") if name in group), None)
