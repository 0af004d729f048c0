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


CHECKS = [accuracy, confusion_matrix, mean_of_samples, mean_of_batches, states_go_on]
