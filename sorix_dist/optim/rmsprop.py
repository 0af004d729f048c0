"""RMSprop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from sorix_dist.core.tensor import Array
from sorix_dist.optim.optimizer import Group, Optimizer, at_least_zero, in_range
from sorix_dist.optim.state import Buffers, Scratch


class RMSprop(Optimizer):
    """Gradients divided by the root of their averaged square (Hinton 2012): w = w - lr g / (sqrt(v) + eps).

    alpha: how much of the average v is kept in a step; `decay` is another name for it, and wins if given.
    weight_decay: adds weight_decay w to the gradient g.
    momentum: steps along u = momentum u + g / (sqrt(v) + eps).
    centered: divides by the deviation from the averaged gradient instead (Graves 2013).
    """

    scratch_arrays = 2

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decay: float | None = None,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        alpha = alpha if decay is None else decay
        super().__init__(params, lr, weight_decay, alpha=alpha, eps=eps, momentum=momentum, centered=centered)

    def check(self, group: Group) -> None:
        super().check(group)
        at_least_zero(group, "eps")
        in_range(group, "alpha", 0, 1)
        in_range(group, "momentum", 0, 1)

    def buffers(self, group: Group) -> tuple[str, ...]:
        average = ("grad_avg",) if group["centered"] else ()
        return ("square_avg", *average, *(("momentum_buffer",) if group["momentum"] else ()))

    def update(self, data: Array, grad: Array, buffers: Buffers, scratch: Scratch, group: Group, step: int) -> None:
        spare, decayed = scratch
        square_avg, grad_avg = buffers["square_avg"], buffers.get("grad_avg")
        lr, eps, alpha, decay = (float(group[name]) for name in ("lr", "eps", "alpha", "weight_decay"))
        if decay:
            np.multiply(data, decay, out=decayed)
            decayed += grad
            grad = decayed
        np.multiply(grad, grad, out=spare)
        spare *= 1 - alpha
        square_avg *= alpha
        square_avg += spare
        if grad_avg is None:
            np.sqrt(square_avg, out=spare)
        else:
            np.multiply(grad, 1 - alpha, out=spare)
            grad_avg *= alpha
            grad_avg += spare
            np.multiply(grad_avg, grad_avg, out=spare)
            np.subtract(square_avg, spare, out=spare)
            np.maximum(spare, 0, out=spare)  # a variance that rounding made negative
            np.sqrt(spare, out=spare)
        spare += eps
        np.divide(grad, spare, out=spare)
        if "momentum_buffer" in buffers:
            momentum_buffer = buffers["momentum_buffer"]
            momentum_buffer *= float(group["momentum"])
            momentum_buffer += spare
            np.multiply(momentum_buffer, lr, out=spare)
        else:
            spare *= lr
        data -= spare
