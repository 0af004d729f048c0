"""Schedules one after the other."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from sorix_dist.optim.lr_scheduler.base import LRScheduler
from sorix_dist.optim.lr_scheduler.plateau import ReduceLROnPlateau
from sorix_dist.optim.optimizer import Optimizer


class SequentialLR(LRScheduler):
    """Schedulers of one optimizer: at each of the epochs `milestones` the next starts, at its epoch 0."""

    not_saved = ("optimizer", "schedulers")
    absolute = True

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: Sequence[LRScheduler],
        milestones: Sequence[int],
        last_epoch: int = -1,
    ) -> None:
        self._attach(optimizer)
        if not schedulers or len(milestones) != len(schedulers) - 1:
            raise ValueError(
                f"milestones must be one less than schedulers, got {len(milestones)} for {len(schedulers)}"
            )
        if list(milestones) != sorted(milestones):
            raise ValueError(f"milestones must increase, got {list(milestones)}")
        for i, scheduler in enumerate(schedulers):
            if isinstance(scheduler, ReduceLROnPlateau):
                raise ValueError(f"schedulers[{i}] is a ReduceLROnPlateau, which needs a metric: step it alone")
            if scheduler.optimizer is not optimizer:
                raise ValueError(f"schedulers[{i}] belongs to another optimizer")
        self.schedulers = list(schedulers)
        self.milestones = list(milestones)
        super().__init__(optimizer, last_epoch)

    def _place(self, epoch: int) -> tuple[LRScheduler, int]:
        """The scheduler of an epoch, and which of its epochs that is."""
        i = bisect_right(self.milestones, epoch)
        return self.schedulers[i], epoch - self.milestones[i - 1] if i else epoch

    def lrs_at(self, epoch: int) -> list[float]:
        scheduler, its_epoch = self._place(epoch)
        return scheduler.lrs_at(its_epoch)

    def step(self, epoch: int | None = None) -> None:
        """Sets the rates of the next epoch, or of `epoch`."""
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        scheduler, its_epoch = self._place(self.last_epoch)
        scheduler.step(its_epoch)
        self._last_lr = scheduler.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "schedulers": [s.state_dict() for s in self.schedulers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.check_state_dict(state_dict)
        groups = self.optimizer.param_groups
        lrs = [group["lr"] for group in groups]
        for scheduler, its_state in zip(self.schedulers, state_dict["schedulers"], strict=True):
            scheduler.load_state_dict(its_state)
        for group, lr in zip(groups, lrs, strict=True):
            group["lr"] = lr  # which rate is in force is for the sequence to say
        super().load_state_dict(state_dict)

    def check_state_dict(self, state_dict: dict[str, Any]) -> None:
        saved = state_dict.get("schedulers", ())
        if len(saved) != len(self.schedulers):
            raise ValueError(
                f"load_state_dict: state_dict must be of {len(self.schedulers)} schedulers, got {len(saved)}"
            )
        for scheduler, its_state in zip(self.schedulers, saved, strict=True):
            scheduler.check_state_dict(its_state)
        super().check_state_dict(state_dict)
