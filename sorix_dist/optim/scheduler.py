"""The base class of schedulers, and those without a formula of the epoch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from copy import deepcopy
from math import inf
from typing import Any, ClassVar

import numpy as np

from sorix_dist.core import arguments
from sorix_dist.core.arguments import (
    as_int,
    as_list,
    as_number,
    as_state,
    at_least,
    check_names,
    checked,
    in_range,
    one_of,
)
from sorix_dist.core.capture import host, uncaptured
from sorix_dist.optim.optimizer import Optimizer


def as_epochs(name: str, values: Any) -> list[int]:
    """The entries of a list as integers >= 0; TypeError or ValueError, with `name`, for anything else."""
    return [as_int(f"{name}[{i}]", each, 0) for i, each in enumerate(as_list(name, values, "epochs"))]


class LRScheduler:
    """Base of the schedulers. A subclass gives the learning rates of an epoch in `lrs_at`.

    The rates of the groups at the start are saved as `base_lrs`, and in the groups as "initial_lr". Making a
    scheduler sets the rates of epoch 0, each `step()` those of the next. With `last_epoch` it continues with an
    optimizer that was stepped and saved in an earlier run, with the rates of the epoch after that.
    It may define PyTorch's `get_lr()` instead, from `last_epoch`, `base_lrs` and the groups. With `lrs_at`
    rates are computed from the epoch alone, so rounding does not add up. If another scheduler of the same optimizer,
    or the user, has changed the rate of a group since, that change stays.
    """

    not_saved: ClassVar[tuple[str, ...]] = ("optimizer",)
    absolute: ClassVar[bool] = False  # whether rates that others have set are overwritten
    by_get_lr: ClassVar[bool] = False  # whether a user's subclass gives the rates in `get_lr`, as in PyTorch

    def __init_subclass__(cls) -> None:
        if not cls.__module__.startswith("sorix_dist."):
            cls.by_get_lr = cls.by_get_lr or "get_lr" in vars(cls)
            cls.absolute = cls.absolute or cls.by_get_lr
        elif "__init__" in vars(cls):
            cls.__init__ = checked(cls.__init__)  # type: ignore[method-assign]

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        self._attach(optimizer, last_epoch)
        for i, group in enumerate(optimizer.param_groups):
            if last_epoch != -1 and "initial_lr" not in group:
                raise ValueError(
                    f"last_epoch {last_epoch} goes on from an earlier run, but group {i} of the optimizer "
                    "has no 'initial_lr': load the optimizer's state first"
                )
            group.setdefault("initial_lr", group["lr"])
        self.base_lrs: list[float] = [group["initial_lr"] for group in optimizer.param_groups]
        self.last_epoch = last_epoch
        self._last_lr: list[float] = []
        if last_epoch == -1 or self.absolute:
            self.step(last_epoch + 1 if self.absolute else None)
        else:
            self.last_epoch += 1
            self._last_lr = [group["lr"] for group in optimizer.param_groups]

    def per_group(self, name: str, value: Any, low: float | None = 0) -> list[Any]:
        """`value` for each parameter group, or its entries; ValueError unless there is one for each group.

        They must be numbers >= `low`, unless that is None.
        """
        count = len(self.optimizer.param_groups)
        several = isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)
        values = list(value) if several else [value] * count
        if len(values) != count:
            raise ValueError(f"{name} must be one value or one for each of {count} parameter groups, got {len(values)}")
        for i, each in enumerate(values if low is not None else ()):
            in_range(f"{name}[{i}]" if several else name, each, low or 0)
        return values

    def _attach(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        as_int("last_epoch", last_epoch, -1)
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be an Optimizer, got {type(optimizer).__name__}")
        self.optimizer = optimizer

    # -- what a subclass defines

    def lrs_at(self, epoch: int) -> list[float]:
        """The learning rate of each group in an epoch, from 0."""
        raise NotImplementedError(f"{type(self).__name__} must implement lrs_at or get_lr")

    def momenta_at(self, epoch: int) -> list[float] | None:
        """The momentum (or betas[0]) of each group in an epoch; None if the schedule leaves it as it is."""
        return None

    def carry_over(self, lr: float, was: float, now: float) -> float:
        """The new value of a rate `lr` that others have set, when this scheduler's own goes from `was` to `now`."""
        return lr * now / was if was else now

    def scaled(self, factor: float) -> list[float]:
        """The base rates times a factor."""
        return [base * factor for base in self.base_lrs]

    # -- what a user calls

    @host
    def step(self, epoch: int | None = None) -> None:
        """Sets the rates of the next epoch, or of `epoch`."""
        groups = self.optimizer.param_groups
        if len(groups) != len(self.base_lrs):
            raise ValueError(
                f"{type(self).__name__} was made for {len(self.base_lrs)} parameter groups, the optimizer "
                f"has {len(groups)} now: add the groups before the scheduler is made"
            )
        if epoch is not None:
            in_range("step: epoch", epoch, 0)
        next_epoch = self.last_epoch + 1 if epoch is None else epoch
        if self.by_get_lr:
            self.last_epoch = next_epoch
        lrs = list(self.get_lr()) if self.by_get_lr else self.lrs_at(next_epoch)
        if epoch is None and not self.absolute:
            before = self.base_lrs if self.last_epoch == -1 else self.lrs_at(self.last_epoch)
            for i, group in enumerate(groups):
                if group["lr"] != before[i]:
                    lrs[i] = self.carry_over(group["lr"], before[i], lrs[i])
        self.last_epoch = next_epoch
        for group, lr in zip(groups, lrs, strict=True):
            group["lr"] = lr
        self._set_momenta()
        self._last_lr = lrs

    def take_over(self, epoch: int) -> None:
        """Sets the rates of `epoch`, as one of several schedulers that take turns."""
        self.step(epoch)

    def _set_momenta(self) -> None:
        for group, momentum in zip(self.optimizer.param_groups, self.momenta_at(self.last_epoch) or ()):
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            else:
                group["momentum"] = momentum

    @uncaptured
    def get_lr(self) -> list[float]:
        """The learning rate that the formula gives to each group in this epoch."""
        return self.lrs_at(self.last_epoch)

    @uncaptured
    def get_last_lr(self) -> list[float]:
        """The learning rate of each group that the last step has set."""
        return list(self._last_lr)

    @uncaptured
    def state_dict(self) -> dict[str, Any]:
        """A copy of all numbers of this scheduler; neither the optimizer nor functions are part of it."""
        return deepcopy({name: value for name, value in vars(self).items() if name not in self.not_saved})

    @uncaptured
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a `state_dict()`; sets its rates where only this scheduler has set others since.

        ValueError says what does not fit; nothing is changed then.
        """
        self.check_state_dict(state_dict)
        for group, left, lr in zip(self.optimizer.param_groups, self._last_lr, state_dict["_last_lr"], strict=True):
            group["lr"] = lr if group["lr"] == left else group["lr"]
        vars(self).update(deepcopy({k: v for k, v in state_dict.items() if k not in self.not_saved}))
        self._set_momenta()

    def check_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises what `load_state_dict` would raise for this state, and changes nothing."""
        own = self.state_dict().keys()
        as_state("load_state_dict", state_dict)
        missing, unknown = sorted(own - state_dict.keys()), sorted(state_dict.keys() - own)
        check_names("load_state_dict: state_dict", missing, unknown)
        groups, lrs = self.optimizer.param_groups, state_dict["_last_lr"]
        if not len(lrs) == len(groups) == len(self._last_lr):
            raise ValueError(f"load_state_dict: state_dict must be of {len(groups)} parameter groups, got {len(lrs)}")


class ReduceLROnPlateau(LRScheduler):
    """The rate times `factor` when a metric has not become better for more than `patience` epochs.

    mode: "min" if less is better, "max" if more is; min_lr: a lower bound, or one for each parameter group.
    threshold: better is what passes best * (1 ± threshold) ("rel"), or best ± threshold ("abs").
    cooldown: epochs after a reduction that do not count; eps: a smaller change of the rate is not made.
    The metric has to be the same on every rank of a job.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        *ambiguous: Any,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0.0,
        eps: float = 1e-8,
    ) -> None:
        if ambiguous:
            raise TypeError(
                "ReduceLROnPlateau: name what follows patience: by position it is threshold in PyTorch, min_lr in sorix"
            )
        self._attach(optimizer)
        one_of("mode", mode, "min", "max")
        in_range("factor", factor, 0)
        if factor >= 1:
            raise ValueError(f"factor must be < 1.0, got {factor}")
        one_of("threshold_mode", threshold_mode, "rel", "abs")
        self.min_lrs = self.per_group("min_lr", min_lr)
        self.mode, self.factor, self.patience = mode, factor, patience
        at_least(0, "ReduceLROnPlateau", patience=patience, cooldown=cooldown)
        in_range("eps", eps, 0)
        self.threshold, self.threshold_mode = threshold, threshold_mode
        self.cooldown, self.eps = cooldown, eps
        self.best = inf if mode == "min" else -inf
        self.num_bad_epochs = self.cooldown_counter = 0
        self.last_epoch = 0
        self._last_lr = self.get_lr()

    @host
    def step(self, metrics: Any, epoch: int | None = None) -> None:  # type: ignore[override]
        """Records the metric of an epoch, a number, and adapts the rate."""
        value = as_number("ReduceLROnPlateau.step: metrics", metrics)
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        if self.is_better(value):
            self.best, self.num_bad_epochs = value, 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            for group, least in zip(self.optimizer.param_groups, self.min_lrs, strict=True):
                lr = max(group["lr"] * self.factor, least)
                if group["lr"] - lr > self.eps:
                    group["lr"] = lr
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0
        self._last_lr = self.get_lr()

    def is_better(self, value: float) -> bool:
        """Whether a metric is better than the best by more than the threshold; NaN never is."""
        down = -self.threshold if self.mode == "min" else self.threshold
        bound = self.best * (1 + down) if self.threshold_mode == "rel" else self.best + down
        return value < bound if self.mode == "min" else value > bound

    @uncaptured
    def get_lr(self) -> list[float]:
        """The learning rate of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]


class _Several(LRScheduler):
    """Schedulers of one optimizer."""

    not_saved = ("optimizer", "schedulers")
    schedulers: list[LRScheduler]

    def _checked(self, schedulers: Sequence[LRScheduler]) -> list[LRScheduler]:
        schedulers = as_list("schedulers", schedulers, "schedulers")
        for i, scheduler in enumerate(schedulers):
            if isinstance(scheduler, ReduceLROnPlateau):
                raise ValueError(f"schedulers[{i}] is a ReduceLROnPlateau, which needs a metric: step it separately")
            if not isinstance(scheduler, LRScheduler):
                raise TypeError(f"schedulers[{i}] must be a scheduler, got {arguments.described(scheduler)}")
            if scheduler.optimizer is not self.optimizer:
                raise ValueError(f"schedulers[{i}] belongs to another optimizer")
        return schedulers

    @uncaptured
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "schedulers": [s.state_dict() for s in self.schedulers]}

    @uncaptured
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.check_state_dict(state_dict)
        groups = self.optimizer.param_groups
        options = ("lr", "momentum", "betas")
        before: list[dict[str, Any]] = [{name: group[name] for name in options if name in group} for group in groups]
        for scheduler, its_state in zip(self.schedulers, state_dict["schedulers"], strict=True):
            scheduler.load_state_dict(its_state)
        for group, values in zip(groups, before, strict=True):
            group.update(values)  # the sequence decides which scheduler is in force
        super().load_state_dict(state_dict)

    def check_state_dict(self, state_dict: dict[str, Any]) -> None:
        saved = as_state("load_state_dict", state_dict).get("schedulers", ())
        if len(saved) != len(self.schedulers):
            raise ValueError(
                f"load_state_dict: state_dict must be of {len(self.schedulers)} schedulers, got {len(saved)}"
            )
        for scheduler, its_state in zip(self.schedulers, saved, strict=True):
            scheduler.check_state_dict(its_state)
        super().check_state_dict(state_dict)


class SequentialLR(_Several):
    """Schedulers of one optimizer: at each of the epochs `milestones` the next starts, at its epoch 0."""

    absolute = True

    def __init__(
        self, optimizer: Optimizer, schedulers: Sequence[LRScheduler], milestones: Sequence[int], last_epoch: int = -1
    ) -> None:
        self._attach(optimizer)
        schedulers, milestones = self._checked(schedulers), as_epochs("milestones", milestones)
        if not schedulers or len(milestones) != len(schedulers) - 1:
            raise ValueError(
                f"milestones must be one less than schedulers, got {len(milestones)} for {len(schedulers)}"
            )
        if milestones != sorted(milestones):
            raise ValueError(f"milestones must increase, got {milestones}")
        self.schedulers, self.milestones = schedulers, milestones
        for group in optimizer.param_groups if last_epoch == -1 else ():
            group["lr"] = group["initial_lr"]  # the schedulers changed it when they were made
        if last_epoch == -1 and not self.schedulers[0].absolute:  # a OneCycleLR made after it sets the start, as there
            self.schedulers[0].base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        super().__init__(optimizer, last_epoch)

    def _place(self, epoch: int) -> tuple[LRScheduler, int]:
        """The scheduler of an epoch, and which of its epochs that is."""
        i = bisect_right(self.milestones, epoch)
        return self.schedulers[i], epoch - self.milestones[i - 1] if i else epoch

    def lrs_at(self, epoch: int) -> list[float]:
        scheduler, its_epoch = self._place(epoch)
        return scheduler.lrs_at(its_epoch)

    def momenta_at(self, epoch: int) -> list[float] | None:
        scheduler, its_epoch = self._place(epoch)
        return scheduler.momenta_at(its_epoch)

    @host
    def step(self, epoch: int | None = None) -> None:
        """Sets the rates of the next epoch, or of `epoch`."""
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        scheduler, its_epoch = self._place(self.last_epoch)
        (scheduler.step if scheduler is self.schedulers[0] else scheduler.take_over)(its_epoch)
        self._last_lr = scheduler.get_last_lr()


class ChainedScheduler(_Several):
    """Schedulers of one optimizer that all step together: the changes of each are kept by the others.

    optimizer: that of the schedulers, if None.
    """

    def __init__(self, schedulers: Sequence[LRScheduler], optimizer: Optimizer | None = None) -> None:
        first = next(iter(as_list("schedulers", schedulers, "schedulers")), None)
        self._attach(optimizer or getattr(first, "optimizer", None))  # type: ignore[arg-type]
        self.schedulers = self._checked(schedulers)
        self.last_epoch = self.schedulers[0].last_epoch
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    @host
    def step(self, epoch: int | None = None) -> None:
        """Sets the rates of the next epoch, or of `epoch`."""
        for scheduler in self.schedulers:
            scheduler.step(epoch)
        self.last_epoch = self.schedulers[0].last_epoch
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    @uncaptured
    def get_lr(self) -> list[float]:
        """The learning rate of each group."""
        return self.get_last_lr()
