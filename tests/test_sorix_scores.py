"""sorix's scores, and its paths of modules."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx

TRUE, PREDICTED = [0, 1, 2, 1, 0, 2, 2], [0, 2, 2, 1, 1, 2, 0]
# Each as sorix 1.0.7 gives it.
SCORES: dict[str, tuple[Any, ...]] = {
    "accuracy_score": ({}, 4 / 7),
    "precision_score": ({}, 0.5),
    "recall_score": ({"average": "macro"}, 5 / 9),
    "f1_score": ({"average": None}, [0.5, 0.5, 2 / 3]),
    "confusion_matrix": ({}, [[1, 1, 0], [0, 1, 1], [1, 0, 2]]),
    "mean_squared_error": ({}, 6 / 7),
    "root_mean_squared_error": ({}, (6 / 7) ** 0.5),
    "mean_absolute_error": ({}, 4 / 7),
    "r2_score": ({}, 1 - 6 / 7 / np.var(TRUE)),
}


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("kind", [list, np.array, sx.tensor])
def test_scores(name: str, kind: Any) -> None:
    options, expected = SCORES[name]
    found = getattr(sx.metrics, name)(kind(TRUE), kind(PREDICTED), **options)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_percentages_and_weights() -> None:
    assert sx.metrics.mean_absolute_percentage_error([2.0, 4.0], [1.0, 5.0]) == pytest.approx(0.375)
    weighted = sx.metrics.precision_score(TRUE, PREDICTED, average="weighted")
    assert weighted == pytest.approx((0.5 * 2 + 0.5 * 2 + 2 / 3 * 3) / 7)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"must have the same shape, got \(2,\) and \(2, 1\)"):
        sx.metrics.accuracy_score([0, 1], [[0], [1]])
    with pytest.raises(ValueError, match="average must be 'binary', 'macro', 'weighted' or None, got 'micro'"):
        sx.metrics.f1_score([0, 1], [0, 1], average="micro")
    with pytest.warns(RuntimeWarning, match="a class that is never found counts as 0"):
        assert sx.metrics.precision_score([1, 0], [0, 0]) == 0
    assert sx.metrics.precision_score([1, 0], [0, 0], zero_division=1) == 1


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("utils.math", ["add", "sin", "mean", "ceil"]), ("utils.utils", ["zeros", "cat", "argmax", "save", "load"]),
        ("cuda.cuda", ["is_available"]), ("metrics", ["r2_score"]),
    ],
)  # fmt: skip
def test_paths(path: str, names: list[str]) -> None:
    module = importlib.import_module(f"sorix_dist.{path}")
    for name in names:
        assert callable(getattr(module, name))
    assert not hasattr(module, "nothing")
