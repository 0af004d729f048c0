"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from sorix_dist.core.tensor import Array
from sorix_dist.optim.optimizer import Group, Optimizer, in_range
from sorix_dist.optim.state import Buffers, Scratch


class SGD(Optimizer):
    """Gradient descent with momentum (Polyak 1964), as PyTorch defines it: v = momentum v + g; w = w - lr v.

    weight_decay: adds weight_decay w to the gradient g.
    nesterov: steps along g + momentum v instead of v (Sutskever et al. 2013); needs momentum, no dampening.
    dampening: v = momentum v + (1 - dampening) g, except that the first v is g.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        dampening: float = 0.0,
    ) -> None:
        super().__init__(params, lr, weight_decay, momentum=momentum, nesterov=nesterov, dampening=dampening)

    def check(self, group: Group) -> None:
        super().check(group)
        in_range(group, "momentum", 0, 1)
        in_range(group, "dampening", 0, 1)
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
        lr, decay = float(group["lr"]), float(group["weight_decay"])
        if decay:
            np.multiply(data, decay, out=spare)
            spare += grad
            grad = spare
        if momentum_buffer is None:
            np.multiply(grad, lr, out=spare)
            data -= spare
            return
        momentum, kept = float(group["momentum"]), 1 - float(group["dampening"])
        if step == 1 or kept == 1:
            momentum_buffer *= momentum
            momentum_buffer += grad
        else:
            # v / kept = momentum v / kept + g, so that g is added as it is and needs no second spare array.
            momentum_buffer *= momentum / kept
            momentum_buffer += grad
            momentum_buffer *= kept
        if group["nesterov"]:
            # lr (g + momentum v) in two parts, because the one spare array may hold g.
            np.multiply(grad, lr, out=spare)
            data -= spare
            lr *= momentum
        np.multiply(momentum_buffer, lr, out=spare)
        data -= spare


class SGDMomentum(SGD):
    """SGD with a momentum of 0.9 unless said otherwise."""

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, lr, momentum, weight_decay)
