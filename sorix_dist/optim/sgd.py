"""Gradient descent with momentum.

Options, defaults and formulas are those of PyTorch's documentation (`torch.optim`). Common to all optimizers:
weight_decay adds weight_decay w to the gradient g (AdamW shrinks w instead); maximize goes up the gradient;
foreach, fused and capturable, which say how PyTorch computes, are ignored.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType
from typing import Any

import numpy as np

from sorix_dist.core.memory import scalar
from sorix_dist.core.tensor import Array
from sorix_dist.optim.optimizer import Group, Optimizer, descent
from sorix_dist.optim.state import Buffers, Scratch


class SGD(Optimizer):
    """Gradient descent with momentum (Polyak 1964), as PyTorch defines it: v = momentum v + g; w = w - lr v.

    nesterov: steps along g + momentum v instead of v (Sutskever et al. 2013); needs momentum, no dampening.
    dampening: v = momentum v + (1 - dampening) g, except that the first v is g.
    """

    bounds = MappingProxyType({"momentum": (0, 1), "dampening": (0, 1)})

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        **ignored: Any,
    ) -> None:
        options = {"momentum": momentum, "nesterov": nesterov, "dampening": dampening}
        super().__init__(params, lr, weight_decay, ignored=ignored, **options, maximize=maximize)

    def check(self, group: Group) -> None:
        super().check(group)
        if group["nesterov"] and (not group["momentum"] or group["dampening"]):
            raise ValueError(
                "nesterov needs a momentum and a dampening of 0, "
                f"got momentum {group['momentum']} and dampening {group['dampening']}"
            )

    def buffers(self, group: Group) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def update(self, data: Array, grad: Array, buffers: Buffers, scratch: Scratch, group: Group, step: int) -> None:
        (spare,) = scratch
        momentum_buffer = buffers.get("momentum_buffer")
        lr, dtype = float(group["lr"]), data.dtype
        grad = descent(data, grad, spare, group)
        if momentum_buffer is None:
            np.multiply(grad, scalar(lr, dtype), spare)
            data -= spare
            return
        momentum, undamped = float(group["momentum"]), 1 - float(group["dampening"])
        if step == 1 or undamped == 1:
            momentum_buffer *= scalar(momentum, dtype)
            momentum_buffer += grad
        else:
            # v / undamped = momentum v / undamped + g, so that g is added as it is and needs no second spare array.
            momentum_buffer *= momentum / undamped
            momentum_buffer += grad
            momentum_buffer *= undamped
        if group["nesterov"]:
            # lr (g + momentum v) in two steps, because the one spare array may hold g.
            np.multiply(grad, lr, spare)
            data -= spare
            lr *= momentum
        np.multiply(momentum_buffer, scalar(lr, dtype), spare)
        data -= spare
