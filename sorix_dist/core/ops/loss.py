"""Losses before their reduction.

What is fused here is fused because its gradient is then simpler and more exact than that of its parts.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from sorix_dist.core import rules
from sorix_dist.core.memory import read_only, scalar
from sorix_dist.core.op import like_input, op
from sorix_dist.core.ops.activation import log_softmax_along, sigmoid, softplus
from sorix_dist.core.ops.axes import maxima
from sorix_dist.core.ops.elementwise import mul, neg
from sorix_dist.core.ops.indexing import take
from sorix_dist.core.ops.matrix import column_sums
from sorix_dist.core.ops.reduce import counts, divided_rule, sum_divided, sum_over
from sorix_dist.core.placement import Shard
from sorix_dist.core.rules import Answer, Apply, Inputs, Options
from sorix_dist.core.sums import scaled_sum
from sorix_dist.core.tensor import Array, ndarray_of


def of_each_row(apply: Apply, inputs: Inputs, options: Options) -> Answer:
    """The rule of losses per row: scores (N, classes), and operands aligned with them, give one number per row."""
    place = rules.placement_of(inputs[0])
    if len(inputs) == 1 and isinstance(place, Shard) and place.axis == 0:
        return place
    operands, place = rules.aligned_operands(apply.__name__, rules.whole_sums(inputs, apply.__name__))
    if place is None or place.axis != 0:
        return rules.gathers(apply, tuple(operands), options)
    return rules.applied(apply, operands, inputs, options, place)


# -- classes


def _picked(likely: Any, target: Any) -> Any:
    return take(likely, index=(np.arange(len(target)), target))


def _cross_entropy(logits: Any, *, target: Any, divisor: int, held: int) -> Any:
    losses = neg(_picked(log_softmax_along(logits, axis=1), target))
    return sum_divided(losses, divisor=divisor, held=held)


@op(composite=_cross_entropy, rule=divided_rule, called="cross_entropy")
def cross_entropy_of_classes(logits: Any, *, target: Any, divisor: int, held: int) -> Any:
    """The sum over rows of log(sum(exp(logits))) - logits[target], divided by `divisor`, the global number of rows.

    logits: raw scores (N, C); target: N integers in [0, C). The gradient is (softmax - one-hot) / divisor.
    """
    classes = logits.shape[1]
    losses, exps, sums, at_target = _softmax_parts(logits, target)

    def to_logits(g: Any, out: Any) -> Any:
        share = scalar(g.item() / divisor, g.dtype)
        return _less_at(at_target, share, exps * (share / sums), classes)

    total = column_sums(losses) / divisor if losses.itemsize > 2 else scaled_sum(losses, 1 / divisor)
    return total, (to_logits,)


_FEW = 100  # classes


def _softmax_parts(logits: Any, target: Any) -> tuple[Any, Any, Any, Any]:
    """For each row of logits: the loss log(sum(exp(row))) - row[target], the numbers exp(row - max(row)), their sum,
    and the index of the target's number in the flat memory of all numbers.

    Few classes lie in the first dimension of the numbers, because NumPy is slow at reducing many short rows. No result
    depends on how many rows there are.
    """
    rows, classes = logits.shape
    if classes > _FEW:
        exps = np.subtract(logits, maxima(logits), order="C")
        at_target = target + _multiples(classes, rows)
    else:
        exps = logits.T.copy()
        exps -= np.maximum.reduce(exps, axis=0) if classes else 0
        at_target = target * scalar(rows, np.intp)
        at_target += _multiples(1, rows)
    chosen = exps.take(at_target)
    np.exp(exps, exps)
    if classes > _FEW:
        sums = exps.sum(axis=1, keepdims=True)
    else:  # a single column would be summed in another order than several
        sums = np.add.reduce(exps, axis=0) if rows != 1 else np.cumsum(exps, axis=0)[-1]
    losses = np.log(sums).reshape(rows)
    losses -= chosen
    return losses, exps, sums, at_target


@lru_cache(maxsize=16)
def _multiples(number: int, count: int) -> Array:
    return read_only(np.arange(0, number * count, number))


def _less_at(at_target: Any, share: Any, gradient: Any, classes: int) -> Any:
    """A gradient in the layout of `_softmax_parts`, less a share at the targets, as a gradient of the logits."""
    gradient.put(at_target, gradient.take(at_target) - share)
    return gradient if classes > _FEW else gradient.T.copy()


def _cross_entropy_rows(logits: Any, *, target: Any, scale: Any) -> Any:
    if scale is not None:  # rows that do not count may have any values
        logits = _cleared(logits, scale)
    loss = neg(_picked(log_softmax_along(logits, axis=1), target))
    return loss if scale is None else mul(loss, scale)


@op(composite=_cross_entropy_rows, rule=of_each_row, called="cross_entropy")
def cross_entropy_rows(logits: Any, *, target: Any, scale: Any) -> Any:
    """log(sum(exp(logits))) - logits[target] of every row, times the row's `scale` (N numbers, or None for 1).

    logits: raw scores (N, C); target: N integers in [0, C). A row of scale 0 gives 0 whatever its logits.
    """
    classes = logits.shape[1]
    losses, exps, sums, at_target = _softmax_parts(logits, target)
    nothing = None
    if scale is not None:
        scale, nothing = scale.astype(logits.dtype, copy=False), np.flatnonzero(scale == 0)
        losses *= scale
        losses[nothing] = 0

    def to_logits(g: Any, out: Any) -> Any:
        share = g if scale is None else g * scale
        gradient = _less_at(at_target, share, exps * (share.reshape(sums.shape) / sums), classes)
        if nothing is not None:
            gradient[nothing] = 0
        return gradient

    return losses, (to_logits,)


def _cross_entropy_of_probabilities(logits: Any, target: Any) -> Any:
    counted = ndarray_of(target).any(axis=1)
    product = mul(log_softmax_along(_cleared(logits, counted), axis=1), target)
    return neg(sum_over(product, axis=1, keepdims=False))


@op(composite=_cross_entropy_of_probabilities, rule=of_each_row, called="cross_entropy")
def cross_entropy_of_probabilities(logits: Any, target: Any) -> Any:
    """The sum over classes of target * (log(sum(exp(logits))) - logits), of every row.

    logits, target: (N, C). A row whose targets are all 0 gives 0 whatever its logits are.
    """
    shifted = logits - maxima(logits)
    exps = np.exp(shifted)
    sums = exps.sum(axis=1, keepdims=True)
    missing = np.log(sums) - shifted
    loss = (target * missing).sum(axis=1)
    nothing = np.flatnonzero(~target.any(axis=1))
    loss[nothing] = 0

    def to_logits(g: Any, out: Any) -> Any:
        gradient = exps * (target.sum(axis=1, keepdims=True) / sums)
        gradient -= target
        gradient *= g[:, None]
        gradient[nothing] = 0
        return gradient

    return loss, (to_logits, lambda g, out: g[:, None] * missing)


def _cleared(rows: Any, counts: Any) -> Any:
    """The rows, with zeros where `counts` is 0."""
    return np.where((np.asarray(counts) != 0)[:, None], rows, 0)


def _negative_likelihood_rows(likely: Any, *, target: Any, scale: Any) -> Any:
    chosen = neg(_picked(likely, target))
    return chosen if scale is None else np.where(scale != 0, mul(chosen, scale), 0)


@op(composite=_negative_likelihood_rows, rule=of_each_row, called="nll_loss")
def negative_likelihood_rows(likely: Any, *, target: Any, scale: Any) -> Any:
    """-likely[target] of every row, times the row's `scale` (N numbers, or None for 1).

    likely: logarithms of probabilities (N, C); target: N integers in [0, C).
    """
    at_target, shape, dtype = (np.arange(len(target)), target), likely.shape, likely.dtype
    loss = -likely[at_target]
    if scale is not None:
        scale = scale.astype(dtype, copy=False)
        loss = np.where(scale != 0, loss * scale, 0)

    def to_likely(g: Any, out: Any) -> Any:
        gradient = np.zeros(shape, dtype)
        gradient[at_target] = -g if scale is None else -g * scale
        return gradient

    return loss, (to_likely,)


# -- differences


@op(called="mse_loss")
def squared_error(x: Any, y: Any) -> Any:
    """(x - y)^2."""
    return np.square(x - y), (lambda g, out: g * (2 * (x - y)), lambda g, out: g * (2 * (y - x)))


_FEW_SQUARES = 1 << 10


def _mean_square(x: Any, y: Any, *, divisor: int, held: int) -> Any:
    return sum_divided(squared_error(x, y), divisor=divisor, held=held)


@op(composite=_mean_square, rule=divided_rule, called="mse_loss")
def mean_square(x: Any, y: Any, *, divisor: int, held: int) -> Any:
    """The sum of (x - y)^2, divided by `divisor`, the global number of elements; 0 if that is 0."""
    d, scale = x - y, 1 / divisor if divisor else 0.0
    flat, few = d.ravel(), d.size <= _FEW_SQUARES and d.itemsize > 2

    def to_x(g: Any, out: Any) -> Any:
        return d * scalar(g.item() * 2 * scale, g.dtype)

    # BLAS adds few squares in a fourth of the time; of many the sum would be less exact.
    return flat.dot(flat) * scale if few else scaled_sum(d * d, scale), (to_x, lambda g, out: -to_x(g, None))


def mean_squared_error(x: Any, y: Any) -> Any:
    """The mean of (x - y)^2 over the global batch, in one operation if it needs no other placement than that of x."""
    place = getattr(x, "place", None)
    held, total = counts(x)
    plain = place is None or (place.__class__ is Shard and not place.group.ordered)
    if plain and getattr(y, "place", None) is place:
        return mean_square(x, y, divisor=total, held=held)
    return sum_divided(squared_error(x, y), divisor=total, held=held)


@op(called="l1_loss")
def absolute_error(x: Any, y: Any) -> Any:
    """|x - y|; the gradient at 0 is 0."""
    return np.abs(x - y), (lambda g, out: g * np.sign(x - y), lambda g, out: g * np.sign(y - x))


@op(called="huber_loss")
def huber_error(x: Any, y: Any, *, delta: float, scale: float) -> Any:
    """With d = |x - y|: d^2 / 2 where d < delta, delta * (d - delta / 2) elsewhere (Huber 1964), times `scale`."""

    def slope(d: Any) -> Any:
        return np.where(d > delta, delta, np.where(d < -delta, -delta, d)) * scale

    distance = np.abs(x - y)
    value = np.where(distance < delta, 0.5 * np.square(distance), delta * (distance - 0.5 * delta))
    return value * scale, (lambda g, out: g * slope(x - y), lambda g, out: g * slope(y - x))


# -- probabilities

_LEAST = math.exp(-100)  # logarithms of smaller probabilities count as -100, as PyTorch has it


def _bounded_log(p: Any) -> Any:
    return np.where(p > _LEAST, np.log(np.where(p > _LEAST, p, 1)), -100)


@op()
def binary_cross_entropy(p: Any, target: Any) -> Any:
    """-(target * log(p) + (1 - target) * log(1 - p)), with logarithms of at least -100; p in [0, 1]."""
    with np.errstate(divide="ignore"):
        value = (target - 1) * np.maximum(np.log1p(-p), -100) - target * np.maximum(np.log(p), -100)

    def to_p(g: Any, out: Any) -> Any:
        spread = p * (1 - p)
        return g * (p - target) / np.where(spread > 1e-12, spread, 1e-12)

    return value, (to_p, lambda g, out: g * (_bounded_log(1 - p) - _bounded_log(p)))


@op()
def binary_cross_entropy_of_logits(x: Any, target: Any, pos_weight: Any) -> Any:
    """-(pos_weight * target * log(s) + (1 - target) * log(1 - s)) with s = sigmoid(x), without overflow.

    pos_weight: weights of the positive class that broadcast against x, or None for 1.
    """
    missing = np.log1p(np.exp(-np.abs(x))) + np.maximum(-x, 0)  # -log(sigmoid(x))
    if pos_weight is not None:
        missing = missing * (1 + (pos_weight - 1) * target)

    def to_x(g: Any, out: Any) -> Any:
        if pos_weight is None:
            return g * (sigmoid(x) - target)
        return g * ((1 - target) - (1 + (pos_weight - 1) * target) * sigmoid(-x))

    def to_target(g: Any, out: Any) -> Any:
        if pos_weight is None:
            return -g * x
        return g * ((pos_weight - 1) * like_input(softplus, -x, beta=1, threshold=math.inf) - x)

    return (1 - target) * x + missing, (to_x, to_target, None)


def _log_but_of_zero(x: Any) -> Any:
    """log(x), with 0 where x is 0 and NaN where it is negative."""
    with np.errstate(invalid="ignore"):
        return np.log(np.where(x == 0, 1, x))


@op(called="kl_div")
def kl_divergence(x: Any, target: Any, *, log_target: bool) -> Any:
    """target * (log(target) - x) of logarithms x of probabilities, 0 where target is 0 and NaN where it is negative.

    log_target: whether `target` is logarithms too.
    """

    def to_x(g: Any, out: Any) -> Any:
        return -g * (np.exp(target) if log_target else target)

    def to_target(g: Any, out: Any) -> Any:
        if log_target:
            return g * np.exp(target) * (target - x + 1)
        return np.where(target == 0, 0, g * (_log_but_of_zero(target) + 1 - x))

    if log_target:
        return np.exp(target) * (target - x), (to_x, to_target)
    return target * _log_but_of_zero(target) - target * x, (to_x, to_target)
