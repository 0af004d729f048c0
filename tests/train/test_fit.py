"""sx.fit: README's loop, the same on any number of ranks, going on after a stop as if there had been none."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.comm import run_threads
from sorix_dist.train.recorder import read_records
from sorix_dist.utils.data import DataLoader, Dataset


def run(epochs: int = 4, folder: Path | None = None, rate: float = 0.1, **options: Any) -> list[dict[str, float]]:
    sx.manual_seed(0)
    numbers = np.random.default_rng(0)
    x = numbers.standard_normal((45, 3)).astype(np.float32)
    y = (x.sum(axis=1) > 0).astype(np.int64)
    model = sx.DistributedDataParallel(nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.1), nn.ReLU(), nn.Linear(8, 2)))
    optimizer = optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    if folder is not None:
        options = {"checkpointer": sx.Checkpointer(folder), "recorder": sx.Recorder(folder), **options}
    return sx.fit(
        model,
        DataLoader(Dataset(x[:35], y[:35]), batch_size=8, shuffle=True),
        nn.CrossEntropyLoss(),
        optimizer,
        epochs=epochs,
        valid=DataLoader(Dataset(x[35:], y[35:]), batch_size=8),
        metrics={"accuracy": sx.metrics.Accuracy()},
        scheduler=optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5),
        **options,
    )


def without_speed(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in epoch.items() if name != "samples_per_second"} for epoch in history]


def test_learns_alike_on_any_number_of_ranks() -> None:
    alone = run()
    assert [epoch["epoch"] for epoch in alone] == [1, 2, 3, 4]
    assert alone[-1]["loss"] < alone[0]["loss"]
    assert alone[-1]["val_accuracy"] >= 0.8
    for size in (2, 3):
        for history in run_threads(run, size, timeout=60):
            for ours, theirs in zip(without_speed(history), without_speed(alone), strict=True):
                assert ours.keys() == theirs.keys()
                assert all(math.isclose(ours[name], theirs[name], rel_tol=1e-4) for name in ours)


def test_same_bits_in_reproducible_mode() -> None:
    def reproducible() -> str:
        sx.init(virtual_shards=4)
        return repr(without_speed(run(2)))

    assert len({text for size in (1, 3, 4) for text in run_threads(reproducible, size, timeout=60)}) == 1


def test_goes_on_after_a_stop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    straight = run(4, tmp_path / "straight")
    run(2, tmp_path / "stopped")
    capsys.readouterr()
    assert without_speed(run(4, tmp_path / "stopped")) == without_speed(straight)
    assert capsys.readouterr().out.startswith("goes on from step 10\n")
    assert without_speed(run(4, tmp_path / "stopped")) == without_speed(straight)
    assert capsys.readouterr().out == "goes on from step 20, where all 4 epochs are done\n"
    for name in ("straight", "stopped"):
        assert [record["step"] for record in read_records(tmp_path / name)] == [5, 10, 15, 20]


@pytest.mark.parametrize("step", [7, 10, 20])  # 10 and 20 end epochs
def test_goes_on_after_preemption(step: int, tmp_path: Path) -> None:
    class AfterSteps(sx.Preemption):
        def should_stop(self) -> bool:
            self.steps = getattr(self, "steps", 0) + 1
            self.requested = self.steps == step
            return super().should_stop()

    def fit(**options: Any) -> list[dict[str, float]]:
        return run(4, tmp_path, early_stopping=sx.EarlyStopping("loss"), **options)

    def preempted() -> None:
        with AfterSteps(signals=()) as preemption, pytest.raises(SystemExit) as ended:
            fit(preemption=preemption)
        assert ended.value.code == sx.EXIT_PREEMPTED

    run_threads(preempted, 2, timeout=60)
    straight = run(4)
    for history in run_threads(fit, 2, timeout=60):
        for ours, theirs in zip(without_speed(history), without_speed(straight), strict=True):
            assert ours.keys() == theirs.keys()
            assert all(math.isclose(ours[name], theirs[name], rel_tol=1e-4) for name in ours)


def test_early_stopping(tmp_path: Path) -> None:
    def stops() -> int:
        stopping = sx.EarlyStopping("val_loss", patience=2, min_delta=100.0)
        return len(run(9, tmp_path / "early", early_stopping=stopping))

    assert run_threads(stops, 2, timeout=60) == [3, 3]
    assert stops() == 3  # the checkpoint says that it has stopped


def test_rank_0_decides() -> None:
    def work() -> list[bool]:
        stopping = sx.EarlyStopping(patience=2, mode="max")
        other = sx.EarlyStopping(patience=2, mode="max")
        said = [stopping.should_stop(value + sx.rank()) for value in (1.0, math.nan)]
        other.load_state_dict(stopping.state_dict())
        return [*said, other.should_stop(1.0 + sx.rank())]

    assert run_threads(work, 2, timeout=60) == [[False, False, True]] * 2


def test_other_schedulers() -> None:
    model = sx.DistributedDataParallel(nn.Sequential(nn.Linear(3, 2)))
    loader = DataLoader(Dataset(np.ones((8, 3), np.float32), np.zeros(8, np.int64)), batch_size=2)
    for make, by, wanted in (
        (lambda o: optim.lr_scheduler.StepLR(o, 1, gamma=0.5), "step", 0.1 * 0.5**8),
        (lambda o: optim.lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=1e9), "epoch", 0.1 * 0.1**2),
    ):
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        sx.fit(
            model, loader, nn.CrossEntropyLoss(), optimizer, epochs=loader.epoch + 2, scheduler=make(optimizer),
            schedule_by=by,  # type: ignore[arg-type]
        )  # fmt: skip
        assert math.isclose(optimizer.param_groups[0]["lr"], wanted)


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match="loader must be a DataLoader, got list"):
        sx.fit(nn.Linear(1, 1), [], nn.MSELoss(), None, epochs=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="preemption needs a checkpointer"):
        run(1, preemption=sx.Preemption(signals=()))
    with pytest.raises(ValueError, match="monitor must be one of epoch, loss, samples_per_second, val_loss"):
        run(1, early_stopping=sx.EarlyStopping("accuracy"))
    for wrong, message in (
        ({"mode": "best"}, "mode must be 'min' or 'max', got 'best'"),
        ({"patience": 0}, "patience must be >= 1, got 0"),
        ({"min_delta": -1.0}, "min_delta must be a number >= 0, got -1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            sx.EarlyStopping(**wrong)  # type: ignore[arg-type]
