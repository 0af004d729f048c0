"""Metrics: exact on every number of ranks, and clear about bad input."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sorix_dist as sx
from sorix_dist import nn
from sorix_dist.comm import CollectiveMismatch, run_threads
from sorix_dist.train.metrics import base
from sorix_dist.utils.data import DataLoader, Dataset
from tests.support.launching import needs_mpirun, run_ranks
from tests.support.train import metric_checks

Accuracy, ConfusionMatrix, Mean = sx.metrics.Accuracy, sx.metrics.ConfusionMatrix, sx.metrics.Mean


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("check", metric_checks.CHECKS, ids=lambda check: check.__name__)
def test_equal_to_one_process_exactly(check: Callable[[int], None], size: int) -> None:
    def work() -> None:
        for count in range(41):
            check(count)

    run_threads(work, size, timeout=100)


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(finite, max_size=30))
def test_sums_are_exact(values: list[float]) -> None:
    assert base.exact_sum(np.array(values, np.float64)) == sum(map(Fraction, values), Fraction(0))


@given(st.lists(st.tuples(finite, finite), max_size=20))
def test_sums_of_products_are_exact(pairs: list[tuple[float, float]]) -> None:
    wanted = sum((Fraction(a) * Fraction(b) for a, b in pairs), Fraction(0))
    assert base.exact_dot(*np.array(pairs, np.float64).reshape(-1, 2).T) == wanted


def test_products_of_usual_numbers_are_exact() -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 999)) * 10.0 ** np.random.default_rng(1).integers(-99, 99, 999)
    assert base.exact_dot(a, b) == sum((Fraction(x) * Fraction(y) for x, y in zip(a, b)), Fraction(0))


@given(st.lists(st.tuples(finite, st.one_of(st.integers(0, 2**63), st.floats(0, 1e300))), max_size=12), st.randoms())
def test_means_are_exact_in_any_order(pairs: list[tuple[float, float]], random: Any) -> None:
    weight = sum((Fraction(w) for _, w in pairs), Fraction(0))
    products = sum((Fraction(v) * Fraction(w) for v, w in pairs), Fraction(0))
    wanted = float(products / weight) if weight else math.nan
    forward, shuffled, arrays = Mean(), Mean(), Mean()
    for value, share in pairs:
        forward.update(value, share)
    mixed = random.sample(pairs, len(pairs))
    for value, share in mixed:
        shuffled.update(np.array([value]), share)
    arrays.update([v for v, _ in pairs], np.array([float(w) for _, w in pairs]))
    assert repr(forward.compute()) == repr(shuffled.compute()) == repr(wanted)
    if all(float(w) == w for _, w in pairs):
        assert repr(arrays.compute()) == repr(wanted)


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8", "int64", "uint64", "uint8", "bool"])
def test_arrays_of_every_dtype(dtype: str) -> None:
    numbers = np.random.default_rng(0)
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        values = numbers.integers(limits.min, limits.max, 999, kind, endpoint=True)
    else:
        values = (numbers.standard_normal(999) * 9).astype(kind)
    wanted = float(sum(map(Fraction, values.tolist()), Fraction(0)) / 999)
    metric = Mean()
    metric.update(values.reshape(27, 37))
    assert metric.compute() == wanted


def test_a_million_large_numbers_lose_nothing() -> None:
    value = math.nextafter(1.0, 0)  # a mantissa of ones
    assert base.exact_sum(np.full(1 << 20, value)) == Fraction(value) * (1 << 20)


def test_infinities_and_nan() -> None:
    def mean(*values: float) -> float:
        metric, array = Mean(), Mean()
        for value in values:
            metric.update(value)
        array.update(np.array(values, np.float32))
        assert repr(metric.compute()) == repr(array.compute())
        return metric.compute()

    assert mean(1, math.inf) == math.inf
    assert mean(1, -math.inf) == -math.inf
    assert math.isnan(mean(math.inf, -math.inf))
    assert math.isnan(mean(1, math.nan))
    ignored = Mean()
    ignored.update(math.nan, 0)
    ignored.update([math.nan, 3.0], np.array([0.0, 2.0]))
    assert ignored.compute() == 3


def test_an_epoch_in_the_loop_of_a_user() -> None:
    """The loss of each sample: the same bits on every number of ranks, and at any batch size."""
    x = np.random.default_rng(0).standard_normal((37, 4))
    y = np.arange(37) % 3

    def epoch(batch_size: int) -> tuple[float, float, float]:
        losses, batches, accuracy = sx.metrics.Mean(), sx.metrics.Mean(), sx.metrics.Accuracy()
        for xb, yb in DataLoader(Dataset(x, y), batch_size):
            logits = xb[:, :3]
            losses.update(nn.functional.cross_entropy(logits, yb, reduction="none"))
            batches.update(nn.functional.cross_entropy(logits, yb).item(), len(yb))
            accuracy.update(logits, yb)
        return losses.compute(), batches.compute(), accuracy.compute()

    got = [each for size in (1, 2, 3, 5) for batch in (4, 7, 37) for each in run_threads(epoch, size, (batch,))]
    assert len({loss for loss, _, _ in got}) == 1
    assert len({right for _, _, right in got}) == 1
    assert all(math.isclose(mean, got[0][0], rel_tol=1e-12) for _, mean, _ in got)


def test_means_of_this_ranks_rows_count_by_them() -> None:
    """As means of batches that are weighted by their rows, though no backward has made the means global."""
    x = np.random.default_rng(0).standard_normal(50)

    def mean() -> float:
        tensors, numbers = sx.metrics.Mean(), sx.metrics.Mean()
        for xb in DataLoader(Dataset(x), batch_size=7):
            tensors.update(xb.mean(), xb.shape[0])
            numbers.update((xb**2).mean().item(), xb.size(0))
        return tensors.compute() + numbers.compute()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(run_threads(mean, 3), [x.mean() + (x**2).mean()] * 3, rtol=1e-12)


def test_classes_in_the_second_axis() -> None:
    numbers = np.random.default_rng(0)
    logits, labels = numbers.standard_normal((5, 3, 2, 4)), numbers.integers(0, 3, (5, 2, 4))
    accuracy, matrix = Accuracy(), ConfusionMatrix(3)
    for metric in (accuracy, matrix):
        metric.update(logits, labels)
    assert accuracy.compute() == (logits.argmax(axis=1) == labels).mean()
    assert matrix.compute().sum() == 40
    assert matrix.compute().trace() / 40 == accuracy.compute()


def test_logits_that_are_not_numbers_are_never_right() -> None:
    logits = np.array([[math.nan, 0.0, 1.0], [math.nan, math.nan, math.nan], [math.nan, math.nan, 0.0]])
    for metric in (Accuracy(), Accuracy(top_k=2)):
        metric.update(logits, [0, 1, 2])
        assert metric.compute() == 0


def test_ranks_with_other_options() -> None:
    def work() -> str:
        metric = sx.metrics.ConfusionMatrix(3 + (sx.rank() == 2))
        with pytest.raises(ValueError) as caught:
            metric.compute()
        return str(caught.value)

    for said in run_threads(work, 3, timeout=60):
        assert re.search(r"rank 0 has ConfusionMatrix\(num_classes=3.*rank 2 has ConfusionMatrix\(num_classes=4", said)


def test_ranks_with_other_metrics() -> None:
    def work() -> None:
        metric: Any = sx.metrics.Mean() if sx.rank() else sx.metrics.Accuracy()
        with pytest.raises(ValueError, match=r"rank 0 has Accuracy\(.*rank 1 has Mean\(\)"):
            metric.compute()

    run_threads(work, 2, timeout=60)


def test_a_metric_of_some_ranks() -> None:
    def work() -> float:
        half = sx.parallel.world().split(sx.rank() % 2)
        metric = sx.metrics.Mean(comm=half)
        metric.update(sx.rank())
        return metric.compute()

    assert run_threads(work, 4, timeout=60) == [1, 2, 1, 2]


def test_states_of_other_metrics() -> None:
    state = ConfusionMatrix(3).state_dict()
    with pytest.raises(ValueError, match="num_classes is 4 here and was 3"):
        ConfusionMatrix(4).load_state_dict(state)
    with pytest.raises(
        ValueError, match="state_dict must have total, weight, odd, got num_classes, ignore_index, counts"
    ):
        Mean().load_state_dict(state)
    for counts in ([1, 2], [[-1] * 3] * 3, [[0.5] * 3] * 3):
        with pytest.raises(ValueError, match=r"counts must be integers >= 0 of shape \(3, 3\)"):
            ConfusionMatrix(3).load_state_dict({**state, "counts": counts})


def test_bad_values() -> None:
    mean = Mean()
    for weight in (-1, math.inf, math.nan, [-1.0]):
        with pytest.raises(ValueError, match="weight must be finite and >= 0, got"):
            mean.update(1.0, weight)
    for value in ("a", None, 1j, [1, [2]]):
        with pytest.raises(TypeError, match="value must be a number, or a tensor or array of numbers, got"):
            mean.update(value)
    with pytest.raises(ValueError, match=r"have the shape of value, got shapes \(3,\) and \(2,\)"):
        mean.update([1.0, 2.0], [1.0, 2.0, 3.0])
    assert math.isnan(mean.compute())


@pytest.mark.parametrize(
    ("metric", "found", "target", "error", "message"),
    [
        (Accuracy(), [[0.0, 1.0]], [2], IndexError, r"target must be in \[0, 2\), got 2 in row 0"),
        (Accuracy(), [[0.0, 1.0]], [-1], IndexError, r"target must be in \[0, 2\), got -1 in row 0"),
        (Accuracy(), [[0.0, 1.0]], [1.0], TypeError, "target must hold integers, got float32"),
        (
            Accuracy(),
            [0.3, 0.6],
            [0, 1],
            TypeError,
            r"labels must be integers, got float32 of the target's shape \(2,\)",
        ),
        (Accuracy(), [[0.0, 1.0]], [1, 0], ValueError, r"class axis after the first of target \(2,\).*got \(1, 2\)"),
        (Accuracy(), [0], 0, ValueError, "target must have one label per sample, got a single number"),
        (Accuracy(top_k=2), [0], [0], ValueError, r"top_k=2 needs logits, got labels of shape \(1,\)"),
        (Accuracy(top_k=3), [[0.0, 1.0]], [0], ValueError, "top_k must be at most the number of classes 2, got 3"),
        (
            ConfusionMatrix(3),
            [[0.0, 1.0]],
            [0],
            ValueError,
            r"logits must have 3 classes in axis 1, got shape \(1, 2\)",
        ),
        (ConfusionMatrix(3), [1, 3], [0, 1], IndexError, r"the predicted label must be in \[0, 3\), got 3 in row 1"),
        (ConfusionMatrix(3), [1, 2], [0, 3], IndexError, r"target must be in \[0, 3\), got 3 in row 1"),
    ],
)
def test_bad_samples(metric: Any, found: Any, target: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        metric.update(found, target)
    assert not metric.seen["counts"].any()  # nothing is counted by halves


def test_bad_options() -> None:
    for k in (0, 1.5, True, None):
        with pytest.raises(ValueError, match=r"top_k must be (an integer )?>= 1, got"):
            Accuracy(top_k=k)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_classes must be >= 1, got 0"):
        ConfusionMatrix(0)
    with pytest.raises(ValueError, match="ignore_index must be an integer or None, got 'a'"):
        Accuracy(ignore_index="a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_classes must be a number, or different names of classes, got"):
        ConfusionMatrix(["a", "a"])
    with pytest.raises(ValueError, match="average must be 'macro', 'micro', 'weighted' or None, got 'mean'"):
        sx.metrics.F1(3, "mean")  # type: ignore[arg-type]


def test_bad_samples_of_other_metrics() -> None:
    with pytest.raises(ValueError, match="labels must be among the names a, b, got 'c'"):
        ConfusionMatrix(["a", "b"]).update([0], ["c"])
    with pytest.raises(ValueError, match=r"same shape, got \(2, 1\) and \(2,\); `.squeeze\(1\)` removes the axis"):
        sx.metrics.MSE().update(np.zeros((2, 1)), np.zeros(2))
    with pytest.raises(ValueError, match=r"R2 takes one number a sample, got shape \(2, 3\)"):
        sx.metrics.R2().update(np.zeros((2, 3)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"scores must be \(N\) or \(N, C\), and target \(N\), got shapes \(2, 1\)"):
        sx.metrics.AUROC().update(np.zeros((2, 1)), [0, 1])
    with pytest.raises(ValueError, match="can be ordered, got NaN"):
        sx.metrics.AUROC().update([0.0, math.nan], [0, 1])
    with pytest.raises(ValueError, match=r"logits must have an axis of classes, got the target's shape \(2,\)"):
        sx.metrics.Perplexity().update([0, 1], [0, 1])


def test_r2_of_equal_targets() -> None:
    for found, wanted in (([5.0, 5.0], 1.0), ([5.0, 6.0], 0.0), ([math.inf, 5.0], math.nan)):
        metric = sx.metrics.R2()
        metric.update(found, [5.0, 5.0])
        assert repr(metric.compute()) == repr(wanted)


def test_as_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    numbers = np.random.default_rng(0)
    labels, logits = numbers.integers(0, 5, 300), numbers.standard_normal((300, 6))
    powers = np.exp(logits[:, :5])
    ours = {name: getattr(sx.metrics, name)(6, "weighted") for name in ("Precision", "Recall", "F1")}
    for name, metric in ours.items():
        metric.update(logits, labels)
        theirs = getattr(sklearn, f"{name.lower()}_score")
        assert math.isclose(
            metric.compute(), theirs(labels, logits.argmax(1), average="weighted", zero_division=0), rel_tol=1e-12
        )
    auroc, r2 = sx.metrics.AUROC(), sx.metrics.R2()
    auroc.update(logits[:, :5], labels)
    r2.update(logits[:, 0], labels)
    theirs = sklearn.roc_auc_score(labels, powers / powers.sum(axis=1, keepdims=True), multi_class="ovr")
    assert math.isclose(auroc.compute(), theirs, rel_tol=1e-12)
    assert math.isclose(r2.compute(), sklearn.r2_score(labels, logits[:, 0]), rel_tol=1e-12)


def test_compute_on_some_ranks_only() -> None:
    def work() -> None:
        if sx.is_main_process():
            Mean().compute()
        else:
            sx.parallel.world().gather_objects("something else")

    with pytest.raises(CollectiveMismatch, match=r"compute\(\) or state_dict\(\) of a metric, a call of all ranks,"):
        run_threads(work, 2, timeout=60)


@needs_mpirun
def test_compute_on_the_main_process_only(tmp_path: Path) -> None:
    """With a branch on the rank, which another rank leaves by the end of its script."""
    pytest.importorskip("mpi4py")
    script = tmp_path / "script.py"
    script.write_text(
        "import sorix_dist as sx\nmetric = sx.metrics.Mean()\nif sx.is_main_process():\n    print(metric.compute())\n"
    )
    ended = run_ranks(2, str(script))
    assert ended.code != 0
    assert re.search(r"rank 1 .*has ended.* of a metric, a call of all ranks, at .*script.py:4", ended.err + ended.out)


def test_accuracy_of_texts() -> None:
    accuracy = sx.metrics.Accuracy()
    accuracy.update(np.array(["owl", "cat", "cat"]), ["owl", "dog", "cat"])
    assert accuracy.compute() == 2 / 3
    with pytest.raises(TypeError, match="real numbers"):
        accuracy.update(sx.zeros(2, 3), np.array(["cat", "dog"]))
