"""Metrics of classes: counts of samples, exact on any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.arguments import as_int, described, int_or_none, one_of
from sorix_dist.core.tensor import Array, as_array
from sorix_dist.train.metrics.base import Mean, Metric
from sorix_dist.utils.data.tables import missing_rows

Average = Literal["macro", "micro", "weighted"]


class Accuracy(Metric):
    """The share of samples with the right prediction; NaN of no samples.

    ignore_index: a label that does not count; top_k: right if the label is among the k classes with the largest
    logits, of equal ones the first.
    """

    options = ("ignore_index", "top_k")

    def __init__(self, ignore_index: int | None = None, top_k: int = 1, *, comm: Any = None) -> None:
        self.ignore_index, self.top_k = int_or_none("ignore_index", ignore_index), as_int("top_k", top_k, 1)
        super().__init__(comm)

    def _nothing(self) -> dict[str, Any]:
        return {"counts": np.zeros(2, np.int64)}

    def update(self, found: Any, target: Any) -> None:
        """Counts samples: logits (N, C) or (N, C, ...), or predicted labels, which may be texts, and target (N) or
        (N, ...)."""
        if not any(isinstance(labels, Tensor) for labels in (found, target)) and np.asarray(target).dtype.kind in "OUT":
            if len(missing := missing_rows(np.asarray(target))):
                raise ValueError(f"target must not be missing, got a missing value in row {missing[0]}")
            names = sorted({*np.ravel(found).tolist(), *np.ravel(target).tolist()}, key=str)
            found, target = (_numbered(labels, names) for labels in (found, target))
        found, wanted, counted = _logits_or_labels(found, target, self.ignore_index)
        if found.shape == wanted.shape:
            if self.top_k > 1:
                raise ValueError(f"top_k={self.top_k} needs logits, got labels of shape {found.shape}")
            right = found == wanted
        else:
            classes = found.shape[1]
            if self.top_k > classes:
                raise ValueError(f"top_k must be at most the number of classes {classes}, got {self.top_k}")
            _check_labels("target", wanted, counted, classes)
            right = _among_largest(found, np.where(counted, wanted, 0), self.top_k)
        self.seen["counts"] += (int(np.count_nonzero(right & counted)), int(np.count_nonzero(counted)))

    def _answer(self, seen: dict[str, Any]) -> float:
        right, samples = seen["counts"].tolist()
        return right / samples if samples else math.nan


class TopK(Accuracy):
    """The share of samples whose label is among the k classes with the largest logits."""

    def __init__(self, k: int = 5, ignore_index: int | None = None, *, comm: Any = None) -> None:
        super().__init__(ignore_index, k, comm=comm)


class ConfusionMatrix(Metric):
    """The confusion matrix: counts of samples by label (row) and predicted label (column), int64 of shape (C, C).

    num_classes: C, for labels 0 to C - 1; or the names of the classes, for labels that are texts or their numbers.
    ignore_index: a label that does not count.
    """

    options: tuple[str, ...] = ("num_classes", "ignore_index")

    def __init__(self, num_classes: int | Sequence[str], ignore_index: int | None = None, *, comm: Any = None) -> None:
        self.names: list[str] | None = None
        if not isinstance(num_classes, int | np.integer):
            if not hasattr(num_classes, "__len__") or np.ndim(num_classes) == 0:
                raise TypeError(f"num_classes must be a number, or names of classes, got {described(num_classes)}")
            self.names = [str(name) for name in num_classes]
            if isinstance(num_classes, str) or len(set(self.names)) < len(self.names):
                raise ValueError(f"num_classes must be a number, or different names of classes, got {num_classes!r}")
            num_classes = len(self.names)
            self.options = (*type(self).options, "names")  # states and ranks must have the same names
        self.num_classes = as_int("num_classes", num_classes, 1)
        self.ignore_index = int_or_none("ignore_index", ignore_index)
        super().__init__(comm)

    def _nothing(self) -> dict[str, Any]:
        return {"counts": np.zeros((self.num_classes, self.num_classes), np.int64)}

    def update(self, found: Any, target: Any) -> None:
        """Counts samples: logits (N, C) or (N, C, ...), or predicted labels, and target (N) or (N, ...)."""
        if self.names is not None:
            found, target = (_numbered(labels, self.names) for labels in (found, target))
        found, wanted, counted = _logits_or_labels(found, target, self.ignore_index)
        if found.shape != wanted.shape:
            if found.shape[1] != self.num_classes:
                raise ValueError(f"logits must have {self.num_classes} classes in axis 1, got shape {found.shape}")
            found = found.argmax(axis=1)
        _check_labels("target", wanted, counted, self.num_classes)
        _check_labels("the predicted label", found, counted, self.num_classes)
        pairs = wanted[counted].astype(np.int64) * self.num_classes + found[counted].astype(np.int64)
        shape = self.seen["counts"].shape
        self.seen["counts"] += np.bincount(pairs, minlength=self.num_classes**2).reshape(shape)

    def _answer(self, seen: dict[str, Any]) -> Any:
        return seen["counts"]

    def table(self) -> str:
        """Precision, recall, F1 and number of samples of each class, as a text to print: a call of all ranks."""
        counts = self._total()["counts"]
        names = self.names or [str(label) for label in range(self.num_classes)]
        width = max(len("accuracy"), *map(len, names))
        lines = [f"{'class':{width}}  precision  recall      f1  samples"]
        for name, *shares, samples in zip(names, *_shares(counts), counts.sum(axis=1)):
            lines.append(f"{name:{width}}  {shares[0]:9.4f}  {shares[1]:6.4f}  {shares[2]:6.4f}  {samples:7,d}")
        total = int(counts.sum())
        lines.append(f"{'accuracy':{width}}  {_ratio(counts.trace(), total):25.4f}  {total:15,d}")
        return "\n".join(lines)


class PerClass(ConfusionMatrix):
    """The base class of Precision, Recall and F1: a share of each class, and its mean over the classes.

    average: "macro", the mean over the classes that occur (as label or as prediction); "weighted", by their numbers
    of samples; "micro", the share over all samples; None, an array with the share of each class. A share of nothing
    is 0, as in scikit-learn; the mean over no class is NaN.
    """

    options = ("num_classes", "ignore_index", "average")
    _which: ClassVar[int]

    def __init__(
        self,
        num_classes: int | Sequence[str],
        average: Average | None = "macro",
        ignore_index: int | None = None,
        *,
        comm: Any = None,
    ) -> None:
        one_of("average", average, *get_args(Average), None)
        self.average = average
        super().__init__(num_classes, ignore_index, comm=comm)

    def _answer(self, seen: dict[str, Any]) -> Any:
        counts: Array = seen["counts"]
        shares, samples = _shares(counts)[self._which], counts.sum(axis=1)
        if self.average is None:
            return shares
        if self.average == "micro":
            return _ratio(counts.trace(), counts.sum()) if counts.any() else math.nan
        weights = samples if self.average == "weighted" else (samples + counts.sum(axis=0) > 0)
        return math.fsum((shares * weights).tolist()) / int(weights.sum()) if weights.any() else math.nan


class Precision(PerClass):
    """Of the samples that are predicted as a class, the share that belongs to it. See `PerClass` for its arguments."""

    _which = 0


class Recall(PerClass):
    """Of the samples that belong to a class, the share that is predicted as it. See `PerClass` for its arguments."""

    _which = 1


class F1(PerClass):
    """The harmonic mean of precision and recall. See `PerClass` for its arguments."""

    _which = 2


class AUROC(Metric):
    """The area under the ROC curve: how often a sample of the class has a higher score than one of another class.

    Ties count half (Mann and Whitney 1947). Of two classes, or of C > 2 the mean over each class against the others.
    It is exact, so every rank keeps its scores and `compute()` sends them to all: 12 bytes a sample and class.
    NaN where a class has no sample, or all of them.
    """

    def _nothing(self) -> dict[str, Any]:
        return {"scores": [], "labels": []}

    def update(self, found: Any, target: Any) -> None:
        """Adds samples: scores (N) of class 1, or logits (N, C), and target (N).

        Scores of samples are compared with each other, so logits of more than two classes become probabilities first.
        """
        scores = as_array(found, name="scores")
        labels = _labels(target)
        if labels.ndim != 1 or scores.shape[:1] != labels.shape or scores.ndim > 2 or 1 in scores.shape[1:]:
            raise ValueError(
                f"scores must be (N) or (N, C), and target (N), got shapes {scores.shape} and {labels.shape}"
            )
        classes = scores.shape[1] if scores.ndim == 2 else 2
        _check_labels("target", labels, np.ones(labels.shape, bool), classes)
        if np.isnan(scores).any():
            raise ValueError("scores must be numbers that can be ordered, got NaN")
        if scores.ndim == 1:
            scores = scores[:, None]
        elif classes == 2:
            scores = (scores[:, 1] - scores[:, 0])[:, None]
        else:
            powers = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
            scores = powers / powers.sum(axis=1, keepdims=True)
        if len(scores):
            self.seen["scores"].append(scores.astype(np.float64))
            self.seen["labels"].append(labels.astype(np.int64))

    def _answer(self, seen: dict[str, Any]) -> float:
        if not seen["labels"]:
            return math.nan
        scores, labels = (np.concatenate(seen[name]) for name in ("scores", "labels"))
        if scores.shape[1] == 1:
            return _area(scores[:, 0], labels == 1)
        areas = [_area(column, labels == label) for label, column in enumerate(scores.T)]
        return math.fsum(areas) / len(areas)


class Perplexity(Mean):
    """The exponential of the mean cross-entropy of the target tokens, the usual measure of language models.

    ignore_index: a label that does not count, such as padding.
    """

    options = ("ignore_index",)

    def __init__(self, ignore_index: int | None = None, *, comm: Any = None) -> None:
        self.ignore_index = int_or_none("ignore_index", ignore_index)
        super().__init__(comm)

    def update(self, found: Any, target: Any) -> None:  # type: ignore[override]
        """Adds tokens: logits (N, C) or (N, C, ...) with the classes in axis 1, and target (N) or (N, ...)."""
        logits, wanted, counted = _logits_and_labels(found, target, self.ignore_index)
        _check_labels("target", wanted, counted, logits.shape[1])
        exact = logits.astype(np.float64)
        peak = exact.max(axis=1, keepdims=True)
        scale = np.log(np.exp(exact - peak).sum(axis=1)) + peak[:, 0]
        own = np.take_along_axis(exact, np.expand_dims(np.where(counted, wanted, 0), 1), 1)[:, 0]
        super().update((scale - own)[counted])

    def _answer(self, seen: dict[str, Any]) -> float:
        mean = super()._answer(seen)
        return math.exp(mean) if mean < 709 else mean * math.inf


def _area(scores: Array, is_class: Array) -> float:
    order, counts = np.unique(scores, return_inverse=True, return_counts=True)[1:]
    ends = np.cumsum(counts)
    twice_rank = 2 * ends - counts + 1  # of equal scores, the mean of their ranks
    inside = int(is_class.sum())
    outside = len(scores) - inside
    won = int(twice_rank[order.ravel()][is_class].sum()) - inside * (inside + 1)
    return won / (2 * inside * outside) if inside and outside else math.nan


def _ratio(part: Any, whole: Any) -> float:
    return int(part) / int(whole) if whole else 0.0


def _shares(counts: Array) -> tuple[Array, Array, Array]:
    """Precision, recall and F1 of each class."""
    right, rows, columns = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    return tuple(
        np.divide(a, b, out=np.zeros(len(right)), where=b > 0)
        for a, b in ((right, columns), (right, rows), (2 * right, rows + columns))
    )


def _logits_or_labels(found: Any, target: Any, ignore_index: int | None) -> tuple[Array, Array, Array]:
    """Logits or predicted labels, integer labels of shapes that fit, and which of them count."""
    found, target = as_array(found, name="predictions"), _labels(target)
    if found.shape == target.shape:
        if found.dtype.kind not in "iub" and found.size:
            raise TypeError(f"predicted labels must be integers, got {found.dtype} of the target's shape {found.shape}")
    elif found.ndim != target.ndim + 1 or (found.shape[:1] + found.shape[2:]) != target.shape:
        raise ValueError(
            f"logits must have a class axis after the first of target {target.shape}, and labels its shape, "
            f"got {found.shape}"
        )
    return found, target, np.ones(target.shape, bool) if ignore_index is None else target != ignore_index


def _logits_and_labels(found: Any, target: Any, ignore_index: int | None) -> tuple[Array, Array, Array]:
    """As `_logits_or_labels`, without the labels."""
    logits, wanted, counted = _logits_or_labels(found, target, ignore_index)
    if logits.shape == wanted.shape:
        raise ValueError(f"logits must have an axis of classes, got the target's shape {wanted.shape}")
    return logits, wanted, counted


def _labels(target: Any) -> Array:
    array = as_array(target, name="target")
    if array.dtype.kind not in "iub":
        if array.size:
            raise TypeError(f"target must hold integers, got {array.dtype}")
        array = array.astype(np.int64)  # an empty list
    if array.ndim == 0:
        raise ValueError("target must have one label per sample, got a single number")
    return array


def _numbered(labels: Any, names: list[str]) -> Any:
    """Numbers for labels that are names; anything else as it is."""
    if isinstance(labels, Tensor):
        return labels
    array = np.asarray(labels)
    if array.dtype.kind not in "OUT":
        return labels
    numbers = {name: number for number, name in enumerate(names)}
    unknown = next((label for label in array.ravel().tolist() if label not in numbers), None)
    if unknown is not None:
        raise ValueError(f"labels must be among the names {', '.join(names)}, got {unknown!r}")
    return np.array([numbers[label] for label in array.ravel().tolist()], np.int64).reshape(array.shape)


def _among_largest(logits: Array, labels: Array, k: int) -> Array:
    """Whether each label's logit is among the k largest, of equal ones the first; never if it is NaN."""
    index = np.expand_dims(labels, 1)
    own = np.take_along_axis(logits, index, 1)
    if k == 1:
        right: Array = (logits.argmax(axis=1) == labels) & (own == own)[:, 0]
        return right
    classes = np.arange(logits.shape[1]).reshape(-1, *[1] * (labels.ndim - 1))
    # Before it come larger logits, equal ones of smaller labels, and all if one of the two is NaN.
    before = ~(logits <= own) | ((logits == own) & (classes < index))
    right = before.sum(axis=1) < k
    return right


def _check_labels(name: str, labels: Array, counted: Array, classes: int) -> None:
    """IndexError if a label is out of range."""
    wrong = counted & ((labels < 0) | (labels >= classes))
    if wrong.any():
        place = np.unravel_index(int(wrong.argmax()), wrong.shape)
        raise IndexError(f"{name} must be in [0, {classes}), got {labels[place]} in row {place[0]}")
