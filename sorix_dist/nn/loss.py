"""Losses as layers, called with predictions and targets. Formulas are those of their functions, in `nn.functional`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar
from zlib import crc32

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.arguments import int_or_none
from sorix_dist.core.fingerprint import array_as_text, criterion_hook
from sorix_dist.core.graph import Node
from sorix_dist.core.tensor import as_array
from sorix_dist.nn.functional import distance
from sorix_dist.nn.functional import loss as F
from sorix_dist.nn.module import options_of
from sorix_dist.nn.net import FunctionLayer

__all__ = [
    "BCELoss", "BCEWithLogitsLoss", "CosineEmbeddingLoss", "CrossEntropyLoss", "GaussianNLLLoss", "HingeEmbeddingLoss",
    "HuberLoss", "KLDivLoss", "L1Loss", "MSELoss", "MarginRankingLoss", "MultiLabelSoftMarginLoss", "MultiMarginLoss",
    "NLLLoss", "PoissonNLLLoss", "SmoothL1Loss", "SoftMarginLoss", "TripletMarginLoss",
]  # fmt: skip


class _Loss(FunctionLayer):
    """Attaches the options of a criterion to its results, so that a backward from them can compare the ranks'."""

    __slots__ = ("_hook",)  # not among the attributes, which are compared and saved

    _hook: Callable[[Any], None]

    inputs = 2
    _of_rows: ClassVar[tuple[str, ...]] = ()  # arrays that may belong to this rank's rows

    reductions: ClassVar[tuple[str, ...]] = F.REDUCTIONS

    def _complete(self) -> None:
        numbers = {name: getattr(self, name) for name in F.BOUNDS if name in self._options}
        F.check_options(type(self).__name__, self.reduction, self.reductions, **numbers)

    def _weights(self, name: str, value: Any) -> None:
        """Makes factors for classes a buffer: `double()` and its like convert it, states have it."""
        value = value if value is None or isinstance(value, Tensor) else np.asarray(value)
        self.register_buffer(name, None if value is None else as_array(value, name=f"{type(self).__name__}: {name}"))

    def forward(self, *inputs: Any) -> Tensor:
        options = dict(zip(self._options, map(partial(getattr, self), self._options)))  # without a call of Python's
        return self.function(*inputs, **options)

    def extra_repr(self) -> str:
        return ""

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        named = [options.pop(name) for name in ("input", "target") if name in options] if options else ()
        loss = super().__call__(*inputs, *named, **options)
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


class CrossEntropyLoss(_Loss, function=F.cross_entropy):
    """The cross-entropy of raw scores (N, C) or (N, C, d...) against classes, by an exact log-sum-exp.

    Targets are class indices (N) or (N, d...), or probabilities of the scores' shape (floats, or `one_hot`).
    weight: a factor for each class; ignore_index: a label that does not count (none by default; PyTorch's is -100);
    label_smoothing: this share of the target is spread evenly over the classes. The mean is that over the global
    batch; of no rows (an empty shard), or where nothing counts, it is 0.
    """

    def __init__(
        self,
        weight: Any = None,
        one_hot: bool = False,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        self.reduction, self.label_smoothing, self.one_hot = reduction, label_smoothing, one_hot
        self._complete()
        self._weights("weight", weight)
        self.ignore_index = int_or_none("CrossEntropyLoss: ignore_index", ignore_index)


class NLLLoss(_Loss, function=F.nll_loss):
    def __init__(self, weight: Any = None, ignore_index: int | None = None, reduction: str = "mean") -> None:
        self.reduction = reduction
        self._complete()
        self._weights("weight", weight)
        self.ignore_index = int_or_none("NLLLoss: ignore_index", ignore_index)


class MSELoss(_Loss, function=F.mse_loss): ...


class L1Loss(_Loss, function=F.l1_loss): ...


class SmoothL1Loss(_Loss, function=F.smooth_l1_loss): ...


class HuberLoss(_Loss, function=F.huber_loss): ...


class BCELoss(_Loss, function=F.binary_cross_entropy):
    """The cross-entropy of probabilities of yes in [0, 1]; BCEWithLogitsLoss is exact and takes raw scores."""

    _of_rows = ("weight",)


class BCEWithLogitsLoss(_Loss, function=F.binary_cross_entropy_with_logits):
    """The cross-entropy of yes and no from raw scores; pos_weight: factors for what is yes."""

    _of_rows = ("weight",)

    def __init__(self, weight: Any = None, reduction: str = "mean", pos_weight: Any = None) -> None:
        self.weight, self.reduction = weight, reduction
        self._complete()
        self._weights("pos_weight", pos_weight)


class KLDivLoss(_Loss, function=F.kl_div):
    reductions = (*F.REDUCTIONS, "batchmean")


class TripletMarginLoss(_Loss, function=distance.triplet_margin_loss, inputs=3): ...


class MarginRankingLoss(_Loss, function=distance.margin_ranking_loss, inputs=3): ...


class CosineEmbeddingLoss(_Loss, function=distance.cosine_embedding_loss, inputs=3): ...


class GaussianNLLLoss(_Loss, function=distance.gaussian_nll_loss, inputs=3): ...


class SoftMarginLoss(_Loss, function=distance.soft_margin_loss): ...


class HingeEmbeddingLoss(_Loss, function=distance.hinge_embedding_loss): ...


class PoissonNLLLoss(_Loss, function=distance.poisson_nll_loss): ...


class _WeightedClasses(_Loss):
    def _complete(self) -> None:
        super()._complete()
        self._weights("weight", self.__dict__.pop("weight"))


class MultiLabelSoftMarginLoss(_WeightedClasses, function=distance.multilabel_soft_margin_loss): ...


class MultiMarginLoss(_WeightedClasses, function=distance.multi_margin_loss): ...
