"""The optimizers."""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt
from typing import Any

import numpy as np

from sorix_dist.core.arguments import in_range
from sorix_dist.core.tensor import Array
from sorix_dist.optim import lr_scheduler
from sorix_dist.optim.optimizer import Group, Optimizer
from sorix_dist.optim.state import Buffers, Scratch

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "RMSprop", "SGDMomentum", "lr_scheduler"]


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
        in_range("momentum", group["momentum"], 0, 1)
        in_range("dampening", group["dampening"], 0, 1)
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
        in_range("eps", group["eps"], 0)
        in_range("alpha", group["alpha"], 0, 1)
        in_range("momentum", group["momentum"], 0, 1)

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
        in_range("eps", group["eps"], 0)
        betas = group["betas"]
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise ValueError(f"betas must be two numbers, got {betas!r}")
        for i, beta in enumerate(betas):
            in_range(f"betas[{i}]", beta, 0, 1)

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
