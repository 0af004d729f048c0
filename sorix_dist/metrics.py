"""Metrics: those that are collected batch by batch, and sorix's scores of all targets and predictions at once.

Scores take tensors, arrays or lists of equal shape, targets first. Of rows of a batch they gather those of all ranks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sorix_dist.core.arguments import as_int, named, one_of
from sorix_dist.core.keywords import missing_from
from sorix_dist.core.rules import whole
from sorix_dist.core.tensor import Array, Tensor
from sorix_dist.train import metrics as _collected
from sorix_dist.train.metrics import *  # noqa: F403

__all__ = [
    *_collected.__all__, "accuracy_score", "classification_report", "confusion_matrix", "f1_score",
    "find_optimal_threshold", "mean_absolute_error", "mean_absolute_percentage_error", "mean_squared_error",
    "precision_score", "r2_score", "recall_score", "regression_report", "root_mean_squared_error",
]  # fmt: skip


def _array(y: Any) -> Array:
    return whole(y.detach(), "a score").numpy() if isinstance(y, Tensor) else np.asarray(y)


def _pair(y_true: Any, y_pred: Any) -> tuple[Array, Array]:
    targets, predictions = _array(y_true), _array(y_pred)
    if targets.shape != predictions.shape:
        raise ValueError(f"y_true and y_pred must have the same shape, got {targets.shape} and {predictions.shape}")
    return targets, predictions


def _errors(y_true: Any, y_pred: Any) -> tuple[Array, Array]:
    """The targets and how much they are above the predictions, as float64: unsigned integers would wrap around."""
    targets, predictions = (y.astype(np.float64) for y in _pair(y_true, y_pred))
    return targets, targets - predictions


def mean_squared_error(y_true: Any, y_pred: Any) -> float:
    """The mean of (y_true - y_pred)²."""
    return float(np.mean(_errors(y_true, y_pred)[1] ** 2))


def root_mean_squared_error(y_true: Any, y_pred: Any) -> float:
    """The square root of `mean_squared_error`."""
    return float(mean_squared_error(y_true, y_pred) ** 0.5)


def mean_absolute_error(y_true: Any, y_pred: Any) -> float:
    """The mean of |y_true - y_pred|."""
    return float(np.mean(np.abs(_errors(y_true, y_pred)[1])))


def mean_absolute_percentage_error(y_true: Any, y_pred: Any) -> float:
    """The mean of |(y_true - y_pred) / y_true|, as a fraction of 1."""
    targets, errors = _errors(y_true, y_pred)
    return float(np.mean(np.abs(errors / targets)))


def r2_score(y_true: Any, y_pred: Any) -> float:
    """The coefficient of determination: 1 - mean squared error / variance of y_true."""
    targets, errors = _errors(y_true, y_pred)
    return float(1 - np.mean(errors**2) / np.mean((targets - targets.mean()) ** 2))


def regression_report(y_true: Any, y_pred: Any) -> str:
    """A text with R2, MAE, MSE, RMSE and MAPE (in percent) and their ranges, a line each."""
    scores = {
        "R2": (r2_score(y_true, y_pred), "(-∞,  1]"),
        "MAE": (mean_absolute_error(y_true, y_pred), "[0,  ∞)"),
        "MSE": (mean_squared_error(y_true, y_pred), "[0,  ∞)"),
        "RMSE": (root_mean_squared_error(y_true, y_pred), "[0,  ∞)"),
        "MAPE": (100 * mean_absolute_percentage_error(y_true, y_pred), "[0,  ∞)"),
    }
    lines = [f"{name:<6} | {value:>9.4f} | {bounds:<8}" for name, (value, bounds) in scores.items()]
    return "\n".join([f"{'Metric':<6} | {'Score':>9} | {'Range':>8}", "-" * 29, *lines])


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
    one_of("average", average, "binary", "macro", "weighted", None)
    classes = [pos_label] if average == "binary" else np.unique(targets) if labels is None else labels

    def quotient(right: Any, count: Any) -> float:
        if count:
            return float(right / count)
        if zero_division == "warn":
            note = f"Division by zero in {score}: a class that is never found counts as 0"
            warnings.warn(note, RuntimeWarning, stacklevel=5)
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

    return named(score, name, meaning)


precision_score = _score(
    "precision_score",
    """The share of the predictions of a class that are right: of `pos_label`, or of each class (average=None), averaged
    "macro" (each class alike) or "weighted" (by how often it occurs). zero_division: the score without predictions.""",
)
recall_score = _score(
    "recall_score", "The share of the targets of a class that are predicted; arguments as for `precision_score`."
)
f1_score = _score("f1_score", "The harmonic mean of precision and recall; arguments as for `precision_score`.")


def classification_report(
    y_true: Any,
    y_pred: Any,
    *,
    labels: Sequence[Any] | None = None,
    target_names: Sequence[str] | None = None,
    output_dict: bool = False,
    zero_division: Any = "warn",
) -> str | dict[str, Any]:
    """Precision, recall and F1 of each class with its count ("support"), their averages, and the accuracy.

    labels: the classes, by default those of y_true; target_names: their names in the report.
    output_dict: a dict of dicts instead of a text. zero_division: as for `precision_score`.
    """
    targets, predictions = (y.ravel() for y in _pair(y_true, y_pred))
    classes = list(np.unique(targets) if labels is None else labels)
    names = [str(name) for name in (classes if target_names is None else target_names)]
    if len(names) != len(classes):
        raise ValueError(f"length of target_names does not match: {len(names)} for {len(classes)} classes")
    scores: dict[str, Any] = {
        name: score(targets, predictions, labels=classes, average=None, zero_division=zero_division)
        for name, score in (("precision", precision_score), ("recall", recall_score), ("f1-score", f1_score))
    }
    supports = np.array([np.sum(targets == label) for label in classes], int)
    total, accuracy = int(supports.sum()), accuracy_score(targets, predictions)
    report: dict[str, Any] = {
        name: {**{kind: float(of[i]) for kind, of in scores.items()}, "support": int(supports[i])}
        for i, name in enumerate(names)
    }
    report["accuracy"] = accuracy
    for average, weights in (("macro avg", np.ones(len(classes))), ("weighted avg", supports)):
        means = {kind: float(of @ weights / weights.sum()) if weights.any() else 0.0 for kind, of in scores.items()}
        report[average] = {**means, "support": total}
    if output_dict:
        return report
    report["accuracy"] = {"precision": None, "recall": None, "f1-score": accuracy, "support": total}
    width = max([12, *(len(name) + 1 for name in names)])
    lines = [
        f"{name:<{width}}"
        + "".join(f"{'' if v is None else v if k == 'support' else f'{v:.2f}':>9}" for k, v in row.items())
        for name, row in report.items()
    ]
    header = " " * width + "".join(f"{kind:>9}" for kind in (*scores, "support"))
    return "\n".join([header, *lines[: len(names)], "", *lines[len(names) :]])


def find_optimal_threshold(
    y_true: Any, y_probs: Any, metric_fn: Callable[[Any, Any], float] | None = None, *, n_thresholds: int = 200
) -> tuple[float, float]:
    """The threshold of the probabilities `y_probs` of class 1 whose predictions score best, and that score.

    Tries k / n_thresholds for each k from 1 to n_thresholds - 1; the lowest of equal ones counts. metric_fn(y_true,
    y_pred): the score, by default `f1_score`; thresholds at which it raises are skipped. RuntimeError if all do.
    """
    n_thresholds = as_int("n_thresholds", n_thresholds, 2)
    targets, probabilities = _array(y_true).ravel(), _array(y_probs).ravel()
    if targets.size != probabilities.size:
        raise ValueError(
            f"y_true and y_probs must have the same number of elements, got {targets.size} and {probabilities.size}"
        )
    if not targets.size:
        raise ValueError("y_true and y_probs must not be empty")
    metric, best, failure = metric_fn or f1_score, (0.5, -np.inf), None
    for threshold in np.linspace(0, 1, n_thresholds, endpoint=False)[1:]:
        try:
            score = float(metric(targets, (probabilities >= threshold).astype(int)))
        except Exception as error:  # noqa: BLE001 - a score may be undefined where all rows get one class
            failure = failure or error
            continue
        best = (float(threshold), score) if score > best[1] else best
    if best[1] == -np.inf:
        raise RuntimeError(f"metric_fn failed for all {n_thresholds - 1} thresholds, first as above") from failure
    return best


__getattr__ = missing_from(__name__, globals())
