"""Losses before their reduction, and the reductions."""

from __future__ import annotations

import numpy as np

from sorix_dist.core.ops import loss
from tests.support.core.opcheck import PAIRS, Row

CLASSES = {"0-d": "a row holds one score for each class"}


def cross_entropy(x, target, scale=None):
    likely = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    rows = -likely[np.arange(len(target)), target]
    return rows if scale is None else rows * scale


def huber(x, y, delta, scale):
    d = np.abs(x - y)
    return np.where(d < delta, d * d / 2, delta * (d - delta / 2)) * scale


def of_classes(count):
    """Rows for `count` targets."""
    target, some = np.array([2, 0, 1, 2])[:count], np.array([0.5, 0.0, 2.0, 1.0])[:count]
    case = [((count, 3),)]
    yield Row(
        loss.cross_entropy_of_classes,
        lambda x, target, divisor, held: cross_entropy(x, target).sum() / divisor,
        case,
        {"target": target, "divisor": 7, "held": count},
        lacks=CLASSES,
    )
    for scale in (None, some):
        options = {"target": target, "scale": scale}
        yield Row(loss.cross_entropy_rows, cross_entropy, case, options, lacks=CLASSES)
        yield Row(
            loss.negative_likelihood_rows,
            lambda x, target, scale: -x[np.arange(len(target)), target] * (1 if scale is None else scale),
            case,
            options,
            lacks=CLASSES,
        )


def with_pos_weight(x, target):
    return loss.binary_cross_entropy_of_logits(x, target, np.array([0.5, 1, 2, 3], x.array.dtype))


def without_pos_weight(x, target):
    return loss.binary_cross_entropy_of_logits(x, target, None)


def logistic_loss(x, target, positive=1.0):
    s = 1 / (1 + np.exp(-x))
    return -(positive * target * np.log(s) + (1 - target) * np.log(1 - s))


ROWS = [
    *of_classes(4),
    *of_classes(0),
    Row(
        loss.cross_entropy_of_probabilities,
        lambda x, t: (t * (np.log(np.exp(x).sum(axis=1, keepdims=True)) - x)).sum(axis=1),
        [((4, 3), (4, 3)), ((0, 3), (0, 3))],
        lacks=CLASSES,
    ),
    Row(loss.squared_error, lambda x, y: (x - y) ** 2, PAIRS),
    *(
        Row(
            loss.mean_square,
            lambda x, y, divisor, held: np.sum((x - y) ** 2) / divisor if divisor else np.zeros(()),
            PAIRS,
            {"divisor": divisor, "held": 3},
        )
        for divisor in (0, 7)
    ),
    Row(loss.absolute_error, lambda x, y: np.abs(x - y), PAIRS, between=((-2, -0.1), (0.1, 2))),
    *(
        Row(loss.huber_error, huber, PAIRS, {"delta": delta, "scale": 2.0}, between=((-0.4, 0.4), (0.6, 0.9)))
        for delta in (0.1, 1.4)
    ),
    Row(
        loss.binary_cross_entropy,
        lambda p, t: -(t * np.log(p) + (1 - t) * np.log(1 - p)),
        PAIRS,
        between=(0.1, 0.9),
    ),
    Row(without_pos_weight, logistic_loss, PAIRS, covers="binary_cross_entropy_of_logits"),
    Row(
        with_pos_weight,
        lambda x, t: logistic_loss(x, t, np.array([0.5, 1, 2, 3])),
        [((3, 4), (3, 4)), ((0, 4), (0, 4)), ((), (4,))],
        covers="binary_cross_entropy_of_logits",
    ),
    Row(
        loss.kl_divergence,
        lambda x, t, log_target: t * (np.log(t) - x),
        PAIRS,
        {"log_target": False},
        between=((-2, 0), (0.1, 1)),
    ),
    Row(
        loss.kl_divergence,
        lambda x, t, log_target: np.exp(t) * (t - x),
        PAIRS,
        {"log_target": True},
        between=(-2, 0),
    ),
]
