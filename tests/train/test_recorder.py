"""Records of a run survive a crash and go on after a restart without doubles; plots show what is in them."""

from __future__ import annotations

import csv
import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist.cli import main
from sorix_dist.comm import run_threads
from sorix_dist.train import recorder as module
from sorix_dist.train.plots import as_text, curves
from sorix_dist.train.recorder import read_records


def steps(folder: Path) -> list[int]:
    return [record["step"] for record in read_records(folder)]


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "records.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_disk_that_becomes_full_in_a_line(tmp_path: Path) -> None:
    recorder = sx.Recorder(tmp_path)
    recorder.log(1, loss=0.5)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "records.jsonl").stat().st_size + 10, before[1]))
    try:
        with pytest.raises(OSError, match="earlier ones are as they were: the disk is full"):
            recorder.log(2, loss=0.25)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    recorder.log(3, loss=0.125)
    assert steps(tmp_path) == [1, 3]


def test_files(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    with sx.Recorder(folder, config={"lr": 0.1, "path": tmp_path}) as recorder:
        recorder.log(1, loss=sx.tensor(2.5), lr=np.float32(0.5), note="warm-up")
        recorder.log(1, val_loss=3)
        recorder.log(2, loss=float("nan"), best=True)
        recorder.log(3, loss=float("-inf"))
    assert json.loads((folder / "config.json").read_text()) == {"lr": 0.1, "path": str(tmp_path)}
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in line.items() if k != "time"} for line in lines] == [
        {"step": 1, "loss": 2.5, "lr": 0.5, "note": "warm-up"},
        {"step": 1, "val_loss": 3},
        {"step": 2, "loss": "nan", "best": True},
        {"step": 3, "loss": "-inf"},
    ]
    assert np.isnan(read_records(folder)[2]["loss"])
    rows = table(folder)
    assert [(row["step"], row["loss"], row["val_loss"]) for row in rows] == [
        ("1", "2.5", "3"),
        ("2", "nan", ""),
        ("3", "-inf", ""),
    ]


def test_goes_on_after_a_restart_without_doubles(tmp_path: Path) -> None:
    first = sx.Recorder(tmp_path)
    for step in range(1, 8):
        first.log(step, loss=1.0)
    del first  # as a crash: nothing is closed
    with open(tmp_path / "records.jsonl", "a") as file:
        file.write('{"step": 8, "lo')
    with sx.Recorder(tmp_path) as again:
        assert steps(tmp_path) == [1, 2, 3, 4, 5, 6, 7]
        for step in range(5, 10):
            again.log(step, loss=2.0)
            again.log(step, accuracy=0.5)
    assert steps(tmp_path) == [1, 2, 3, 4, *np.repeat(range(5, 10), 2)]
    assert [row["loss"] for row in table(tmp_path)] == ["1.0"] * 4 + ["2.0"] * 5
    superseded = [json.loads(line)["step"] for line in (tmp_path / "superseded.jsonl").read_text().splitlines()]
    assert superseded == [5, 6, 7]
    with sx.Recorder(tmp_path) as later:
        later.log(10, loss=3.0)
    assert steps(tmp_path)[-2:] == [9, 10]


def test_a_pipe_in_the_folder_is_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sx.Recorder(tmp_path).log(1, loss=1.0)
    os.mkfifo(tmp_path / "superseded.jsonl")
    with pytest.raises(FileExistsError, match=r"Recorder: path is a pipe or a device, not a file.*superseded"):
        sx.Recorder(tmp_path).log(1, loss=2.0)
    assert steps(tmp_path) == [1]
    (tmp_path / "records.jsonl").unlink()
    (tmp_path / "records.jsonl").symlink_to("superseded.jsonl")
    with pytest.raises(FileExistsError, match=r"Recorder: path is a pipe or a device, not a file.*records"):
        sx.Recorder(tmp_path).log(2, loss=2.0)
    assert main(["plot", str(tmp_path)]) != 0
    assert "path is a pipe or a device, not a file" in capsys.readouterr().err


def test_a_cut_line_alone(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}')
    recorder = sx.Recorder(tmp_path)
    recorder.log(2, loss=1.5)
    assert [record["loss"] for record in read_records(tmp_path)] == [2.0, 1.5]


def test_table_while_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CSV_SECONDS", -1.0)
    sx.Recorder(tmp_path).log(1, loss=1.0)
    assert len(table(tmp_path)) == 1


def test_rank_0_alone_writes(tmp_path: Path) -> None:
    def work() -> None:
        with sx.Recorder(tmp_path / str(sx.rank())) as recorder:
            recorder.log(1, loss=1.0)

    run_threads(work, 3, timeout=60)
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


def test_wrong_values(tmp_path: Path) -> None:
    recorder = sx.Recorder(tmp_path)
    with pytest.raises(TypeError, match="loss must be a number or a text, got list"):
        recorder.log(1, loss=[1.0])
    with pytest.raises(ValueError, match="step must be >= 0, got -1"):
        recorder.log(-1, loss=1.0)
    assert not (tmp_path / "records.jsonl").exists()


def test_events_for_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with sx.Recorder(tmp_path, tensorboard=True) as recorder:
        recorder.log(3, loss=0.5, note="text")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = events.Tags()
    assert "loss" in [*tags["scalars"], *tags["tensors"]]


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    for name, rate in (("slow", 0.1), ("fast", 0.5)):
        with sx.Recorder(tmp_path / name) as recorder:
            for step in range(10):
                recorder.log(step, loss=np.exp(-rate * step), val_loss=2.0, samples_per_second=1000.0, epoch=1)
    return [str(tmp_path / "slow"), str(tmp_path / "fast")]


def test_text_curves(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert list(curves(runs)) == ["loss", "samples_per_second"]
    assert curves([Path(runs[0]).parent]) == curves(sorted(runs))  # the folder of both
    assert main(["plot", *runs, "--metrics", "loss"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "loss"
    assert lines[1].split(" |")[0].strip() == "2"
    assert [line.strip() for line in lines if ", last " in line] == [
        "* slow loss, last 0.4066",
        "o slow val_loss, last 2",
        "+ fast loss, last 0.01111",
        "x fast val_loss, last 2",
    ]
    canvas = [line.partition("|")[2] for line in lines if " |" in line]
    assert canvas[-1].endswith("+")  # the last point of the fast run is the lowest, and the last
    assert len(canvas) == 11
    assert max(map(len, canvas)) <= 80


def test_a_curve_without_numbers(tmp_path: Path) -> None:
    with sx.Recorder(tmp_path) as recorder:
        recorder.log(1, loss=float("nan"))
    assert as_text(curves([tmp_path])) == "loss: no finite values"


def test_a_logarithmic_axis_in_a_terminal(runs: list[str]) -> None:
    fast = curves(runs[1:], ["loss"])
    canvas = [line.partition("|")[2] for line in as_text({"loss": fast["loss"][:1]}, log=["loss"]).splitlines()[1:12]]
    columns = [row.index("*") for row in canvas if "*" in row]
    assert len(columns) == 10  # an exponential is a straight line: each point has a row
    assert set(np.diff(columns)) <= {7, 8}


def test_numbers_at_the_end_of_what_floats_hold(tmp_path: Path) -> None:
    with sx.Recorder(tmp_path) as recorder:
        recorder.log(1, loss=1e308)
        recorder.log(2, loss=-1e308)
    assert as_text(curves([tmp_path])).count("*") == 3  # two points and the legend
    assert as_text(curves([tmp_path]), log=["loss"]).count("*") == 2


def test_picture(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    for suffix, magic in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        path = tmp_path / f"curves.{suffix}"
        assert main(["plot", *runs, "--output", str(path), "--log", "loss"]) == 0
        assert path.read_bytes().startswith(magic)
        assert path.stat().st_size > 5000
    assert capsys.readouterr().out.splitlines()[0] == f"wrote {tmp_path / 'curves.png'}"


def test_nothing_to_plot(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", str(tmp_path / "none")]) == 2
    assert main(["plot", *runs, "--metrics", "los"]) == 2
    assert main(["plot", *runs, "--log", "los"]) == 2
    assert main(["plot", *runs, "-o", str(tmp_path)]) == 2
    (tmp_path / "records.jsonl").write_text('{"step": 1, "note": "begun"}\n')
    assert main(["plot", str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"sorix-dist plot: error: there are no records of a run: {tmp_path / 'none/records.jsonl'}",
        "sorix-dist plot: error: no run has 'los'; there is loss, samples_per_second",
        "sorix-dist plot: error: --log: there is no panel 'los'; there is loss, samples_per_second",
        f"sorix-dist plot: error: a picture must be a .png, .pdf or .svg file, got {str(tmp_path)!r}",
        f"sorix-dist plot: error: no number is recorded yet in {tmp_path}",
    ]


def test_the_name_of_the_time_is_taken(tmp_path: Path) -> None:
    with sx.Recorder(tmp_path) as recorder, pytest.raises(ValueError, match="'time' is the name of"):
        recorder.log(1, time=3.0)


def test_no_event_for_a_value_that_is_missing(tmp_path: Path) -> None:
    class Events:
        def __init__(self) -> None:
            self.seen: list[tuple[str, float, int]] = []

        def add_scalar(self, name: str, value: float, step: int) -> None:
            self.seen.append((name, value, step))

        def flush(self) -> None:
            self.seen.append(("flushed", 0.0, 0))

    with sx.Recorder(tmp_path) as recorder:
        recorder._events = events = Events()
        recorder.log(1, loss=2, best=None, note="warm-up")
    assert events.seen == [("loss", 2.0, 1), ("flushed", 0.0, 0)]
