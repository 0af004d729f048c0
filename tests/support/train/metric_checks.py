"""What metrics must give on any number of ranks, as checks that every rank of a communicator runs."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import Any

import numpy as np

import sorix_dist as sx
from sorix_dist.utils.data import shard_bounds


def samples(count: int) -> tuple[Any, Any]:
    """The same logits and labels on every rank; every 5th label is -1, some logits are equal."""
    numbers = np.random.default_rng(count)
    labels = numbers.integers(0, 4, count)
    labels[::5] = -1
    return numbers.integers(0, 5, (count, 4)).astype(np.float32), labels


def mine(count: int) -> slice:
    return slice(*shard_bounds(count, sx.rank(), sx.size()))


def first_largest(row: Any, k: int) -> list[int]:
    """The k classes with the largest logits, of equal ones the first, without NumPy's help."""
    return sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]


def accuracy(count: int) -> None:
    logits, labels = samples(count)
    part = mine(count)
    for k in (1, 2, 4):
        right = sum(
            label in first_largest(row, k) for row, label in zip(logits.tolist(), labels.tolist()) if label >= 0
        )
        counted = int((labels >= 0).sum())
        metric = sx.metrics.Accuracy(ignore_index=-1, top_k=k)
        metric.update(sx.tensor(logits[part]), sx.tensor(labels[part]))
        got = metric.compute()
        assert got == right / counted if counted else math.isnan(got)


def confusion_matrix(count: int) -> None:
    logits, labels = samples(count)
    part = mine(count)
    wanted = np.zeros((4, 4), np.int64)
    for row, label in zip(logits.tolist(), labels.tolist()):
        if label >= 0:
            wanted[label, first_largest(row, 1)[0]] += 1
    from_logits, from_labels = (sx.metrics.ConfusionMatrix(4, ignore_index=-1) for _ in range(2))
    from_logits.update(logits[part], labels[part])
    from_labels.update(logits[part].argmax(axis=1), labels[part])
    for metric in (from_logits, from_labels):
        got = metric.compute()
        assert got.dtype == np.int64
        assert np.array_equal(got, wanted)


def mean_of_samples(count: int) -> None:
    """Bit for bit the exact mean, which a sum in floats misses."""
    numbers = np.random.default_rng(count)
    values = numbers.standard_normal(count) * 10.0 ** numbers.integers(-200, 200, count)
    values = np.concatenate([values, -values[: count // 2]])
    wanted = float(sum(map(Fraction, values), Fraction(0)) / len(values)) if count else math.nan
    whole, pieces = sx.metrics.Mean(), sx.metrics.Mean()
    part = values[mine(len(values))]
    whole.update(part)
    for value in part[::-1]:
        pieces.update(value)
    assert repr(whole.compute()) == repr(pieces.compute()) == repr(wanted)


def mean_of_batches(count: int) -> None:
    """Batches that ranks of any number share out as wholes, weighted by their rows."""
    numbers = np.random.default_rng(count)
    losses, rows = numbers.random(count).tolist(), numbers.integers(0, 9, count).tolist()
    weight = sum(rows)
    products = sum((Fraction(loss) * n for loss, n in zip(losses, rows)), Fraction(0))
    metric = sx.metrics.Mean()
    for number in range(sx.rank(), count, sx.size()):
        metric.update(losses[number] if rows[number] else math.nan, rows[number])
    assert repr(metric.compute()) == repr(float(products / weight) if weight else math.nan)


def states_go_on(count: int) -> None:
    """What was seen before a stop and after it is counted once, whatever the ranks."""
    logits, labels = samples(count)
    part = mine(count)
    for make, values in (
        (lambda: sx.metrics.Accuracy(ignore_index=-1), (logits, labels)),
        (lambda: sx.metrics.ConfusionMatrix(4, -1), (logits, labels)),
        (sx.metrics.Mean, (logits[:, 0],)),
        (lambda: sx.metrics.F1(4, ignore_index=-1), (logits, labels)),
        (sx.metrics.AUROC, (logits, np.abs(labels))),
        (sx.metrics.R2, (logits[:, 0], logits[:, 1])),
    ):
        once, before, after = make(), make(), make()
        once.update(*(v[part] for v in values))
        once.update(*(v[part] for v in values))
        before.update(*(v[part] for v in values))
        state = before.state_dict()
        assert state == sx.broadcast(state)
        after.update(*(v[part] for v in values))  # is forgotten
        after.load_state_dict(json.loads(json.dumps(state)))
        after.update(*(v[part] for v in values))
        assert repr(after.compute()) == repr(once.compute())
        after.reset()
        assert repr(after.compute()) == repr(make().compute())


def classes(count: int) -> None:
    """Precision, recall and F1 by counting, class by class."""
    logits, labels = samples(count)
    found = logits.argmax(axis=1)
    part = mine(count)
    wanted: dict[str, list[float]] = {"Precision": [], "Recall": [], "F1": []}
    for label in range(4):
        right = int(((labels == label) & (found == label)).sum())
        rows, columns = int((labels == label).sum()), int(((found == label) & (labels >= 0)).sum())
        wanted["Precision"].append(right / columns if columns else 0.0)
        wanted["Recall"].append(right / rows if rows else 0.0)
        wanted["F1"].append(2 * right / (rows + columns) if rows + columns else 0.0)
    occur = [label in labels or label in found[labels >= 0] for label in range(4)]
    for name, shares in wanted.items():
        kind = getattr(sx.metrics, name)
        each, macro, micro = (kind(4, average, -1) for average in (None, "macro", "micro"))
        for metric in (each, macro, micro):
            metric.update(sx.tensor(logits[part]), labels[part])
        assert each.compute().tolist() == shares
        occurring = [share for share, there in zip(shares, occur) if there]
        got = macro.compute()
        assert math.isclose(got, sum(occurring) / len(occurring)) if occurring else math.isnan(got)
        accuracy = sx.metrics.Accuracy(-1)
        accuracy.update(logits[part], labels[part])
        assert repr(micro.compute()) == repr(accuracy.compute())


def names_of_classes(count: int) -> None:
    names = np.array(["ant", "bee", "cat", "dog"])
    logits, labels = samples(count)
    labels = np.abs(labels)
    part = mine(count)
    by_name, by_number = sx.metrics.ConfusionMatrix(names), sx.metrics.ConfusionMatrix(4)
    by_name.update(names[logits.argmax(axis=1)][part], names[labels][part].astype(object))
    by_number.update(logits[part], labels[part])
    assert np.array_equal(by_name.compute(), by_number.compute())
    assert [line.split()[0] for line in by_name.table().splitlines()] == ["class", *names, "accuracy"]


def area_under_the_curve(count: int) -> None:
    """All pairs of a sample of the class and another one, ties for half."""
    logits, labels = samples(count)
    labels = np.abs(labels)
    part = mine(count)
    # As the metric computes them: other roundings would break ties that these small integers are chosen to have.
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities = powers / powers.sum(axis=1, keepdims=True)

    def pairs(scores: Any, is_class: Any) -> float:
        inside, outside = scores[is_class], scores[~is_class]
        won = sum((a > b) + (a == b) / 2 for a in inside.tolist() for b in outside.tolist())
        return won / (len(inside) * len(outside)) if len(inside) and len(outside) else math.nan

    metric, binary, of_two = (sx.metrics.AUROC() for _ in range(3))
    metric.update(logits[part], labels[part])
    binary.update(logits[part, 0], (labels == 0)[part])
    of_two.update(np.stack([-logits[:, 0], np.zeros(count)], 1)[part], (labels == 0)[part])
    wanted = [pairs(probabilities[:, label], labels == label) for label in range(4)]
    assert np.isclose(metric.compute(), np.mean(wanted) if count else math.nan, equal_nan=True)
    assert repr(binary.compute()) == repr(of_two.compute()) == repr(pairs(logits[:, 0], labels == 0))


def regression(count: int) -> None:
    """By exact fractions; the targets lie far from 0, where sums of squares in floats would lose the variance."""
    numbers = np.random.default_rng(count)
    target = 1e8 + numbers.standard_normal(count)
    found = target + numbers.standard_normal(count)
    part = mine(count)
    metrics = sx.metrics.MSE(), sx.metrics.MAE(), sx.metrics.R2()
    for metric in metrics:
        metric.update(sx.tensor(found[part]), target[part])
        if metric is metrics[2]:  # in the other shape
            metric.reset()
            metric.update(found[part, None], target[part, None])
    errors = [float(f - y) for f, y in zip(found, target)]
    squares = sum((Fraction(e * e) for e in errors), Fraction(0))
    mean = sum(map(Fraction, target), Fraction(0)) / max(count, 1)
    spread = sum(((Fraction(y) - mean) ** 2 for y in target), Fraction(0))
    wanted = [
        float(squares / count) if count else math.nan,
        float(sum((Fraction(abs(e)) for e in errors), Fraction(0)) / count) if count else math.nan,
        float(1 - squares / spread) if count > 1 else math.nan,
    ]
    assert [repr(metric.compute()) for metric in metrics] == list(map(repr, wanted))


def perplexity(count: int) -> None:
    logits, labels = samples(count)
    part = mine(count)
    metric = sx.metrics.Perplexity(ignore_index=-1)
    metric.update(sx.tensor(logits[part]), labels[part])
    chosen = [float(np.log(np.exp(row).sum()) - row[y]) for row, y in zip(logits.astype(float), labels) if y >= 0]
    assert np.isclose(metric.compute(), np.exp(np.mean(chosen)) if chosen else math.nan, equal_nan=True)


CHECKS = [
    accuracy, confusion_matrix, mean_of_samples, mean_of_batches, states_go_on,
    classes, names_of_classes, area_under_the_curve, regression, perplexity,
]  # fmt: skip
