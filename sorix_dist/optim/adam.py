"""Adam and its relatives: they average the gradient, and divide it by an average of its size.

Options, defaults and formulas are those of PyTorch's documentation (`torch.optim`).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from math import sqrt
from types import MappingProxyType
from typing import Any

import numpy as np

from sorix_dist.core.arguments import in_range, two_numbers
from sorix_dist.core.memory import scalar
from sorix_dist.core.tensor import Array
from sorix_dist.optim.optimizer import Group, Optimizer, descent
from sorix_dist.optim.state import Buffers, Scratch


def average_into(average: Array, value: Array, decay: float, spare: Array) -> None:
    """average = decay average + (1 - decay) value, in place; `value` may be `spare`."""
    kept, added = _shares(decay, spare.dtype)
    np.multiply(value, added, spare)
    average *= kept
    average += spare


@lru_cache(maxsize=64)
def _shares(decay: float, dtype: Any) -> tuple[Array, Array]:
    return scalar(decay, dtype), scalar(1 - decay, dtype)


class _Adam(Optimizer):
    """Averages m of the gradient and v of its square; betas: how much of them remains in a step."""

    scratch_arrays = 2
    bounds = MappingProxyType({"eps": (0,)})
    second = "exp_avg_sq"  # PyTorch's name of v

    def check(self, group: Group) -> None:
        super().check(group)
        for i, beta in enumerate(two_numbers("betas", group["betas"])):
            in_range(f"betas[{i}]", beta, 0, 1)

    def buffers(self, group: Group) -> tuple[str, ...]:
        return ("exp_avg", self.second)

    def _average_moments(self, grad: Array, buffers: Buffers, spare: Array, group: Group) -> None:
        beta1, beta2 = map(float, group["betas"])
        average_into(buffers["exp_avg"], grad, beta1, spare)
        average_into(buffers["exp_avg_sq"], np.multiply(grad, grad, spare), beta2, spare)


class Adam(_Adam):
    """Adam (Kingma and Ba 2015): m and v average g and its square; w = w - lr m' / (sqrt(v') + eps).

    betas: how much of m and of v remains in a step; m' = m / (1 - betas[0]^t) and v' likewise.
    amsgrad: v' takes the largest v so far (Reddi et al. 2018).
    """

    decoupled = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        **ignored: Any,
    ) -> None:
        options = {"betas": betas, "eps": eps, "amsgrad": amsgrad}
        super().__init__(params, lr, weight_decay, ignored=ignored, **options, maximize=maximize)

    def buffers(self, group: Group) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if group["amsgrad"] else ("exp_avg", "exp_avg_sq")

    def update(self, data: Array, grad: Array, buffers: Buffers, scratch: Scratch, group: Group, step: int) -> None:
        spare, decayed = scratch
        lr, eps = float(group["lr"]), float(group["eps"])
        beta1, beta2 = map(float, group["betas"])
        grad = descent(data, grad, decayed, group, self.decoupled)
        self._average_moments(grad, buffers, spare, group)
        square = buffers["exp_avg_sq"]
        if "max_exp_avg_sq" in buffers:
            square = np.maximum(buffers["max_exp_avg_sq"], square, out=buffers["max_exp_avg_sq"])
        # lr (m / c1) / (sqrt(v / c2) + eps) with both corrections taken out of the arrays: one pass less.
        correction = sqrt(1 - beta2**step)
        np.sqrt(square, spare)
        spare += np.array(eps * correction, spare.dtype)  # see `scalar`
        np.divide(buffers["exp_avg"], spare, spare)
        spare *= np.array(lr * correction / (1 - beta1**step), spare.dtype)
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
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        **ignored: Any,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, **ignored)


class Adamax(_Adam):
    """Adam with the largest gradient instead of the mean square (Kingma and Ba 2015, section 7.1)."""

    second = "exp_inf"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        **ignored: Any,
    ) -> None:
        super().__init__(params, lr, weight_decay, ignored=ignored, betas=betas, eps=eps, maximize=maximize)

    def update(self, data: Array, grad: Array, buffers: Buffers, scratch: Scratch, group: Group, step: int) -> None:
        spare, decayed = scratch
        beta1, beta2 = map(float, group["betas"])
        exp_avg, exp_inf = buffers["exp_avg"], buffers["exp_inf"]
        grad = descent(data, grad, decayed, group)
        average_into(exp_avg, grad, beta1, spare)
        np.abs(grad, out=spare)
        spare += float(group["eps"])
        exp_inf *= beta2
        np.maximum(exp_inf, spare, out=exp_inf)
        np.divide(exp_avg, exp_inf, out=spare)
        spare *= float(group["lr"]) / (1 - beta1**step)
        data -= spare


class NAdam(_Adam):
    """Adam with Nesterov's momentum (Dozat 2016); momentum_decay: how fast the momentum grows to betas[0]."""

    bounds = MappingProxyType({"eps": (0,), "momentum_decay": (0,)})

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        **ignored: Any,
    ) -> None:
        options = {"momentum_decay": momentum_decay, "decoupled_weight_decay": decoupled_weight_decay}
        super().__init__(params, lr, weight_decay, ignored=ignored, betas=betas, eps=eps, **options, maximize=maximize)
        self._product: tuple[tuple[float, float], int, float] = (0.0, 0.0), 0, 1.0

    def update(self, data: Array, grad: Array, buffers: Buffers, scratch: Scratch, group: Group, step: int) -> None:
        spare, decayed = scratch
        lr, eps, beta2 = float(group["lr"]), float(group["eps"]), float(group["betas"][1])
        grad = descent(data, grad, decayed, group, group["decoupled_weight_decay"])
        self._average_moments(grad, buffers, spare, group)
        momentum, following = self._momentum(group, step), self._momentum(group, step + 1)
        product = self._momentum_product(group, step)
        np.divide(buffers["exp_avg_sq"], 1 - beta2**step, out=spare)
        np.sqrt(spare, out=spare)
        spare += eps
        np.multiply(grad, lr * (1 - momentum) / (1 - product), out=decayed)
        decayed /= spare
        data -= decayed
        np.divide(buffers["exp_avg"], spare, out=spare)
        spare *= lr * following / (1 - product * following)
        data -= spare

    def _momentum(self, group: Group, step: int) -> float:
        return float(group["betas"][0]) * (1 - 0.5 * 0.96 ** (step * float(group["momentum_decay"])))

    def _momentum_product(self, group: Group, step: int) -> float:
        """The product of the momenta of all steps up to this one, found from that of the step before if it is known."""
        options = float(group["betas"][0]), float(group["momentum_decay"])
        known, last, product = self._product
        if known != options or last > step:
            last, product = 0, 1.0
        for each in range(last + 1, step + 1):
            product = float(np.float32(product) * np.float32(self._momentum(group, each)))  # as PyTorch rounds it
        self._product = options, step, product
        return product


class RAdam(_Adam):
    """Adam that divides by the root of v only where the variance of that is known well enough (Liu et al. 2020)."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        **ignored: Any,
    ) -> None:
        options = {"decoupled_weight_decay": decoupled_weight_decay}
        super().__init__(params, lr, weight_decay, ignored=ignored, betas=betas, eps=eps, **options, maximize=maximize)

    def update(self, data: Array, grad: Array, buffers: Buffers, scratch: Scratch, group: Group, step: int) -> None:
        spare, decayed = scratch
        lr, eps = float(group["lr"]), float(group["eps"])
        beta1, beta2 = map(float, group["betas"])
        grad = descent(data, grad, decayed, group, group["decoupled_weight_decay"])
        self._average_moments(grad, buffers, spare, group)
        correction = 1 - beta2**step
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * step * beta2**step / correction
        if length > 5:
            rectified = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
            np.sqrt(buffers["exp_avg_sq"], out=spare)
            spare += eps
            np.divide(buffers["exp_avg"], spare, out=spare)
            spare *= lr * sqrt(correction * rectified) / (1 - beta1**step)
        else:
            np.multiply(buffers["exp_avg"], lr / (1 - beta1**step), out=spare)
        data -= spare
