"""Averages of a model's weights over the steps of a training, at PyTorch's path."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.arguments import as_function, described, in_range
from sorix_dist.core.memory import refuse_frozen
from sorix_dist.nn.module import Module

__all__ = ["AveragedModel", "get_ema_avg_fn"]


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


def _bare(model: Any) -> Module:
    """The model inside of a wrapper, or the model itself."""
    if not isinstance(model, Module):
        raise TypeError(f"model must be a Module, got {described(model)}")
    return model.module if hasattr(type(model), "unwrap") else model
