"""Losses as functions: they check what they are given and reduce to a mean or sum.

A mean is taken over the global batch; it is 0 if nothing counts. Until `backward()` a rank shows the mean over its own
rows. If rows count differently (class weights, ignored labels), the ranks sum their counts by a small all-reduce.
`reduction` is "mean", "sum" or "none" (a loss for every row or element); "mean" and "sum" give a tensor of shape ().
Losses of classes take scores (N, C) or (N, C, d...), or one sample, scores (C,) and a target of shape (). The others
take an input and a target of one shape, which "none" keeps. An error names the argument that does not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.arguments import in_range, one_of
from sorix_dist.core.capture import host, listening, recorders
from sorix_dist.core.graph import recording
from sorix_dist.core.op import as_operand
from sorix_dist.core.ops import loss as ops
from sorix_dist.core.ops.axes import broadcasts_to
from sorix_dist.core.ops.elementwise import cast, mul
from sorix_dist.core.ops.reduce import batch_mean, sum_over, weighted_mean
from sorix_dist.core.ops.shape import extents, flatten, squeeze, transpose, unsqueeze, with_rows
from sorix_dist.core.placement import Partial, Shard, shard_of, tagged
from sorix_dist.core.rules import align, beside, placement_of, whole
from sorix_dist.core.tensor import Array, shape_of

__all__ = [
    "binary_cross_entropy", "binary_cross_entropy_with_logits", "cross_entropy", "huber_loss", "kl_div", "l1_loss",
    "mse_loss", "nll_loss", "smooth_l1_loss",
]  # fmt: skip

REDUCTIONS = ("mean", "sum", "none")


def cross_entropy(
    logits: Any,
    target: Any,
    weight: Any = None,
    *,
    one_hot: bool = False,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """log(sum(exp(logits))) - logits[target], from raw scores, by a log-sum-exp that does not overflow.

    logits: (N, C) or (N, C, d...). target: integers in [0, C) of shape (N) or (N, d...); or, as floats or with
    `one_hot`, probabilities of the shape of logits. weight: a factor for each class, (C).
    ignore_index: a label that does not count; there is none by default, where PyTorch's is -100, because the mean over
    the labels that count needs one more message between the ranks.
    label_smoothing: this share of the target is spread evenly over the classes (Szegedy et al. 2016).
    The mean over class indices, and over `one_hot` targets, is divided by the weights of those that count; over
    probabilities by their number. ValueError, TypeError or IndexError names what does not fit.
    """
    place, rows = getattr(logits, "place", None), getattr(target, "place", None)
    if place is not rows or (place is not None and getattr(place, "axis", None) != 0):
        logits, target = _together("cross_entropy", logits, target)
        place = placement_of(logits)
    shape = _array(logits).shape
    labels = _array(target)
    plain = weight is ignore_index is None and not label_smoothing and not one_hot and reduction == "mean"
    if plain and len(shape) == 2 and labels.dtype.kind != "f":
        classes = class_indices("cross_entropy", labels, shape)[0]
        if place is None or (place.__class__ is Shard and place.axis == 0 and not place.group.ordered):
            total = shape[0] if place is None else place.total
            return ops.cross_entropy_of_classes(logits, target=classes, divisor=max(1, total), held=shape[0])
    check_options("cross_entropy", reduction, label_smoothing=label_smoothing)
    if len(shape) == 1 and _is_of_one_sample(place):
        options = {"one_hot": one_hot, "ignore_index": ignore_index, "label_smoothing": label_smoothing}
        return _of_one_sample(cross_entropy, logits, target, weight, reduction, **options)
    if weight is not None or ignore_index is not None:
        weight = _class_weights("cross_entropy", weight, logits, getattr(logits, "requires_grad", False))
    if one_hot or (labels.dtype.kind == "f" and labels.shape == shape):
        if ignore_index is not None:
            raise ValueError("cross_entropy: ignore_index needs class indices as target, got probabilities")
        return _of_probabilities(logits, target, weight, one_hot, label_smoothing, reduction)
    classes, scale = class_indices("cross_entropy", labels, shape, weight, ignore_index)
    rows = _classes_last(logits)
    if label_smoothing:
        target = _smoothed(classes, labels, ignore_index, weight, rows.array.shape, rows.array.dtype, label_smoothing)
        losses = ops.cross_entropy_of_probabilities(rows, target)
    else:
        losses = ops.cross_entropy_rows(rows, target=classes, scale=scale)
    return _reduced_classes(losses, scale, reduction, (shape[0], *shape[2:]))


def nll_loss(
    log_probabilities: Any,
    target: Any,
    weight: Any = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """-log_probabilities[target], times the weight of the class: cross-entropy after a log_softmax.

    log_probabilities: (N, C) or (N, C, d...); target: integers in [0, C) of shape (N) or (N, d...).
    """
    check_options("nll_loss", reduction)
    log_probabilities, target = _together("nll_loss", log_probabilities, target)
    shape = shape_of(log_probabilities)
    if len(shape) == 1 and _is_of_one_sample(placement_of(log_probabilities)):
        return _of_one_sample(nll_loss, log_probabilities, target, weight, reduction, ignore_index=ignore_index)
    if weight is not None or ignore_index is not None:
        trained = getattr(log_probabilities, "requires_grad", False)
        weight = _class_weights("nll_loss", weight, log_probabilities, trained)
    classes, scale = class_indices("nll_loss", _array(target), shape, weight, ignore_index)
    losses = ops.negative_likelihood_rows(_classes_last(log_probabilities), target=classes, scale=scale)
    return _reduced_classes(losses, scale, reduction, (shape[0], *shape[2:]))


def mse_loss(input: Any, target: Any, reduction: str = "mean") -> Tensor:
    """(input - target)^2."""
    pair = _pair("mse_loss", input, target)
    if reduction == "mean":
        return ops.mean_squared_error(*pair)
    return reduced("mse_loss", ops.squared_error(*pair), reduction)


def l1_loss(input: Any, target: Any, reduction: str = "mean") -> Tensor:
    """|input - target|."""
    return reduced("l1_loss", ops.absolute_error(*_pair("l1_loss", input, target)), reduction)


def smooth_l1_loss(input: Any, target: Any, reduction: str = "mean", beta: float = 1.0) -> Tensor:
    """With d = |input - target|: d^2 / (2 beta) where d < beta, d - beta / 2 elsewhere (Girshick 2015)."""
    check_options("smooth_l1_loss", reduction, beta=beta)
    if beta == 0:
        return l1_loss(input, target, reduction)
    pair = _pair("smooth_l1_loss", input, target)
    return reduced("smooth_l1_loss", ops.huber_error(*pair, delta=float(beta), scale=1 / beta), reduction)


def huber_loss(input: Any, target: Any, reduction: str = "mean", delta: float = 1.0) -> Tensor:
    """With d = |input - target|: d^2 / 2 where d < delta, delta * (d - delta / 2) elsewhere (Huber 1964)."""
    check_options("huber_loss", reduction, delta=delta)
    pair = _pair("huber_loss", input, target)
    return reduced("huber_loss", ops.huber_error(*pair, delta=float(delta), scale=1.0), reduction)


def binary_cross_entropy(input: Any, target: Any, weight: Any = None, reduction: str = "mean") -> Tensor:
    """-(target * log(input) + (1 - target) * log(1 - input)) of probabilities, with logarithms of at least -100.

    input: in [0, 1], else ValueError; target: of the same shape; weight: factors that broadcast against it.
    """
    x, y = _pair("binary_cross_entropy", input, target)
    _check_probabilities(_array(x))
    losses = ops.binary_cross_entropy(x, y)
    return reduced("binary_cross_entropy", _weighted("binary_cross_entropy", losses, weight), reduction)


def binary_cross_entropy_with_logits(
    input: Any, target: Any, weight: Any = None, reduction: str = "mean", pos_weight: Any = None
) -> Tensor:
    """binary_cross_entropy(sigmoid(input), target), exact for scores of any size.

    input, target: of the same shape; weight: factors that broadcast against it; pos_weight: factors for the
    positive class, that broadcast as well.
    """
    name = "binary_cross_entropy_with_logits"
    x, y = _pair(name, input, target)
    positive = None if pos_weight is None else _factors(name, "pos_weight", pos_weight, x)
    losses = ops.binary_cross_entropy_of_logits(x, y, positive)
    return reduced(name, _weighted(name, losses, weight), reduction)


def kl_div(input: Any, target: Any, reduction: str = "mean", log_target: bool = False) -> Tensor:
    """target * (log(target) - input): the divergence of Kullback and Leibler from logarithms of probabilities.

    input: logarithms; target: probabilities, NaN where they are negative, or logarithms with `log_target`. "mean"
    divides by the number of elements; "batchmean" by that of rows, which is the divergence as it is defined.
    """
    check_options("kl_div", reduction, (*REDUCTIONS, "batchmean"))
    losses = ops.kl_divergence(*_pair("kl_div", input, target), log_target=bool(log_target))
    if reduction == "batchmean":
        return batch_mean(losses, (0,) if losses.ndim else ())
    return reduced("kl_div", losses, reduction)


# -- options and reductions

BOUNDS: dict[str, dict[str, Any]] = {  # as `in_range` takes them
    "label_smoothing": {"low": 0, "high": 1, "closed": True},
    "beta": {"low": 0, "closed": True},
    "delta": {"low": 0, "above": True, "closed": True},
}


def check_options(owner: str, reduction: str, reductions: Sequence[str] = REDUCTIONS, **numbers: float) -> None:
    """TypeError or ValueError, for the function or layer `owner`, for an option that makes no sense."""
    one_of(f"{owner}: reduction", reduction, *reductions)
    for name, number in numbers.items():
        in_range(f"{owner}: {name}", number, **BOUNDS[name])


def reduced(owner: str, losses: Tensor, reduction: str) -> Tensor:
    """Reduces losses with equally many elements per row: their mean (0 of none), their sum, or the losses."""
    check_options(owner, reduction)
    if reduction == "none":
        return losses
    return sum_over(losses, axis=None, keepdims=False) if reduction == "sum" else batch_mean(losses)


def _reduced_classes(losses: Tensor, scale: Array | None, reduction: str, shape: tuple[int, ...]) -> Tensor:
    """Reduces losses of one class each; a mean is divided by the sum of their scales."""
    if reduction == "none":
        return losses if losses.array.shape == shape else _unflattened(losses, shape)
    if reduction == "sum" or scale is None:
        return reduced("cross_entropy", losses, reduction)
    return weighted_mean(losses, scale)


# -- classes


def class_indices(
    name: str, labels: Array, shape: tuple[int, ...], weights: Array | None = None, ignore_index: int | None = None
) -> tuple[Array, Array | None]:
    """The flat class indices that scores of `shape` (N, C, d...) need, checked, and the weight of each.

    weights: those of the classes; None, for no weights, if there is no `ignore_index`.
    """
    if recorders and (recorder := listening()) is not None:
        options = (name, labels, shape, weights, ignore_index)
        return recorder.host(class_indices, options, {})  # type: ignore[no-any-return]
    if len(shape) < 2:
        raise ValueError(f"{name}: logits must have shape (N, C) or (N, C, d...), got shape {tuple(shape)}")
    expected, classes = (shape[0], *shape[2:]), shape[1]
    if len(shape) == 2 and labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != expected:
        raise ValueError(
            f"{name}: target must hold one class per row of logits, shape {expected}, got shape {labels.shape}"
        )
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{name}: target must hold integers (class indices), got dtype {labels.dtype}")
    if isinstance(ignore_index, bool):
        raise TypeError(f"{name}: ignore_index must be an integer or None, got {ignore_index}")
    valid = None if ignore_index is None else labels != ignore_index
    given, labels = labels, labels if valid is None else np.where(valid, labels, 0)
    labels = labels if labels.dtype == np.intp else labels.astype(np.intp)
    # As unsigned numbers negative ones are large, so one pass finds both kinds of stranger.
    unsigned = labels.view(np.uintp)
    if labels.size and unsigned.item(unsigned.argmax()) >= classes:  # argmax is much quicker to call than max
        where = tuple(int(i) for i in np.argwhere((labels < 0) | (labels >= classes))[0])
        place = f"in row {where[0]}" if len(where) == 1 else f"at {where}"
        hint = "; PyTorch ignores -100 by default: say ignore_index=-100" if given[where] == -100 else ""
        raise IndexError(f"{name}: target must be in [0, {classes}), got {given[where]} {place}{hint}")
    labels = labels.reshape(-1)
    if weights is None:
        return labels, None
    return labels, weights[labels] if valid is None else weights[labels] * valid.reshape(-1)


def _is_of_one_sample(place: Any) -> bool:
    """Whether the only axis of scores is that of classes: not one of rows that several ranks hold."""
    return place is None or place.group.has_all


def _of_one_sample(
    loss: Callable[..., Tensor], scores: Any, target: Any, weight: Any, reduction: str, **options: Any
) -> Tensor:
    """A loss of scores (C,) and a target of shape (), or (C,) for probabilities."""
    target = target if isinstance(target, Tensor) else as_operand(target)
    value = loss(unsqueeze(scores, 0), unsqueeze(target, 0), weight, reduction=reduction, **options)
    return squeeze(value, 0) if reduction == "none" else value


def _classes_last(scores: Any) -> Any:
    """Scores (N, C, d...) as rows (N * d..., C)."""
    shape = shape_of(scores)
    if len(shape) == 2:
        return scores if isinstance(scores, Tensor) else Tensor(scores)
    return flatten(transpose(scores, (0, *range(2, len(shape)), 1)), 0, -2)


def _unflattened(losses: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Losses of shape (N * d...) in the shape (N, d...)."""
    place = shard_of(losses)
    return with_rows(losses, shape, None if place is None else place.batch.at(0))


def _together(name: str, scores: Any, target: Any) -> tuple[Any, Any]:
    """Scores and targets of the same rows: those of this rank, or those of all."""
    place = placement_of(scores)
    if place is placement_of(target) is None:
        return scores, target
    if isinstance(place, Shard) and place.axis == 0:
        return scores, align(target, scores, name)
    if isinstance(place, Shard):  # along the classes, say
        return whole(scores, name), whole(target, name)
    if place is not None:
        scores = whole(scores, name)
    scores = align(scores, target, name)
    return scores, align(target, scores, name)


@host
def _check_probabilities(values: Array) -> None:
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(
            "binary_cross_entropy: input must be probabilities in [0, 1], "
            f"got values from {values.min()} to {values.max()}; binary_cross_entropy_with_logits takes raw scores"
        )


@host
def _class_weights(name: str, weight: Any, logits: Any, trained: bool) -> Array:
    """The weight of each class in the dtype of the logits (1 for None), checked; if trained, the same on every rank."""
    scores, rows = _array(logits), shard_of(logits)
    expected = scores.shape[1:2]
    weights = np.ones(expected) if weight is None else _array(whole(weight, name))
    if weights.shape != expected:
        raise ValueError(f"{name}: weight must have one entry per class, shape {expected}, got shape {weights.shape}")
    if weight is not None and rows is not None and trained and recording.get():
        rows.group.expect(float(weights @ np.arange(1, len(weights) + 1)))
    return weights.astype(scores.dtype)


@host
def _smoothed(
    classes: Array, labels: Array, ignored: int | None, weights: Array | None, shape: Any, dtype: Any, smoothing: float
) -> Array:
    """The weighted probabilities that class indices stand for when `smoothing` of them is spread evenly; 0 for rows
    that are ignored. A class of weight 0 counts in the spread of its rows."""
    target = np.full(shape, smoothing / max(1, shape[1]), dtype)
    target[np.arange(len(target)), classes] += 1 - smoothing
    if weights is not None:
        target *= weights
    if ignored is not None:
        target[labels.reshape(-1) == ignored] = 0
    return target


def _of_probabilities(
    logits: Any, target: Any, weights: Array | None, one_hot: bool, smoothing: float, reduction: str
) -> Tensor:
    shape = shape_of(logits)
    if len(shape) < 2 or shape_of(target) != shape:
        raise ValueError(
            f"cross_entropy: target must hold a probability for each class, in the shape {tuple(shape)} of logits, "
            f"got shape {tuple(shape_of(target))}"
        )
    logits, target = (_classes_last(part) for part in _pair("cross_entropy", logits, target))
    scale = _weights_of_rows(target.array, weights) if one_hot and weights is not None else None
    if smoothing:
        target = target * (1 - smoothing) + smoothing / max(1, shape[1])
    target = target if weights is None else mul(target, weights)
    losses = ops.cross_entropy_of_probabilities(logits, target)
    return _reduced_classes(losses, scale, reduction, (shape[0], *shape[2:]))


@host
def _weights_of_rows(target: Array, weights: Array) -> Array:
    total: Array = (target * weights).sum(axis=1)
    return total


# -- arguments


def _array(value: Any) -> Array:
    return value.array if isinstance(value, Tensor) else as_operand(value)


def _pair(name: str, input: Any, target: Any) -> tuple[Any, Any]:
    """Input and target of an element-wise loss: of one shape, and of the input's dtype."""
    if shard_of(input) is not None or getattr(target, "place", None) is not None:
        target = align(target, input, name)
    x, y = _array(input), _array(target)
    if x.dtype.kind != "f":
        raise TypeError(f"{name}: input must be of floating point dtype, got {x.dtype}")
    if x.shape != y.shape and y.ndim and extents(input) != extents(target):
        raise ValueError(f"{name}: target must have the shape {x.shape} of input, got shape {y.shape}")
    if not isinstance(input, Tensor):
        input = x
    if isinstance(target, Tensor) and target.requires_grad:
        return input, target if y.dtype == x.dtype else cast(target, x.dtype)
    values = y.astype(x.dtype, copy=False)
    rows = shard_of(target)
    return input, values if rows is None else tagged(Tensor.of(values), rows)


@host
def _factors(name: str, what: str, value: Any, like: Any) -> Array:
    """An array of factors that must broadcast against `like`, in its dtype."""
    x, rows = _array(like), shard_of(like)
    value = value if rows is None else beside(value, rows, x.ndim - rows.axis)
    factors = _array(whole(value, name) if isinstance(getattr(value, "place", None), Partial) else value)
    if not broadcasts_to(factors.shape, x.shape):
        raise ValueError(f"{name}: {what} must broadcast to the shape {x.shape} of input, got shape {factors.shape}")
    return factors.astype(x.dtype)


def _weighted(name: str, losses: Tensor, weight: Any) -> Tensor:
    return losses if weight is None else mul(losses, _factors(name, "weight", weight, losses))
