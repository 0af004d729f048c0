"""Distances between vectors, and losses of them and of distributions, with the formulas of PyTorch's documentation.

`reduction` is "mean" (over the global batch), "sum" or "none".
"""

from __future__ import annotations

from math import inf, log, pi
from typing import Any

import numpy as np

from sorix_dist.core import Tensor, as_tensor
from sorix_dist.core.algebra import in_one_dtype
from sorix_dist.core.arrange import broadcast_tensors
from sorix_dist.core.ops.choose import minimum, where
from sorix_dist.core.ops.indexing import one_hot
from sorix_dist.core.ops.shape import extents
from sorix_dist.nn.functional.activation import softplus
from sorix_dist.nn.functional.loss import reduced

__all__ = [
    "cosine_embedding_loss", "cosine_similarity", "gaussian_nll_loss", "hinge_embedding_loss", "margin_ranking_loss",
    "multi_margin_loss", "multilabel_soft_margin_loss", "normalize", "pairwise_distance", "poisson_nll_loss",
    "soft_margin_loss", "triplet_margin_loss",
]  # fmt: skip


def _tensors(first: Any, *others: Any) -> list[Tensor]:
    """The inputs as tensors, arrays among the others in the dtype of the first."""
    x = as_tensor(first)
    kind = x.array.dtype if x.array.dtype.kind == "f" else None
    return [x, *(y if isinstance(y, Tensor) else Tensor(np.asarray(y, kind)) for y in others)]


def normalize(input: Any, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
    """input / max(norm, eps), with the p-norm along `dim`."""
    (x,) = _tensors(input)
    return x / x.norm(p, dim, keepdim=True).clamp(eps)


def cosine_similarity(x1: Any, x2: Any, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """x1 · x2 / (max(|x1|, eps) max(|x2|, eps)) along `dim`; x1 and x2 broadcast."""
    x, y = in_one_dtype(*_tensors(x1, x2), to_float=True)
    at = dim if dim < 0 else dim - max(x.ndim, y.ndim)
    if len({extents(each)[at:][:1] for each in (x, y)}) > 1:  # then one is repeated along `dim`
        x, y = broadcast_tensors(x, y)
    return (normalize(x, dim=at, eps=eps) * normalize(y, dim=at, eps=eps)).sum(at)


def pairwise_distance(x1: Any, x2: Any, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Tensor:
    """The p-norm of x1 - x2 + eps along the last dimension."""
    x, y = _tensors(x1, x2)
    return (x - y + eps).norm(p, -1, keepdim=keepdim)


def triplet_margin_loss(
    anchor: Any,
    positive: Any,
    negative: Any,
    margin: float = 1.0,
    p: float = 2.0,
    eps: float = 1e-6,
    swap: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """max(d(anchor, positive) - d(anchor, negative) + margin, 0) with d the `pairwise_distance` (Balntas et al. 2016).

    anchor, positive, negative: (N, D) or (D,). swap: takes d(positive, negative) where that is less than
    d(anchor, negative).
    """
    a, close, far = _tensors(anchor, positive, negative)
    negative_distance = pairwise_distance(a, far, p, eps)
    if swap:
        negative_distance = minimum(negative_distance, pairwise_distance(close, far, p, eps))
    losses = (pairwise_distance(a, close, p, eps) - negative_distance + margin).clamp(0)
    return reduced("triplet_margin_loss", losses, reduction)


def margin_ranking_loss(input1: Any, input2: Any, target: Any, margin: float = 0.0, reduction: str = "mean") -> Tensor:
    """max(-target * (input1 - input2) + margin, 0); target: 1 where input1 should be larger, -1 where input2 should."""
    x, y, sign = _tensors(input1, input2, target)
    return reduced("margin_ranking_loss", (-sign * (x - y) + margin).clamp(0), reduction)


def cosine_embedding_loss(
    input1: Any, input2: Any, target: Any, margin: float = 0.0, reduction: str = "mean"
) -> Tensor:
    """1 - cos(input1, input2) where target is 1, max(cos(input1, input2) - margin, 0) where it is -1.

    input1, input2: (N, D) or (D,); target: (N,) or ().
    """
    x, y, label = _tensors(input1, input2, target)
    lengths = ((x * x).sum(-1) + 1e-12) * ((y * y).sum(-1) + 1e-12)
    cosine = (x * y).sum(-1) / lengths.sqrt()
    losses = where(label == 1, 1 - cosine, where(label == -1, (cosine - margin).clamp(0), 0.0))
    return reduced("cosine_embedding_loss", losses, reduction)


def gaussian_nll_loss(
    input: Any, target: Any, var: Any, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Tensor:
    """(log(var) + (input - target)² / var) / 2 with var at least eps (Nix and Weigend 1994).

    var: as input, with a last dimension of 1, or without the last dimension. full: adds log(2 pi) / 2.
    ValueError if var is negative anywhere.
    """
    x, y, variance = _tensors(input, target, var)
    if variance.array.size and variance.array.min() < 0:
        raise ValueError(f"gaussian_nll_loss: var must be >= 0, got {variance.array.min()}")
    if variance.ndim == x.ndim - 1 and variance.ndim:
        variance = variance.unsqueeze(-1)
    variance = variance + (variance.clamp(eps) - variance).detach()  # a gradient where it is clamped, too
    losses = (variance.log() + (x - y).square() / variance) * 0.5
    return reduced("gaussian_nll_loss", losses + 0.5 * log(2 * pi) if full else losses, reduction)


def soft_margin_loss(input: Any, target: Any, reduction: str = "mean") -> Tensor:
    """log(1 + exp(-target * input)); target: 1 or -1."""
    x, sign = _tensors(input, target)
    return reduced("soft_margin_loss", softplus(-sign * x, threshold=inf), reduction)


def hinge_embedding_loss(input: Any, target: Any, margin: float = 1.0, reduction: str = "mean") -> Tensor:
    """input where target is 1, max(margin - input, 0) where it is -1."""
    x, label = _tensors(input, target)
    losses = where(label != 1, (margin - x).clamp(0), 0.0) + where(label != -1, x, 0.0)
    return reduced("hinge_embedding_loss", losses, reduction)


def multilabel_soft_margin_loss(input: Any, target: Any, weight: Any = None, reduction: str = "mean") -> Tensor:
    """The mean over classes, the last dimension, of the cross-entropy of yes (1) and no (0) from raw scores."""
    x, y = _tensors(input, target)
    losses = softplus(x, threshold=inf) - y * x
    losses = losses if weight is None else losses * as_tensor(weight).astype(x.dtype)
    return reduced("multilabel_soft_margin_loss", losses.mean(-1), reduction)


def multi_margin_loss(
    input: Any, target: Any, p: int = 1, margin: float = 1.0, weight: Any = None, reduction: str = "mean"
) -> Tensor:
    """The mean over the classes of max(margin - x[target] + x, 0)^p, without that of the target itself.

    input: (N, C) or (C,); target: classes (N,) or (); p: 1 or 2; weight: a factor for each class, that of the target.
    """
    if p not in (1, 2):
        raise ValueError(f"multi_margin_loss: p must be 1 or 2, got {p!r}")
    (x,) = _tensors(input)
    own = one_hot(target, x.shape[-1]) > 0
    losses = where(own, 0.0, (margin - where(own, x, 0.0).sum(-1, keepdim=True) + x).clamp(0) ** p)
    if weight is not None:
        losses = losses * where(own, as_tensor(weight).astype(x.dtype), 0.0).sum(-1, keepdim=True)
    return reduced("multi_margin_loss", losses.mean(-1), reduction)


def poisson_nll_loss(
    input: Any, target: Any, log_input: bool = True, full: bool = False, *, eps: float = 1e-8, reduction: str = "mean"
) -> Tensor:
    """exp(input) - target * input or, if not `log_input`, input - target * log(input + eps).

    full: adds Stirling's formula for log(target!), where target > 1.
    """
    x, y = _tensors(input, target)
    losses = x.exp() - y * x if log_input else x - y * (x + eps).log()
    if full:
        count = where(y > 1, y, 1.0)
        losses = losses + where(y > 1, count * count.log() - count + (count * (2 * pi)).log() * 0.5, 0.0)
    return reduced("poisson_nll_loss", losses, reduction)
