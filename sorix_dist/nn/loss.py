"""Losses as layers, called with predictions and what is true; see `nn.functional.loss` for their means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar
from zlib import crc32

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.fingerprint import array_as_text, criterion_hook
from sorix_dist.core.graph import Node
from sorix_dist.nn import functional as F
from sorix_dist.nn.functional.loss import REDUCTIONS
from sorix_dist.nn.module import Module, options_of


class _Loss(Module):
    """Says to a backward that comes through its results by which options they were computed."""

    __slots__ = ("_hook",)  # not among the attributes, which are compared and saved

    _hook: Callable[[Any], None]

    _reductions: tuple[str, ...] = REDUCTIONS
    _of_rows: ClassVar[tuple[str, ...]] = ()  # arrays that may belong to this rank's rows

    def __init__(self, reduction: str = "mean") -> None:
        if reduction not in self._reductions:
            allowed = ", ".join(map(repr, self._reductions))
            raise ValueError(f"{type(self).__name__}: reduction must be one of {allowed}, got {reduction!r}")
        self.reduction = reduction

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        loss = self.forward(*inputs, **options)
        origin = getattr(loss, "origin", None)
        if isinstance(origin, Node):
            try:
                hook = self._hook
            except AttributeError:
                hook = criterion_hook(self.fingerprint(), self)
                object.__setattr__(self, "_hook", hook)
            if origin.hooks is None:
                origin.hooks = [hook]
            else:
                origin.hooks.append(hook)
        return loss

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if hasattr(self, "_hook"):
            object.__delattr__(self, "_hook")

    def __getstate__(self) -> dict[str, Any]:
        return vars(self)

    def fingerprint(self) -> int:
        """A digest of the class and the options."""
        return crc32(self.describe().encode())

    def describe(self) -> str:
        """The class and the options."""
        arrays = {k: array_as_text(v) for k, v in vars(self).items() if isinstance(v, Tensor | np.ndarray)}
        found = {**options_of(self), **arrays}
        options = ", ".join(f"{name}={found[name]}" for name in sorted(found) if name not in self._of_rows)
        return f"{type(self).__name__}({options})"


class CrossEntropyLoss(_Loss):
    """The cross-entropy of raw scores (N, C) or (N, C, d...) against classes, by an exact log-sum-exp.

    Targets are class indices (N) or (N, d...), or probabilities of the scores' shape (floats, or `one_hot`).
    weight: a factor for each class; ignore_index: a label that does not count; label_smoothing: this part of
    the target is spread evenly over the classes. The mean is that over the rows given; of no rows (an empty
    shard), or where nothing counts, it is 0.
    """

    def __init__(
        self,
        weight: Any = None,
        one_hot: bool = False,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"CrossEntropyLoss: label_smoothing must be in [0, 1], got {label_smoothing}")
        self.weight = weight
        self.one_hot = one_hot
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    def forward(self, y_pred: Any, y_real: Any) -> Tensor:
        return F.cross_entropy(
            y_pred,
            y_real,
            self.weight,
            one_hot=self.one_hot,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
        )


class NLLLoss(_Loss):
    """Minus the logarithm of the probability of the true class, from logarithms (N, C) or (N, C, d...)."""

    def __init__(self, weight: Any = None, ignore_index: int | None = None, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.weight = weight
        self.ignore_index = ignore_index

    def forward(self, y_pred: Any, y_real: Any) -> Tensor:
        return F.nll_loss(y_pred, y_real, self.weight, ignore_index=self.ignore_index, reduction=self.reduction)


class MSELoss(_Loss):
    """The mean of (y_pred - y_real)^2."""

    def forward(self, y_pred: Any, y_real: Any) -> Tensor:
        return F.mse_loss(y_pred, y_real, self.reduction)


class L1Loss(_Loss):
    """The mean of |y_pred - y_real|."""

    def forward(self, y_pred: Any, y_real: Any) -> Tensor:
        return F.l1_loss(y_pred, y_real, self.reduction)


class SmoothL1Loss(_Loss):
    """Squared differences below `beta`, absolute ones above; see `F.smooth_l1_loss`."""

    def __init__(self, reduction: str = "mean", beta: float = 1.0) -> None:
        super().__init__(reduction)
        if not beta >= 0:
            raise ValueError(f"SmoothL1Loss: beta must be >= 0, got {beta}")
        self.beta = beta

    def forward(self, y_pred: Any, y_real: Any) -> Tensor:
        return F.smooth_l1_loss(y_pred, y_real, self.reduction, self.beta)


class HuberLoss(_Loss):
    """Squared differences below `delta`, absolute ones above; see `F.huber_loss`."""

    def __init__(self, reduction: str = "mean", delta: float = 1.0) -> None:
        super().__init__(reduction)
        if not delta > 0:
            raise ValueError(f"HuberLoss: delta must be > 0, got {delta}")
        self.delta = delta

    def forward(self, y_pred: Any, y_real: Any) -> Tensor:
        return F.huber_loss(y_pred, y_real, self.reduction, self.delta)


class BCELoss(_Loss):
    """The cross-entropy of probabilities of yes in [0, 1]; BCEWithLogitsLoss is exact and takes raw scores."""

    _of_rows = ("weight",)

    def __init__(self, weight: Any = None, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.weight = weight

    def forward(self, y_pred: Any, y_real: Any) -> Tensor:
        return F.binary_cross_entropy(y_pred, y_real, self.weight, self.reduction)


class BCEWithLogitsLoss(_Loss):
    """The cross-entropy of yes and no from raw scores; pos_weight: factors for what is yes."""

    _of_rows = ("weight",)

    def __init__(self, weight: Any = None, reduction: str = "mean", pos_weight: Any = None) -> None:
        super().__init__(reduction)
        self.weight = weight
        self.pos_weight = pos_weight

    def forward(self, y_pred: Any, y_real: Any) -> Tensor:
        return F.binary_cross_entropy_with_logits(y_pred, y_real, self.weight, self.reduction, self.pos_weight)


class KLDivLoss(_Loss):
    """The divergence of logarithms of probabilities from a target; see `F.kl_div` for "batchmean"."""

    _reductions = (*REDUCTIONS, "batchmean")

    def __init__(self, reduction: str = "mean", log_target: bool = False) -> None:
        super().__init__(reduction)
        self.log_target = log_target

    def forward(self, y_pred: Any, y_real: Any) -> Tensor:
        return F.kl_div(y_pred, y_real, self.reduction, self.log_target)
