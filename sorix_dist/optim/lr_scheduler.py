"""Learning rates that change with the epoch (or with the step: whatever `step()` is called after)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from math import cos, pi
from typing import Any

from sorix_dist.core.arguments import as_function, as_int, at_least, in_range, one_of
from sorix_dist.core.keywords import missing_from
from sorix_dist.optim.optimizer import Optimizer
from sorix_dist.optim.scheduler import ChainedScheduler, LRScheduler, ReduceLROnPlateau, SequentialLR, as_epochs

__all__ = [
    "ChainedScheduler", "ConstantLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "CyclicLR", "ExponentialLR",
    "LRScheduler", "LambdaLR", "LinearLR", "MultiStepLR", "MultiplicativeLR", "OneCycleLR", "PolynomialLR",
    "ReduceLROnPlateau", "SequentialLR", "StepLR",
]  # fmt: skip

_LRScheduler = LRScheduler  # PyTorch's older name, which schedulers of users derive from


class StepLR(LRScheduler):
    """The rate times gamma every `step_size` epochs."""

    def __init__(self, optimizer: Optimizer, step_size: float, gamma: float = 0.1, last_epoch: int = -1) -> None:
        in_range("StepLR: gamma", gamma, 0, above=True)
        step_size = int(step_size) if isinstance(step_size, float) and step_size.is_integer() else step_size
        self.step_size, self.gamma = as_int("step_size", step_size, 1), gamma
        super().__init__(optimizer, last_epoch)

    def lrs_at(self, epoch: int) -> list[float]:
        return self.scaled(self.gamma ** (epoch // self.step_size))


class MultiStepLR(LRScheduler):
    """The rate times gamma at each of the epochs `milestones`."""

    def __init__(
        self, optimizer: Optimizer, milestones: Sequence[int], gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        in_range("MultiStepLR: gamma", gamma, 0, above=True)
        self.milestones, self.gamma = sorted(as_epochs("milestones", milestones)), gamma
        super().__init__(optimizer, last_epoch)

    def lrs_at(self, epoch: int) -> list[float]:
        return self.scaled(self.gamma ** bisect_right(self.milestones, epoch))


class ExponentialLR(LRScheduler):
    """The rate times gamma every epoch."""

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        in_range("ExponentialLR: gamma", gamma, 0, above=True)
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def lrs_at(self, epoch: int) -> list[float]:
        return self.scaled(self.gamma**epoch)


class CosineAnnealingLR(LRScheduler):
    """Half a cosine from the rate to `eta_min` in `T_max` epochs, and back (Loshchilov and Hutter 2017)."""

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1) -> None:
        at_least(1, T_max=T_max)
        self.T_max, self.eta_min = T_max, eta_min
        super().__init__(optimizer, last_epoch)

    def lrs_at(self, epoch: int) -> list[float]:
        height = (1 + cos(pi * epoch / self.T_max)) / 2
        return [self.eta_min + (base - self.eta_min) * height for base in self.base_lrs]

    def carry_over(self, lr: float, was: float, now: float) -> float:
        if was == self.eta_min:  # the turning point, from where PyTorch adds the difference
            return lr + now - was
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
        in_range("start_factor", start_factor, 0, 1, above=True, closed=True)
        in_range("end_factor", end_factor, 0, 1, closed=True)
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
        in_range("factor", factor, 0, 1, closed=True)
        at_least(1, total_iters=total_iters)
        self.factor, self.total_iters = factor, total_iters
        super().__init__(optimizer, last_epoch)

    def lrs_at(self, epoch: int) -> list[float]:
        return self.scaled(self.factor if epoch < self.total_iters else 1.0)


class PolynomialLR(LRScheduler):
    """The rate times (1 - epoch / total_iters)^power, and 0 from epoch `total_iters` on."""

    def __init__(self, optimizer: Optimizer, total_iters: int = 5, power: float = 1.0, last_epoch: int = -1) -> None:
        at_least(1, total_iters=total_iters)
        in_range("power", power, 0)
        self.total_iters, self.power = total_iters, power
        super().__init__(optimizer, last_epoch)

    def lrs_at(self, epoch: int) -> list[float]:
        return self.scaled((1 - min(epoch, self.total_iters) / self.total_iters) ** self.power)

    def carry_over(self, lr: float, was: float, now: float) -> float:
        return super().carry_over(lr, was, now) if was else lr  # after the end others set the rate


def _functions(values: list[Any]) -> list[Callable[[int], float]]:
    return [as_function("lr_lambda", each, "the epoch") for each in values]


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
        self._attach(optimizer, last_epoch)
        self.lr_lambdas = _functions(self.per_group("lr_lambda", lr_lambda, None))
        super().__init__(optimizer, last_epoch)

    def lrs_at(self, epoch: int) -> list[float]:
        return [base * factor(epoch) for base, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)]


class MultiplicativeLR(LRScheduler):
    """The rate times `lr_lambda(epoch)` in every epoch from 1 on; lr_lambda: as for LambdaLR."""

    not_saved = ("optimizer", "lr_lambdas", "_products")

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
        last_epoch: int = -1,
    ) -> None:
        self._attach(optimizer, last_epoch)
        self.lr_lambdas = _functions(self.per_group("lr_lambda", lr_lambda, None))
        self._products = [[1.0] * len(self.lr_lambdas)]  # for each epoch, of all factors up to it
        super().__init__(optimizer, last_epoch)

    def lrs_at(self, epoch: int) -> list[float]:
        for next_epoch in range(len(self._products), epoch + 1):
            factors = [factor(next_epoch) for factor in self.lr_lambdas]
            self._products.append([p * f for p, f in zip(self._products[-1], factors, strict=True)])
        return [base * product for base, product in zip(self.base_lrs, self._products[epoch], strict=True)]

    def take_over(self, epoch: int) -> None:
        """Multiplies the rates that another scheduler has left by the factor of `epoch`."""
        self.last_epoch = epoch
        for group, factor in zip(self.optimizer.param_groups, self.lr_lambdas, strict=True):
            group["lr"] *= factor(epoch)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


class CosineAnnealingWarmRestarts(LRScheduler):
    """Half a cosine from the rate to `eta_min` in `T_0` epochs, then again in cycles T_mult times as long (SGDR,
    Loshchilov and Hutter 2017). `step(epoch)` also takes fractions of epochs."""

    absolute = True

    def __init__(
        self, optimizer: Optimizer, T_0: int, T_mult: int = 1, eta_min: float = 0.0, last_epoch: int = -1
    ) -> None:
        at_least(1, T_0=T_0, T_mult=T_mult)
        self.T_0, self.T_mult, self.eta_min = T_0, T_mult, eta_min
        super().__init__(optimizer, last_epoch)

    def lrs_at(self, epoch: float) -> list[float]:
        length = self.T_0
        if self.T_mult == 1:
            epoch %= length
        while epoch >= length:
            epoch -= length
            length *= self.T_mult
        height = (1 + cos(pi * epoch / length)) / 2
        return [self.eta_min + (base - self.eta_min) * height for base in self.base_lrs]


class _Cycle(LRScheduler):
    """Schedules of the rate that may move the momentum in the opposite direction."""

    absolute = True
    cycle_momentum: bool

    def _start(self, lrs: list[float], last_epoch: int, replace: bool) -> None:
        """Sets the rates of epoch 0; replace: also the rates that schedulers made later start from."""
        groups = self.optimizer.param_groups
        if self.cycle_momentum and not all("betas" in group or "momentum" in group for group in groups):
            raise ValueError("cycle_momentum needs an optimizer with momentum or betas; say cycle_momentum=False")
        if last_epoch == -1:
            for group, lr in zip(groups, lrs, strict=True):
                group["initial_lr"] = lr if replace else group.get("initial_lr", lr)
        super().__init__(self.optimizer, last_epoch)
        if last_epoch == -1:  # PyTorch's CyclicLR, too, starts where a scheduler before it did
            self._last_lr = list(self.base_lrs)
            for group in groups:
                group["lr"] = group["initial_lr"]


class CyclicLR(_Cycle):
    """From base_lr to max_lr in `step_size_up` steps, back in `step_size_down`, and so on (Smith 2017).

    It is stepped after every batch, and replaces the rates that the optimizer had. base_lr, max_lr, base_momentum and
    max_momentum are numbers, or one for each parameter group.
    mode: the height of the peaks: "triangular" is constant, "triangular2" halves it each cycle, "exp_range" multiplies
    it by gamma every step. scale_fn replaces `mode`: a function of the number of the cycle, from 1, or of the step with
    scale_mode="iterations".
    cycle_momentum: meanwhile momentum (or betas[0]) goes from max_momentum to base_momentum and back.
    """

    not_saved = ("optimizer", "scale_fn")

    def __init__(
        self,
        optimizer: Optimizer,
        base_lr: float | Sequence[float],
        max_lr: float | Sequence[float],
        step_size_up: int = 2000,
        step_size_down: int | None = None,
        mode: str = "triangular",
        gamma: float = 1.0,
        scale_fn: Callable[[float], float] | None = None,
        scale_mode: str = "cycle",
        cycle_momentum: bool = True,
        base_momentum: float | Sequence[float] = 0.8,
        max_momentum: float | Sequence[float] = 0.9,
        last_epoch: int = -1,
    ) -> None:
        self._attach(optimizer, last_epoch)
        self.up, self.down = step_size_up, step_size_up if step_size_down is None else step_size_down
        at_least(1, step_size_up=self.up, step_size_down=self.down)
        one_of("mode", mode, "triangular", "triangular2", "exp_range")
        one_of("scale_mode", scale_mode, "cycle", "iterations")
        if scale_fn is not None:
            as_function("scale_fn", scale_fn, "a cycle or step")
        self.mode, self.gamma, self.scale_fn, self.scale_mode = mode, gamma, scale_fn, scale_mode
        self.cycle_momentum = cycle_momentum
        self.low, self.high = self.per_group("base_lr", base_lr), self.per_group("max_lr", max_lr)
        self.least = self.per_group("base_momentum", base_momentum)
        self.most = self.per_group("max_momentum", max_momentum)
        self._start(self.low, last_epoch, replace=False)

    def _height(self, step: int) -> float:
        """The fraction of the difference between both ends that a step has."""
        cycle, place = divmod(step, self.up + self.down)
        slope = place / self.up if place <= self.up else (self.up + self.down - place) / self.down
        if self.scale_fn is not None:
            return slope * self.scale_fn(cycle + 1 if self.scale_mode == "cycle" else step)
        return slope * {"triangular": 1.0, "triangular2": 0.5**cycle, "exp_range": self.gamma**step}[self.mode]

    def lrs_at(self, epoch: int) -> list[float]:
        height = self._height(epoch)
        return [low + (high - low) * height for low, high in zip(self.low, self.high, strict=True)]

    def momenta_at(self, epoch: int) -> list[float] | None:
        height = self._height(epoch)
        ends = zip(self.least, self.most, strict=True)
        return [most - (most - least) * height for least, most in ends] if self.cycle_momentum else None


class OneCycleLR(_Cycle):
    """From max_lr / div_factor up to max_lr, down to a `final_div_factor`-th of that (Smith and Topin 2018).

    It is stepped after every batch, `total_steps` (or epochs x steps_per_epoch) times in all, and replaces
    the rates that the optimizer had. max_lr, base_momentum, max_momentum: numbers, or one for each parameter group.
    pct_start: the share of the steps that go up; anneal_strategy: "cos" or "linear".
    three_phase: first down as fast as up, then to the end.
    cycle_momentum: meanwhile momentum (or betas[0]) goes from max_momentum to base_momentum and back.
    """

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
        self._attach(optimizer, last_epoch)
        in_range("div_factor", div_factor, 0, above=True)
        in_range("final_div_factor", final_div_factor, 0, above=True)
        if total_steps is not None:
            at_least(1, total_steps=total_steps)
        elif epochs is None or steps_per_epoch is None:
            raise ValueError("OneCycleLR needs total_steps, or both epochs and steps_per_epoch")
        else:
            at_least(1, epochs=epochs, steps_per_epoch=steps_per_epoch)
            total_steps = epochs * steps_per_epoch
        in_range("pct_start", pct_start, 0, 1, closed=True)
        one_of("anneal_strategy", anneal_strategy, "cos", "linear")
        self.total_steps, self.anneal_strategy, self.cycle_momentum = total_steps, anneal_strategy, cycle_momentum
        top, last = pct_start * total_steps - 1, total_steps - 1
        self.ends: list[float] = [top, 2 * top, last] if three_phase else [top, last]  # the last step of each phase
        # The values at the start, and at the end of each phase.
        self.lr_knots = [
            [high / div_factor, high, *([high / div_factor] * three_phase), high / div_factor / final_div_factor]
            for high in self.per_group("max_lr", max_lr)
        ]
        momenta = self.per_group("base_momentum", base_momentum), self.per_group("max_momentum", max_momentum)
        self.momentum_knots = [[most, least, most, *([most] * three_phase)] for least, most in zip(*momenta)]
        self._start([knots[0] for knots in self.lr_knots], last_epoch, replace=True)

    def lrs_at(self, epoch: int) -> list[float]:
        return [self._between(knots, epoch) for knots in self.lr_knots]

    def momenta_at(self, epoch: int) -> list[float] | None:
        return [self._between(knots, epoch) for knots in self.momentum_knots] if self.cycle_momentum else None

    def _between(self, knots: list[float], step: int) -> float:
        if step > self.total_steps:
            raise ValueError(f"OneCycleLR was made for total_steps {self.total_steps}, got step {step}")
        phase = next((i for i, end in enumerate(self.ends) if step <= end), len(self.ends) - 1)
        start, end = self.ends[phase - 1] if phase else 0.0, self.ends[phase]
        done = (step - start) / (end - start) if end != start else 1.0
        low, high = knots[phase], knots[phase + 1]
        if self.anneal_strategy == "linear":
            return low + (high - low) * done
        return high + (low - high) / 2 * (1 + cos(pi * done))


__getattr__ = missing_from(__name__, globals())
