"""SGDMomentum, optimizers with a rate for each number of a parameter, and the names of all: see `sgd` and `adam`."""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType
from typing import Any

import numpy as np

from sorix_dist.core.arguments import in_range, two_numbers
from sorix_dist.core.tensor import Array
from sorix_dist.optim import lr_scheduler
from sorix_dist.optim.adam import Adam, Adamax, AdamW, NAdam, RAdam, average_into
from sorix_dist.optim.optimizer import Group, Optimizer, descent
from sorix_dist.optim.sgd import SGD
from sorix_dist.optim.state import Buffers, Scratch

__all__ = [
    "SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "Optimizer", "RAdam", "RMSprop", "Rprop",
    "SGDMomentum", "lr_scheduler",
]  # fmt: skip


class SGDMomentum(SGD):
    """SGD with a momentum of 0.9 by default."""

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, lr, momentum, weight_decay=weight_decay)


class Adagrad(Optimizer):
    """Gradients divided by the root of the sum of their squares (Duchi et al. 2011): w = w - lr' g / (sqrt(s) + eps).

    lr' = lr / (1 + (t - 1) lr_decay) in step t; s starts at initial_accumulator_value.
    """

    scratch_arrays = 2
    bounds = MappingProxyType({"lr_decay": (0,), "initial_accumulator_value": (0,), "eps": (0,)})

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
        **ignored: Any,
    ) -> None:
        options = {"lr_decay": lr_decay, "eps": eps, "initial_accumulator_value": initial_accumulator_value}
        super().__init__(params, lr, weight_decay, ignored=ignored, **options, maximize=maximize)

    def buffers(self, group: Group) -> tuple[str, ...]:
        return ("sum",)

    def update(self, data: Array, grad: Array, buffers: Buffers, scratch: Scratch, group: Group, step: int) -> None:
        spare, decayed = scratch
        grad = descent(data, grad, decayed, group)
        total = buffers["sum"]
        if step == 1:
            total += float(group["initial_accumulator_value"])
        total += np.multiply(grad, grad, out=spare)
        np.sqrt(total, out=spare)
        spare += float(group["eps"])
        np.divide(grad, spare, out=spare)
        spare *= float(group["lr"]) / (1 + (step - 1) * float(group["lr_decay"]))
        data -= spare


class RMSprop(Optimizer):
    """Gradients divided by the root of their averaged square (Hinton 2012): w = w - lr g / (sqrt(v) + eps).

    alpha: how much of the average v remains in a step; `decay` is another name for it, and wins if given.
    momentum: steps along u = momentum u + g / (sqrt(v) + eps).
    centered: divides by the deviation from the averaged gradient instead (Graves 2013).
    """

    scratch_arrays = 2
    bounds = MappingProxyType({"alpha": (0, 1), "eps": (0,), "momentum": (0, 1)})

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        decay: float | None = None,
        maximize: bool = False,
        **ignored: Any,
    ) -> None:
        alpha = alpha if decay is None else decay
        options = {"alpha": alpha, "eps": eps, "momentum": momentum, "centered": centered}
        super().__init__(params, lr, weight_decay, ignored=ignored, **options, maximize=maximize)

    def buffers(self, group: Group) -> tuple[str, ...]:
        average = ("grad_avg",) if group["centered"] else ()
        return ("square_avg", *average, *(("momentum_buffer",) if group["momentum"] else ()))

    def update(self, data: Array, grad: Array, buffers: Buffers, scratch: Scratch, group: Group, step: int) -> None:
        spare, decayed = scratch
        square_avg, grad_avg = buffers["square_avg"], buffers.get("grad_avg")
        lr, eps, alpha = (float(group[name]) for name in ("lr", "eps", "alpha"))
        grad = descent(data, grad, decayed, group)
        average_into(square_avg, np.multiply(grad, grad, out=spare), alpha, spare)
        if grad_avg is None:
            np.sqrt(square_avg, out=spare)
        else:
            average_into(grad_avg, grad, alpha, spare)
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


class Adadelta(Optimizer):
    """Gradients in units of the parameters (Zeiler 2012): w = w - lr d with d = sqrt(u + eps) / sqrt(v + eps) g.

    v and u average the squares of g and of d; rho: how much of them remains in a step.
    """

    scratch_arrays = 2
    bounds = MappingProxyType({"eps": (0,)})

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        **ignored: Any,
    ) -> None:
        super().__init__(params, lr, weight_decay, ignored=ignored, rho=rho, eps=eps, maximize=maximize)

    def check(self, group: Group) -> None:
        super().check(group)
        in_range("rho", group["rho"], 0, 1, closed=True)

    def buffers(self, group: Group) -> tuple[str, ...]:
        return ("square_avg", "acc_delta")

    def update(self, data: Array, grad: Array, buffers: Buffers, scratch: Scratch, group: Group, step: int) -> None:
        spare, delta = scratch
        rho, eps = float(group["rho"]), float(group["eps"])
        grad = descent(data, grad, delta, group)
        average_into(buffers["square_avg"], np.multiply(grad, grad, out=spare), rho, spare)
        np.add(buffers["square_avg"], eps, out=spare)
        np.divide(grad, np.sqrt(spare, out=spare), out=delta)
        np.add(buffers["acc_delta"], eps, out=spare)
        delta *= np.sqrt(spare, out=spare)
        average_into(buffers["acc_delta"], np.multiply(delta, delta, out=spare), rho, spare)
        delta *= float(group["lr"])
        data -= delta


class Rprop(Optimizer):
    """Steps by the sign of the gradient alone (Riedmiller and Braun 1993), each of a size of its own, lr at first.

    etas: the size times the first where the sign has changed, where the parameter waits, and times the second where it
    has not; step_sizes: the least and the largest.
    """

    scratch_arrays = 3

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50.0),
        *,
        maximize: bool = False,
        **ignored: Any,
    ) -> None:
        super().__init__(params, lr, ignored=ignored, etas=etas, step_sizes=step_sizes, maximize=maximize)

    def check(self, group: Group) -> None:
        super().check(group)
        down, up = two_numbers("etas", group["etas"])
        in_range("etas[0]", down, 0, 1, above=True)
        in_range("etas[1]", up, 1, above=True)
        least, most = two_numbers("step_sizes", group["step_sizes"])
        in_range("step_sizes[0]", least, 0)
        in_range("step_sizes[1]", most, least)

    def buffers(self, group: Group) -> tuple[str, ...]:
        return ("prev", "step_size")

    def update(self, data: Array, grad: Array, buffers: Buffers, scratch: Scratch, group: Group, step: int) -> None:
        spare, masked, flags = scratch
        flags = flags.view(np.bool_)[: spare.size].reshape(spare.shape)
        previous, size = buffers["prev"], buffers["step_size"]
        if step == 1:
            size[...] = group["lr"]
        grad = descent(data, grad, masked, group)
        np.multiply(grad, previous, out=spare)
        for sign, factor in zip((np.less, np.greater), group["etas"], strict=True):
            np.multiply(size, factor, out=size, where=sign(spare, 0, out=flags))
        np.clip(size, *group["step_sizes"], out=size)
        np.copyto(previous, grad)
        np.copyto(previous, 0, where=np.less(spare, 0, out=flags))
        np.sign(previous, out=spare)
        spare *= size
        data -= spare
