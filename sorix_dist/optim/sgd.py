"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from sorix_dist.core.tensor import Array
from sorix_dist.optim.optimizer import Optimizer


class SGD(Optimizer):
    """Gradient descent with momentum (Polyak 1964), as PyTorch defines it: v = momentum v + g; w = w - lr v.

    weight_decay: adds weight_decay * w to the gradient.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, momentum: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        self.buffers = ("velocity",) if momentum else ()
        super().__init__(params, lr=lr, weight_decay=weight_decay, momentum=momentum)

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        if not 0 <= group["momentum"] < 1:
            raise ValueError(f"momentum must be in [0, 1), got {group['momentum']}")
        if group["momentum"] and not self.buffers:
            raise ValueError("momentum of a group needs an optimizer that was made with momentum")

    def update(
        self, data: Array, grad: Array, scratch: Array, group: dict[str, Any], velocity: Array | None = None, **_: Array
    ) -> None:
        decay = group["weight_decay"]
        if decay:
            np.multiply(data, decay, out=scratch)
            scratch += grad
            grad = scratch
        if velocity is not None:
            velocity *= group["momentum"]
            velocity += grad
            grad = velocity
        np.multiply(grad, group["lr"], out=scratch)
        data -= scratch
