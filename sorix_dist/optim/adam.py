"""Adam, and Adam with decoupled weight decay."""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt
from typing import Any

import numpy as np

from sorix_dist.core.tensor import Array
from sorix_dist.optim.optimizer import Group, Optimizer, at_least_zero, in_range
from sorix_dist.optim.state import Buffers, Scratch


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015): m and v average g and its square; w = w - lr m' / (sqrt(v') + eps).

    betas: how much of m and of v is kept in a step; m' = m / (1 - betas[0]^t) and v' likewise.
    weight_decay: adds weight_decay w to the gradient g.
    """

    scratch_arrays = 2
    decoupled = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr, weight_decay, betas=betas, eps=eps)

    def check(self, group: Group) -> None:
        super().check(group)
        at_least_zero(group, "eps")
        betas = group["betas"]
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise ValueError(f"betas must be two numbers, got {betas!r}")
        for i, beta in enumerate(betas):
            in_range({f"betas[{i}]": beta}, f"betas[{i}]", 0, 1)

    def buffers(self, group: Group) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def update(self, data: Array, grad: Array, buffers: Buffers, scratch: Scratch, group: Group, step: int) -> None:
        spare, decayed = scratch
        exp_avg, exp_avg_sq = buffers["exp_avg"], buffers["exp_avg_sq"]
        lr, eps, decay = float(group["lr"]), float(group["eps"]), float(group["weight_decay"])
        beta1, beta2 = map(float, group["betas"])
        if decay and self.decoupled:
            data *= 1 - lr * decay
        elif decay:
            np.multiply(data, decay, out=decayed)
            decayed += grad
            grad = decayed
        np.multiply(grad, 1 - beta1, out=spare)
        exp_avg *= beta1
        exp_avg += spare
        np.multiply(grad, grad, out=spare)
        spare *= 1 - beta2
        exp_avg_sq *= beta2
        exp_avg_sq += spare
        # lr (m / c1) / (sqrt(v / c2) + eps) with both corrections taken out of the arrays: one pass less.
        correction = sqrt(1 - beta2**step)
        np.sqrt(exp_avg_sq, out=spare)
        spare += eps * correction
        np.divide(exp_avg, spare, out=spare)
        spare *= lr * correction / (1 - beta1**step)
        data -= spare


class AdamW(Adam):
    """Adam with decoupled decay (Loshchilov and Hutter 2019): first w shrinks by lr weight_decay w."""

    decoupled = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)
