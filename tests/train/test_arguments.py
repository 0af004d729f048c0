"""Wrong arguments of what a script calls around its loop: errors that name the argument and what was given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    LabelEncoder,
    LengthBucketSampler,
    Sampler,
    Subset,
    normalize,
    one_hot,
    random_split,
    read_table,
)

DATA = Dataset(np.ones((6, 2), np.float32), np.zeros(6, np.int64))
TABLE = {"age": [1.0, 2.0], "kind": ["a", "b"], "wage": [1, None]}
NAN = float("nan")


def _fit(**options: Any) -> Any:
    model = nn.Linear(2, 2)
    given = {"model": model, "loader": DataLoader(DATA), "criterion": nn.CrossEntropyLoss(), "epochs": 1}
    given |= {"optimizer": optim.SGD(model.parameters(), lr=0.1), "verbose": False}
    return sx.fit(**(given | options))


def _first(*args: Any, **options: Any) -> Any:
    return next(iter(DataLoader(*args, **options)))


def _logged(value: Any) -> None:
    bar = sx.progress([1], shown=False)
    for _ in bar:
        bar.log(loss=value)


def _optimizer() -> optim.SGD:
    return optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)


def _labels(labels: Any = ("a", "b")) -> LabelEncoder:
    return LabelEncoder().fit(labels)


CASES: dict[str, Callable[[], Any]] = {
    "transform must be a function of a sample, got int 3": lambda: Dataset([1.0], transform=3),  # type: ignore[arg-type]
    "target_transform must be a function of a target, got str 'x'": lambda: Dataset([1.0], [1], None, "x"),  # type: ignore[arg-type]
    "X must hold numbers, got NoneType": lambda: Dataset(None),
    "dataset must hold samples, got str 'digits.npz'": lambda: DataLoader("digits.npz"),
    "dataset must hold samples, got dict": lambda: DataLoader(TABLE),
    "dataset must hold samples, got ndarray": lambda: DataLoader(np.array(3)),
    "shuffle must be True or False, got str 'no'": lambda: DataLoader(DATA, shuffle="no"),  # type: ignore[arg-type]
    "drop_last must be True or False, got float 0.5": lambda: DataLoader(DATA, drop_last=0.5),  # type: ignore[arg-type]
    "shard must be True or False, got NoneType": lambda: DataLoader(DATA, shard=None),  # type: ignore[arg-type]
    "state_dict must be a dict .*, got NoneType": lambda: DataLoader(DATA).load_state_dict(None),  # type: ignore[arg-type]
    r"state_dict must have batches, got \['epoch'\]": lambda: DataLoader(DATA).load_state_dict({"epoch": 1}),
    "batch_transform must return the new batch, got None": lambda: _first(DATA, batch_transform=lambda x, y: None),
    r"the shape must be integers, .* got tuple": lambda: _first(
        DATA, batch_transform=lambda x, y, draw: draw.normal((8, 8))
    ),
    "Subset: indices must be a vector of integers, got int 3": lambda: Subset(DATA, 3),
    "Subset: dataset must have __len__, got NoneType": lambda: Subset(None, [0]),
    "ConcatDataset: dataset must have __len__, got int 3": lambda: ConcatDataset([3]),
    "random_split: dataset must have __len__, got NoneType": lambda: random_split(None, [1]),
    "random_split: lengths must be a list .*, got None": lambda: random_split(DATA, None),  # type: ignore[arg-type]
    "random_split: lengths must add up to 6": lambda: random_split(DATA, [2.5, 3.5]),
    "random_split: lengths must add up .*nan": lambda: random_split(DATA, [NAN, 1]),
    "Sampler: length must be an integer >= 0, got None": lambda: Sampler(None),  # type: ignore[arg-type]
    "BatchSampler: sampler must be a Sampler, or have __iter__, got int": lambda: BatchSampler(4, 2),
    "lengths must hold numbers, got NoneType": lambda: LengthBucketSampler(None, 2),
    "normalize: std must be above 0, got 0.0": lambda: normalize(np.ones((2, 3)), 0, 0),
    r"normalize: mean must have shape \(\) or \(3,\), got \(2,\)": lambda: normalize(np.ones((2, 3)), [0, 0], 1),
    "one_hot: labels must be integers, got float64": lambda: one_hot(np.ones(2), 3),
    "one_hot: num_classes must be >= 1, got 0": lambda: one_hot(np.zeros(2, int), 0),
    r"columns must be a list of names, got 'age'; write \['age'\]": lambda: read_table(TABLE, columns="age"),
    r"target must be the name of a column, got ndarray of shape \(2,\)": lambda: read_table(TABLE, np.ones(2)),  # type: ignore[arg-type]
    "source must be a table with columns, got NoneType": lambda: read_table(None),
    "column 'wage' must hold numbers, got a missing value in row 1; drop": lambda: read_table(TABLE, columns=["wage"]),
    "column 'kind' must hold numbers, got <U1; LabelEncoder": lambda: read_table(TABLE, columns=["kind"]),
    "labels must not be missing, got nan in row 1": lambda: _labels(np.array(["a", NAN], object)),
    "labels must not be missing, got None in row 0": lambda: _labels([None, "a"]),
    "labels must be of one kind, got int and str": lambda: _labels(np.array(["a", 1], object)),
    "labels must be a vector, got str 'a'": lambda: _labels("a"),
    "call fit": lambda: LabelEncoder().transform(["a"]),
    r"numbers must be integers in \[0, 2\), got np.int64\(2\)": lambda: _labels().inverse_transform([0, 2]),
    r"numbers must be integers in \[0, 2\), got np.int64\(-1\)": lambda: _labels().inverse_transform([-1]),
    r"numbers must be integers in \[0, 2\), got np.float64": lambda: _labels().inverse_transform([0.5]),
    "predictions must be real numbers or bools, got NoneType": lambda: sx.metrics.Accuracy().update(None, [1]),
    "target must be real numbers or bools, got NoneType": lambda: sx.metrics.F1(3).update([1], None),
    "target must not be missing, got a missing value in row 1": lambda: sx.metrics.Accuracy().update(
        ["a", "b"], np.array(["a", NAN], object)
    ),
    "num_classes must be a number, or names of classes, got NoneType": lambda: sx.metrics.F1(None),  # type: ignore[arg-type]
    "state_dict must be a dict that state_dict\\(\\) returned, got NoneType": lambda: sx.metrics.Mean().load_state_dict(
        None
    ),  # type: ignore[arg-type]
    "load_state_dict: state_dict must be a dict .*, got str": lambda: nn.Linear(1, 1).load_state_dict("a.pt"),  # type: ignore[arg-type]
    "load_state_dict: state_dict must be a dict .*, got list": lambda: _optimizer().load_state_dict([]),  # type: ignore[arg-type]
    "load_state_dict: state_dict must have 'state' and 'param_groups', got": lambda: _optimizer().load_state_dict(
        {"state": {}}
    ),
    "load_state_dict: state_dict must be a dict .*, got int 3": lambda: optim.lr_scheduler.StepLR(
        _optimizer(), 1
    ).load_state_dict(3),  # type: ignore[arg-type]
    "ReduceLROnPlateau.step: metrics must be a number, got NoneType": lambda: optim.lr_scheduler.ReduceLROnPlateau(
        _optimizer()
    ).step(None),
    "save: f must be a path, got NoneType": lambda: sx.save(nn.Linear(1, 1), None),  # type: ignore[arg-type]
    "load: f must be a path, got ndarray": lambda: sx.load(np.ones(2)),  # type: ignore[arg-type]
    "progress: shown must be True or False, got str 'no'": lambda: sx.progress([1], shown="no"),  # type: ignore[arg-type]
    r"bar.log: loss must be a number, got ndarray of shape \(2,\)": lambda: _logged(np.ones(2)),
    "bar.log: loss must be a number, got NoneType": lambda: _logged(None),
    "Recorder: directory must be a path, got NoneType": lambda: sx.Recorder(None),  # type: ignore[arg-type]
    "Recorder: config must be a dict, got int 3": lambda: sx.Recorder("runs", 3),  # type: ignore[arg-type]
    "Checkpointer: directory must be a path, got int 3": lambda: sx.Checkpointer(3),  # type: ignore[arg-type]
    "Checkpointer: directory must be a path, got ''": lambda: sx.Checkpointer(""),
    "Checkpointer: async_save must be True or False": lambda: sx.Checkpointer("c", async_save="no"),  # type: ignore[arg-type]
    "profile: path must be a path, got int 3": lambda: sx.profile(None, 3).__enter__(),  # type: ignore[arg-type]
    "EarlyStopping: monitor must be the name of a number, got 3": lambda: sx.EarlyStopping(3),  # type: ignore[arg-type]
    "EarlyStopping: min_delta must be a number, got str 'x'": lambda: sx.EarlyStopping(min_delta="x"),  # type: ignore[arg-type]
    "should_stop: value must be a number, got NoneType": lambda: sx.EarlyStopping().should_stop(None),
    "state_dict must have best": lambda: sx.EarlyStopping().load_state_dict({}),
    "fit: model must have parameters and train, got the class Linear": lambda: _fit(model=nn.Linear),
    "fit: optimizer must have zero_grad and step, got NoneType": lambda: _fit(optimizer=None),
    "fit: criterion must be a function .*, got NoneType": lambda: _fit(criterion=None),
    "fit: epochs must be an integer >= 1, got None": lambda: _fit(epochs=None),
    "fit: recorder must have log, got str 'runs'": lambda: _fit(recorder="runs"),
    "fit: checkpointer must have save and load_latest, got the class": lambda: _fit(checkpointer=sx.Checkpointer),
    "fit: schedule_by must be 'epoch' or 'step', got 'batch'": lambda: _fit(schedule_by="batch"),
    "fit: metrics are computed over valid=, got accuracy": lambda: _fit(metrics={"accuracy": sx.metrics.Accuracy()}),
    "evaluate: model must have parameters and eval, got NoneType": lambda: sx.evaluate(None, DataLoader(DATA), []),  # type: ignore[arg-type]
    "evaluate: loader must have __iter__, got NoneType": lambda: sx.evaluate(nn.Linear(2, 2), None, []),  # type: ignore[arg-type]
    "predict: model must have parameters and eval, got NoneType": lambda: sx.predict(None, DataLoader(DATA)),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("message", CASES)
def test_wrong_arguments_are_named(message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((TypeError, ValueError), match=message):
        CASES[message]()
    assert not list(tmp_path.iterdir())


def test_paths_may_be_bytes(tmp_path: Path) -> None:
    recorder = sx.Recorder(bytes(tmp_path / "run"))  # type: ignore[arg-type]
    recorder.log(0, loss=1.0)
    assert (tmp_path / "run" / "records.jsonl").exists()
    recorder.close()


def test_labels_of_any_kind() -> None:
    for labels in (["oak", "ash"], [3, 1], [True, False], np.array(["b", "a"], object)):
        encoder = _labels(labels)
        assert encoder.transform(labels).tolist() == [1, 0]
        assert encoder.inverse_transform(encoder.transform(labels)).tolist() == list(labels)
