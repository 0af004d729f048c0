"""Metrics: those that are collected batch by batch, and sorix's scores of all targets and predictions at once.

Scores take tensors, arrays or lists of equal shape, targets first. Of rows of a batch they gather those of all ranks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sorix_dist.core.rules import whole
from sorix_dist.core.tensor import Array, Tensor
from sorix_dist.train import metrics as _collected
from sorix_dist.train.metrics import *  # noqa: F403

__all__ = [
    *_collected.__all__, "accuracy_score", "confusion_matrix", "f1_score", "mean_absolute_error",
    "mean_absolute_percentage_error", "mean_squared_error", "precision_score", "r2_score", "recall_score",
    "root_mean_squared_error",
]  # fmt: skip


def _pair(y_true: Any, y_pred: Any) -> tuple[Array, Array]:
    targets, predictions = (
        whole(y.detach(), "a score").numpy() if isinstance(y, Tensor) else np.asarray(y) for y in (y_true, y_pred)
    )
    if targets.shape != predictions.shape:
        raise ValueError(f"y_true and y_pred must have the same shape, got {targets.shape} and {predictions.shape}")
    return targets, predictions


def mean_squared_error(y_true: Any, y_pred: Any) -> float:
    """The mean of (y_true - y_pred)²."""
    targets, predictions = _pair(y_true, y_pred)
    return float(np.mean((targets - predictions) ** 2))


def root_mean_squared_error(y_true: Any, y_pred: Any) -> float:
    """The square root of `mean_squared_error`."""
    return float(mean_squared_error(y_true, y_pred) ** 0.5)


def mean_absolute_error(y_true: Any, y_pred: Any) -> float:
    """The mean of |y_true - y_pred|."""
    targets, predictions = _pair(y_true, y_pred)
    return float(np.mean(np.abs(targets - predictions)))


def mean_absolute_percentage_error(y_true: Any, y_pred: Any) -> float:
    """The mean of |(y_true - y_pred) / y_true|, as a fraction of 1."""
    targets, predictions = _pair(y_true, y_pred)
    return float(np.mean(np.abs((targets - predictions) / targets)))


def r2_score(y_true: Any, y_pred: Any) -> float:
    """The coefficient of determination: 1 - mean squared error / variance of y_true."""
    targets, predictions = _pair(y_true, y_pred)
    return float(1 - np.mean((targets - predictions) ** 2) / np.mean((targets - targets.mean()) ** 2))


def accuracy_score(y_true: Any, y_pred: Any) -> float:
    """The share of predictions that equal their targets."""
    targets, predictions = _pair(y_true, y_pred)
    return float(np.mean(targets == predictions))


def confusion_matrix(y_true: Any, y_pred: Any, *, labels: Sequence[Any] | None = None) -> Array:
    """The counts by class (row) and predicted class (column). labels: by default all classes that occur."""
    targets, predictions = (y.ravel() for y in _pair(y_true, y_pred))
    classes = np.unique(np.concatenate([targets, predictions])) if labels is None else np.asarray(labels)
    return ((targets == classes[:, None]).astype(int)) @ (predictions[:, None] == classes).astype(int)


def _scores(
    score: str, y_true: Any, y_pred: Any, labels: Any, average: str | None, pos_label: Any, zero_division: Any
) -> Any:
    """Precision, recall or F1 of one class or of several, each computed from counts."""
    targets, predictions = (y.ravel() for y in _pair(y_true, y_pred))
    if average not in ("binary", "macro", "weighted", None):
        raise ValueError(f"average must be 'binary', 'macro', 'weighted' or None, got {average!r}")
    classes = [pos_label] if average == "binary" else np.unique(targets) if labels is None else labels

    def quotient(right: Any, count: Any) -> float:
        if count:
            return float(right / count)
        if zero_division == "warn":
            warnings.warn(f"{score}: a class that is never found counts as 0", RuntimeWarning, stacklevel=5)
        return 0.0 if zero_division == "warn" else float(zero_division)

    found, supports = [], []
    for label in classes:
        right = np.sum((targets == label) & (predictions == label))
        predicted, actual = np.sum(predictions == label), np.sum(targets == label)
        supports.append(actual)
        if score == "f1_score":
            precision, recall = quotient(right, predicted), quotient(right, actual)
            found.append(quotient(2 * precision * recall, precision + recall))
        else:
            found.append(quotient(right, predicted if score == "precision_score" else actual))
    if average == "binary":
        return found[0]
    if average is None:
        return np.array(found)
    weights = supports if average == "weighted" and sum(supports) else None
    return float(np.average(found, weights=weights)) if found else 0.0


def _score(name: str, meaning: str) -> Callable[..., Any]:
    def score(
        y_true: Any,
        y_pred: Any,
        *,
        labels: Sequence[Any] | None = None,
        average: str | None = "binary",
        pos_label: Any = 1,
        zero_division: Any = "warn",
    ) -> Any:
        return _scores(name, y_true, y_pred, labels, average, pos_label, zero_division)

    score.__name__ = score.__qualname__ = name
    score.__doc__ = meaning
    return score


precision_score = _score(
    "precision_score",
    """The share of the predictions of a class that are right: of `pos_label`, or of each class (average=None), averaged
    "macro" (each class alike) or "weighted" (by how often it occurs). zero_division: the score without predictions.""",
)
recall_score = _score(
    "recall_score", "The share of the targets of a class that are predicted; arguments as for `precision_score`."
)
f1_score = _score("f1_score", "The harmonic mean of precision and recall; arguments as for `precision_score`.")
