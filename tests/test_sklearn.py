"""Estimators for scikit-learn: its own checks, what people do with estimators, and the same bits on any ranks."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn
from sorix_dist.train.recorder import read_records
from tests.support.launching import ROOT, needs_mpirun, run_ranks

sklearn = pytest.importorskip("sklearn")

from sklearn.base import clone  # noqa: E402
from sklearn.datasets import make_classification, make_regression  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

from sorix_dist.sklearn import Classifier, Regressor  # noqa: E402

WEIGHTS = "batches are drawn from the samples that are there, so repeated rows and weights are other batches"


@parametrize_with_checks(
    [Classifier(), Regressor()],
    expected_failed_checks=lambda estimator: {"check_sample_weight_equivalence_on_dense_data": WEIGHTS},
)
def test_as_scikit_learn_wants_it(estimator: Any, check: Any) -> None:
    check(estimator)


def classes(labels: tuple[str, ...] = ("ant", "bee", "cat")) -> tuple[Any, Any]:
    x, y = make_classification(300, 8, n_informative=6, n_classes=len(labels), random_state=0, class_sep=2.0)
    return x, np.array(labels)[y]


def test_a_table_with_labels_that_are_texts() -> None:
    pandas = pytest.importorskip("pandas")
    x, y = classes()
    table = pandas.DataFrame(1000 * x + 5000, columns=[f"column {i}" for i in range(8)])
    table["species"] = y
    classifier = Classifier(max_iter=60, random_state=0).fit(table.drop(columns="species"), table["species"])
    assert classifier.classes_.tolist() == ["ant", "bee", "cat"]
    assert classifier.feature_names_in_[0] == "column 0"
    assert classifier.score(table.drop(columns="species"), table["species"]) > 0.9
    assert np.allclose(classifier.predict_proba(table.drop(columns="species")).sum(axis=1), 1)
    with pytest.raises(ValueError, match="feature names should match"):
        classifier.predict(table.drop(columns="species").rename(columns={"column 0": "other"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_iter": 0}, "max_iter must be >= 1, got 0"),
        ({"hidden_layer_sizes": (4, 0)}, "hidden_layer_sizes: each must be >= 1, got 0"),
        ({"hidden_layer_sizes": "x"}, "hidden_layer_sizes: each must be an integer >= 1, got 'x'"),
        ({"y": np.zeros((3, 2))}, r"one target for each sample, got shape \(3, 2\): .* MultiOutputRegressor"),
        ({"X": "texts"}, "texts in the column 'kind': drop it, or encode it"),
    ],
)
def test_wrong_input_names_the_argument(change: dict[str, Any], message: str) -> None:
    pandas = pytest.importorskip("pandas")
    X = pandas.DataFrame({"width": [1.0, 2.0, 3.0]})
    X = X.assign(kind="oak") if change.pop("X", None) else X
    y = change.pop("y", [0, 1, 0])
    for estimator in (Classifier(**change), Regressor(**change)):
        with pytest.raises(ValueError, match=message):
            estimator.fit(X, y)


def test_one_hidden_layer_may_be_a_number() -> None:
    assert len(list(Classifier(5, max_iter=1).fit([[0.0], [1.0]], [0, 1]).model_.parameters())) == 4


def test_unscaled_targets_of_a_regressor() -> None:
    x, y = make_regression(300, 5, noise=1.0, random_state=0)
    regressor = Regressor((32,), max_iter=150, learning_rate=0.01, random_state=0).fit(x, 1e4 + 100 * y)
    assert regressor.score(x, 1e4 + 100 * y) > 0.95


def test_in_a_pipeline_a_search_and_cross_validation() -> None:
    x, y = classes(("no", "yes"))
    pipeline = make_pipeline(StandardScaler(), Classifier(max_iter=20, batch_size=20, random_state=0))
    assert cross_val_score(pipeline, x, y, cv=3).mean() > 0.8
    grid = {"classifier__hidden_layer_sizes": [(1,), (32,)], "classifier__class_weight": [None, "balanced"]}
    search = GridSearchCV(pipeline, grid, cv=2, n_jobs=2).fit(x, y)
    assert search.best_score_ > 0.8
    assert search.best_params_["classifier__hidden_layer_sizes"] == (32,)


def test_pickle_and_clone() -> None:
    x, y = classes()
    classifier = Classifier(max_iter=5, random_state=0, class_weight="balanced").fit(x, y)
    again = pickle.loads(pickle.dumps(classifier))
    assert np.array_equal(again.predict_proba(x), classifier.predict_proba(x))
    fresh = clone(classifier)
    assert fresh.get_params() == classifier.get_params()
    assert not hasattr(fresh, "model_")
    assert np.array_equal(fresh.fit(x, y).predict_proba(x), classifier.predict_proba(x))


def test_early_stopping_warm_start_and_partial_fit() -> None:
    x, y = classes()
    stopped = Classifier(early_stopping=True, tol=1e9, n_iter_no_change=3, random_state=0).fit(x, y)
    assert stopped.n_iter_ == 4
    assert "val_loss" in stopped.history_[0]
    warm = Classifier(max_iter=3, warm_start=True, random_state=0).fit(x, y)
    first = warm.loss_curve_[-1]
    warm.fit(x, y)
    assert warm.n_iter_ == 6
    assert warm.loss_curve_[-1] < first
    part = Classifier(random_state=0)
    with pytest.raises(ValueError, match="classes must be given in the first call"):
        part.partial_fit(x, y)
    for start in range(0, 300, 60):
        part.partial_fit(x[start : start + 60], y[start : start + 60], classes=["ant", "bee", "cat", "dog"])
    assert part.n_iter_ == 5
    assert part.predict_proba(x).shape == (300, 4)
    with pytest.raises(ValueError, match=r"the known classes \['ant'.*got \['eel'\]"):
        part.partial_fit(x[:1], ["eel"])


def test_weights() -> None:
    x, y = classes(("no", "yes"))
    ignored = np.where(y == "no", 0.0, 3.0)
    assert set(Classifier(max_iter=30, random_state=0).fit(x, y, sample_weight=ignored).predict(x)) == {"yes"}
    by_class = Classifier(max_iter=30, random_state=0, class_weight={"no": 0.0, "yes": 3.0}).fit(x, y)
    by_sample = Classifier(max_iter=30, random_state=0).fit(x, y, sample_weight=ignored)
    assert np.array_equal(by_class.predict_proba(x), by_sample.predict_proba(x))
    with pytest.raises(ValueError, match="must leave a sample with a weight above 0, got none"):
        Classifier(class_weight={"no": 0.0, "yes": 0.0}).fit(x, y)


def test_a_model_of_the_users_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = classes()

    def make(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(inputs, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, outputs))

    classifier = Classifier(
        model=make, optimizer="sgd", learning_rate=0.05, max_iter=10, random_state=0, verbose=True, record=str(tmp_path)
    ).fit(x.astype(np.float32), y)
    assert isinstance(classifier.model_[1], nn.BatchNorm1d)
    assert classifier.predict_proba(x).dtype == np.float32
    assert len(read_records(tmp_path)) == len(capsys.readouterr().out.splitlines()) == 10
    with pytest.raises(ValueError, match="optimizer must be one of adam, sgd or a function, got 'adm'"):
        Classifier(optimizer="adm").fit(x, y)


def test_random_numbers_of_the_program_stay() -> None:
    sx.manual_seed(5)
    wanted = sx.randn(3).numpy()
    sx.manual_seed(5)
    Classifier(max_iter=1, random_state=0).fit(*classes())
    assert np.array_equal(sx.randn(3).numpy(), wanted)


def ran(arguments: list[str], folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_script_of_the_readme(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    script = re.search(r"<!-- run by tests/test_sklearn.py -->\n```py\n(.*?)```", text, re.DOTALL)
    assert script is not None
    assert len(script[1].splitlines()) <= 15
    out = ran(["-c", script[1]], tmp_path)
    assert float(out.split()[-1]) > 0.9
    assert re.search(r"epoch 3/40  step 1/1  loss [\d.]+  [\d,]+ samples/s  0:\d\d left", out)
    assert "val_accuracy" in ran(["-m", "sorix_dist", "plot", "runs/iris"], tmp_path)


def test_example(tmp_path: Path) -> None:
    out = ran([str(ROOT / "examples" / "sklearn_estimator.py")], tmp_path)
    assert float(out.split()[-1].rstrip("%")) > 90
    assert len(read_records(tmp_path / "runs" / "wine")) == 40


@needs_mpirun
@pytest.mark.timeout(200)
def test_same_bits_on_1_and_4_ranks() -> None:
    pytest.importorskip("mpi4py")
    x, y = classes()
    options = {"early_stopping": True, "class_weight": "balanced", "max_iter": 4, "random_state": 0}
    one, four = (Classifier(**options, virtual_shards=4, num_proc=n).fit(x, y) for n in (1, 4))
    weights, others = one.model_.state_dict(), four.model_.state_dict()
    assert all(np.array_equal(weights[name].numpy(), others[name].numpy()) for name in weights)
    assert one.loss_curve_ == four.loss_curve_


SCRIPT = """
import numpy as np, sorix_dist as sx
from sklearn.datasets import make_classification
from sklearn.model_selection import GridSearchCV
from sorix_dist.sklearn import Classifier
x, y = make_classification(200, random_state=0)
classifier = Classifier(max_iter=10).fit(x, y)
weights = [p.numpy().tobytes() for p in classifier.model_.parameters()]
assert sx.broadcast(weights) == weights
search = GridSearchCV(Classifier(max_iter=2, random_state=0), {"batch_size": [50, 100]}, cv=2).fit(x, y)
sx.print(sx.size(), round(classifier.score(x, y), 1))
"""


@needs_mpirun
def test_under_mpirun() -> None:
    pytest.importorskip("mpi4py")
    ended = run_ranks(2, "-c", SCRIPT)
    assert ended.code == 0, ended.err
    assert ended.out.split()[0] == "2"
