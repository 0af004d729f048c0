"""What all schedulers share: epochs are counted, and a formula of the epoch gives the learning rates."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, ClassVar

from sorix_dist.optim.optimizer import Optimizer


class LRScheduler:
    """Base of the schedulers. A subclass gives the learning rates of an epoch in `lrs_at`.

    The rates of the groups at the start are kept as `base_lrs`, and in the groups as "initial_lr". Making a
    scheduler sets the rates of epoch 0, each `step()` those of the next. With `last_epoch` it goes on with an
    optimizer that was stepped and saved in an earlier run, with the rates of the epoch after that.
    Rates are computed from the epoch alone, so rounding does not add up, unless something else has changed
    the rate of a group since: another scheduler of the same optimizer, or the user. That change is kept.
    """

    not_saved: ClassVar[tuple[str, ...]] = ("optimizer",)
    absolute: ClassVar[bool] = False  # whether rates that others have set are overwritten

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        self._attach(optimizer)
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

    def _attach(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be an Optimizer, got {type(optimizer).__name__}")
        self.optimizer = optimizer

    # -- what a subclass defines

    def lrs_at(self, epoch: int) -> list[float]:
        """The learning rate of each group in an epoch, from 0."""
        raise NotImplementedError(f"{type(self).__name__} must implement lrs_at")

    def carry_over(self, lr: float, was: float, now: float) -> float:
        """What becomes of a rate `lr` that others have set where this scheduler goes from `was` to `now`."""
        return lr * now / was if was else now

    def scaled(self, factor: float) -> list[float]:
        """The base rates times a factor."""
        return [base * factor for base in self.base_lrs]

    # -- what a user calls

    def step(self, epoch: int | None = None) -> None:
        """Sets the rates of the next epoch, or of `epoch`."""
        groups = self.optimizer.param_groups
        if len(groups) != len(self.base_lrs):
            raise ValueError(
                f"{type(self).__name__} was made for {len(self.base_lrs)} parameter groups, the optimizer "
                f"has {len(groups)} now: add the groups before the scheduler is made"
            )
        next_epoch = self.last_epoch + 1 if epoch is None else epoch
        lrs = self.lrs_at(next_epoch)
        if epoch is None and not self.absolute:
            before = self.base_lrs if self.last_epoch == -1 else self.lrs_at(self.last_epoch)
            for i, group in enumerate(groups):
                if group["lr"] != before[i]:
                    lrs[i] = self.carry_over(group["lr"], before[i], lrs[i])
        self.last_epoch = next_epoch
        for group, lr in zip(groups, lrs, strict=True):
            group["lr"] = lr
        self._last_lr = lrs

    def get_lr(self) -> list[float]:
        """The learning rate that the formula gives to each group in this epoch."""
        return self.lrs_at(self.last_epoch)

    def get_last_lr(self) -> list[float]:
        """The learning rate of each group that the last step has set."""
        return list(self._last_lr)

    def state_dict(self) -> dict[str, Any]:
        """A copy of all numbers of this scheduler; neither the optimizer nor functions are part of it."""
        return deepcopy({name: value for name, value in vars(self).items() if name not in self.not_saved})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a `state_dict()`; sets its rates where only this scheduler has set others since.

        ValueError says what does not fit; nothing is changed then.
        """
        self.check_state_dict(state_dict)
        for group, left, lr in zip(self.optimizer.param_groups, self._last_lr, state_dict["_last_lr"], strict=True):
            group["lr"] = lr if group["lr"] == left else group["lr"]
        vars(self).update(deepcopy({k: v for k, v in state_dict.items() if k not in self.not_saved}))

    def check_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises what `load_state_dict` would raise for this state, and changes nothing."""
        own = self.state_dict().keys()
        missing, unknown = sorted(own - state_dict.keys()), sorted(state_dict.keys() - own)
        if missing or unknown:
            raise ValueError(f"load_state_dict: state_dict lacks {missing} and has unknown {unknown}")
        groups, lrs = self.optimizer.param_groups, state_dict["_last_lr"]
        if not len(lrs) == len(groups) == len(self._last_lr):
            raise ValueError(f"load_state_dict: state_dict must be of {len(groups)} parameter groups, got {len(lrs)}")
