"""Averages of a model's weights over the steps of a training, at PyTorch's path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from math import cos, pi
from typing import Any

import numpy as np

from sorix_dist.core import Tensor, no_grad
from sorix_dist.core.arguments import as_function, as_int, described, in_range, one_of, raise_for_device
from sorix_dist.core.memory import refuse_frozen
from sorix_dist.nn.module import Module
from sorix_dist.optim.optimizer import Optimizer
from sorix_dist.optim.scheduler import LRScheduler

__all__ = ["SWALR", "AveragedModel", "get_ema_avg_fn", "update_bn"]


def get_ema_avg_fn(decay: float = 0.999) -> Callable[[Any, Any, int], Any]:
    """The exponential moving average: decay * average + (1 - decay) * weights."""
    in_range("decay", decay, 0, 1, closed=True)
    return lambda average, weights, count: decay * average + (1 - decay) * weights


def _mean(average: Any, weights: Any, count: int) -> Any:
    return average + (weights - average) / (count + 1)


class AveragedModel(Module):
    """A copy of a model, `module`, with averages of its parameters. `update_parameters` takes them.

    avg_fn: a function (average, weights, number of averages so far) of arrays, by default the mean of all (Izmailov et
    al. 2018); `get_ema_avg_fn(decay)` is the exponential moving average. use_buffers: buffers are averaged too, if they
    are of floating point dtype; else they are copied.
    """

    n_averaged: Tensor

    def __init__(
        self,
        model: Module,
        device: Any = None,
        avg_fn: Callable[[Any, Any, int], Any] | None = None,
        *,
        use_buffers: bool = False,
    ) -> None:
        self.module = deepcopy(_bare(model)).to(device=device).requires_grad_(False)
        self._avg_fn = as_function(
            "avg_fn", _mean if avg_fn is None else avg_fn, "the average, the weights and their number"
        )
        self.use_buffers = use_buffers
        self.register_buffer("n_averaged", Tensor(np.zeros((), np.int64)))

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return self.module(*inputs, **options)

    def update_parameters(self, model: Module) -> None:
        """Adds the weights of `model`, which has the parameters of the first one, to the averages."""
        count, theirs = int(self.n_averaged.item()), _bare(model)
        own = [*self.module.named_parameters(), *self.module.named_buffers()]
        new = dict([*theirs.named_parameters(), *theirs.named_buffers()])
        averaged = {name for name, _ in self.module.named_parameters()}
        if self.use_buffers:
            averaged |= {name for name, buffer in self.module.named_buffers() if buffer.array.dtype.kind == "f"}
        for name, tensor in own:
            refuse_frozen(tensor.array)
            value = new[name].array
            value = self._avg_fn(tensor.array, value, count) if count and name in averaged else value
            np.copyto(tensor.array, value, casting="same_kind")
        self.n_averaged.array[...] = count + 1


@no_grad()
def update_bn(loader: Iterable[Any], model: Module, device: Any = None) -> None:
    """Sets the running statistics of the batch norms in a model to the means of those of the loader's batches.

    A batch that is a list or tuple counts by its first entry. Every rank calls it with its loader.
    """
    raise_for_device(device)
    norms = [m for m in model.modules() if getattr(m, "running_mean", None) is not None]
    was, momenta = {m: m.training for m in model.modules()}, [m.momentum for m in norms]
    for norm in norms:
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.array[...] = 0
    try:
        model.train()
        for number, batch in enumerate(loader if norms else (), 1):
            for norm in norms:
                norm.momentum = 1 / number  # the mean over all batches
            model(batch[0] if isinstance(batch, list | tuple) else batch)
    finally:
        for module, training in was.items():
            module.training = training
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


class SWALR(LRScheduler):
    """From the rate that a group has to `swa_lr`, a number or one for each parameter group, in `anneal_epochs` steps.

    anneal_strategy: "cos" or "linear". Rates that other schedulers set in between are where it goes on from.
    """

    absolute = by_get_lr = True

    def __init__(
        self,
        optimizer: Optimizer,
        swa_lr: float | Sequence[float],
        anneal_epochs: int = 10,
        anneal_strategy: str = "cos",
        last_epoch: int = -1,
    ) -> None:
        self._attach(optimizer, last_epoch)
        one_of("anneal_strategy", anneal_strategy, "cos", "linear")
        self.swa_lrs, self.anneal_strategy = self.per_group("swa_lr", swa_lr), anneal_strategy
        self.anneal_epochs = as_int("anneal_epochs", anneal_epochs, 0)
        super().__init__(optimizer, last_epoch)

    def _left(self, step: int) -> float:
        """The share of the way to swa_lr that is left at a step."""
        done = min(1.0, max(0, step) / max(1, self.anneal_epochs))
        return (1 + cos(pi * done)) / 2 if self.anneal_strategy == "cos" else 1 - done

    def get_lr(self) -> list[float]:
        """The rate of each group, from the one that it has."""
        step = self.last_epoch if self.anneal_epochs else max(1, self.last_epoch)
        before, now = self._left(step - 1), self._left(step)
        factor = now / before if before else 0.0
        groups = zip(self.optimizer.param_groups, self.swa_lrs, strict=True)
        return [end + (group["lr"] - end) * factor for group, end in groups]


def _bare(model: Any) -> Module:
    """The model inside of a wrapper, or the model itself."""
    if not isinstance(model, Module):
        raise TypeError(f"model must be a Module, got {described(model)}")
    return model.module if hasattr(type(model), "unwrap") else model
