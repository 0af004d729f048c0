"""sorix's scores, calls and paths of modules."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
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


def test_errors_of_unsigned_integers_do_not_wrap_around() -> None:
    assert sx.metrics.mean_absolute_error(np.uint8([0, 3]), np.uint8([1, 1])) == 1.5


def test_reports() -> None:
    lines = sx.metrics.classification_report(TRUE, PREDICTED, target_names=["none", "one", "more"]).splitlines()
    assert lines[3].split() == ["more", "0.67", "0.67", "0.67", "3"]
    assert lines[5].split() == ["accuracy", "0.57", "7"]
    found = sx.metrics.classification_report(TRUE, PREDICTED, output_dict=True)
    assert found["1"] == {"precision": 0.5, "recall": 0.5, "f1-score": 0.5, "support": 2}
    assert found["weighted avg"]["f1-score"] == pytest.approx(4 / 7)
    assert sx.metrics.classification_report(TRUE, PREDICTED, labels=[2], output_dict=True).keys() >= {"2", "macro avg"}
    with pytest.raises(ValueError, match="length of target_names does not match: 1 for 3 classes"):
        sx.metrics.classification_report(TRUE, PREDICTED, target_names=["one"])
    lines = sx.metrics.regression_report([2.0, 4.0], [1.0, 5.0]).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["0.0000", "1.0000", "1.0000", "1.0000", "37.5000"]


def test_threshold() -> None:
    best = sx.metrics.find_optimal_threshold
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert best(sx.tensor([0, 0, 1, 1]), [0.1, 0.42, 0.63, 0.9], n_thresholds=10) == (0.5, 1)
        assert best([0, 1], [0.5, 0.5], lambda t, p: 1 / float(p.mean()), n_thresholds=4) == (0.25, 1)  # none at 0.75
    for arguments, message in (
        (([0], [0.5], lambda t, p: 1 / 0), "failed for all 199"),
        (([], []), "must not be empty"),
        (([0], [0.5, 1]), "same number of elements"),
    ):
        with pytest.raises((ValueError, RuntimeError), match=message):
            best(*arguments)
    with pytest.raises(ValueError, match="n_thresholds must be >= 2, got 1"):
        best([0], [0.5], n_thresholds=1)


class _Described(sx.nn.Module):
    def extra_repr(self) -> str:
        return "rows\ncolumns"


X = sx.tensor([1, 2])
CALLS: dict[str, Callable[[], bool]] = {  # what sorix's own tests call, and what they expect
    "to_numpy": lambda: X.to_numpy(copy=True) is not X.data and X.to_numpy(dtype=float).dtype == np.float64,
    "from_numpy": lambda: sx.from_numpy(X) is X,
    "repeat": lambda: sx.repeat(np.array([[1, 2]]), 2).tolist() == [[1, 2, 1, 2]],
    "std_dev": lambda: sx.nn.Linear(10, 5, init="xavier").std_dev == np.sqrt(2 / 15),
    "extra_repr": lambda: repr(_Described()) == "_Described(\n  rows\n  columns\n)",
}


@pytest.mark.parametrize("name", CALLS)
def test_calls(name: str) -> None:
    assert CALLS[name]()


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
