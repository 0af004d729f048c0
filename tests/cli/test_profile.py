"""`sorix-dist profile`: the parts of a step of the user's own script."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sorix_dist.cli import main
from tests.support.jobs import SORIX_DIST, finished
from tests.support.launching import needs_mpirun

TRAIN = """
import sys
import time
import numpy as np
import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.utils.data import DataLoader, Dataset
from helper import pause
assert __name__ == "__main__" and sys.argv[1:] == ["--lr", "1"], sys.argv
x = np.ones((64, 8), np.float32)
model = sx.DistributedDataParallel(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)))
optimizer, criterion = optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss()
for epoch in range(4):
    for xb, yb in DataLoader(Dataset(x, x[:, 0].astype(int)), batch_size=16):
        optimizer.zero_grad()
        loss = criterion(model(xb), yb)
        loss.backward()
        optimizer.step()
        pause()
raise SystemExit(7)
"""


@needs_mpirun
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_kinds_sum_to_the_step(script: Path, ranks: int) -> None:
    script.write_text(TRAIN.replace("SystemExit(7)", "SystemExit(0)"))
    (script.parent / "helper.py").write_text("import time\ndef pause(): time.sleep(0.01)")
    options = ["-n", str(ranks), "--steps", "5", "--json", "profile.json"]
    code, output = finished([*SORIX_DIST, "profile", *options, "train.py", "--lr", "1"])
    assert code == 0, output
    trace = json.loads(Path("profile.json").read_text())
    assert {event["pid"] for event in trace["traceEvents"]} == set(range(ranks))
    times = trace["otherData"]["ranks"]
    assert [rank["steps"] for rank in times] == [5] * ranks
    for rank in times:
        kinds = rank["kinds"]
        assert {"loader", "zero_grad", "forward", "backward", "agreement", "reduce", "update"} <= set(kinds)
        assert sum(kinds.values()) == pytest.approx(rank["wall"], rel=0.02)
        assert kinds["all else"] > 0.04  # the pauses
    assert f"5 steps of {ranks} rank{'s' * (ranks > 1)}: " in output
    assert "Where Python's profiler sees the time on rank 0" in output
    assert "<built-in method time.sleep>" in output
    code, printed = finished([*SORIX_DIST, "profile", "profile.json"])
    assert code == 0
    assert printed.strip() in output


@needs_mpirun
def test_a_run_writes_its_trace(script: Path) -> None:
    script.write_text(TRAIN.replace("SystemExit(7)", "SystemExit(0)"))
    (script.parent / "helper.py").write_text("def pause(): pass")
    code, output = finished([*SORIX_DIST, "run", "-n", "2", "--profile", "trace.json", "train.py", "--lr", "1"])
    assert (code, output.count("profile: wrote ")) == (0, 1), output
    code, printed = finished([*SORIX_DIST, "profile", "trace.json"])
    assert (code, printed.split(":")[0]) == (0, "13 steps of 2 ranks")  # 16 without the first three


def test_after_a_failure_rank_0_prints_what_it_has(script: Path) -> None:
    script.write_text(TRAIN)
    (script.parent / "helper.py").write_text("def pause(): pass")
    options = ["--steps", "5", "--json", "trace.json"]
    code, output = finished([*SORIX_DIST, "profile", *options, "train.py", "--lr", "1"])
    assert code == 7, output
    assert "5 steps of 1 rank: " in output
    assert "trace.json was not written, because the script did not end well" in output
    assert not Path("trace.json").exists()


def test_a_script_without_steps_is_said(script: Path) -> None:
    script.write_text("import sorix_dist")
    code, output = finished([*SORIX_DIST, "profile", "train.py"])
    assert (code, output) == (
        0,
        "profile: no step was measured; a step ends with optimizer.step(), and the first ones may be left out\n",
    )


@pytest.mark.usefixtures("script")
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["other.py"], "there is no script 'other.py' in "),
        (["--json", "/nowhere/profile.json", "train.py"], "--json: '/nowhere/profile.json' is not a file that can be"),
        (["other.json"], "there is no script 'other.json' in "),
        (["--steps", "0", "train.py"], "argument --steps: expected a whole number of at least 1, got '0'"),
    ],
)
def test_bad_arguments(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", *argv]) == 2
    assert capsys.readouterr().err.startswith(f"sorix-dist profile: error: {message}")
