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
@pytest.mark.parametrize("ranks", ["1", "2"])
def test_the_stages_add_up_to_the_step(script: Path, ranks: str) -> None:
    script.write_text(TRAIN)
    (script.parent / "helper.py").write_text("import time\ndef pause(): time.sleep(0.01)")
    options = ["-n", ranks, "--steps", "5", "--json", "profile.json"]
    code, output = finished([*SORIX_DIST, "profile", *options, "train.py", "--lr", "1"])
    assert code == 7, output
    results = json.loads(Path("profile.json").read_text())
    assert (results["ranks"], results["steps"]) == (int(ranks), 5)
    stages = {name: found["median"] for name, found in results["stages"].items()}
    whole = stages.pop("step")
    assert set(stages) == {"loader", "zero_grad", "forward", "backward", "optimizer"}
    assert all(seconds > 0 for seconds in stages.values())
    assert sum(stages.values()) < whole - 0.005  # the pause is in no stage
    assert whole > 0.01
    assert {where: calls for where, calls, _ in results["functions"]}["<built-in method time.sleep>"] >= 1
    assert f"A training step on {ranks} rank(s), as rank 0 sees it; medians of 5 steps" in output
    assert output.count("all else") == 1


def test_a_script_without_steps_is_said(script: Path) -> None:
    script.write_text("import sorix_dist")
    code, output = finished([*SORIX_DIST, "profile", "train.py"])
    assert (code, output) == (
        0, "profile: no step was measured: the script called Optimizer.step at most 3 times\n"
    )  # fmt: skip


@pytest.mark.usefixtures("script")
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["other.py"], "there is no script 'other.py' in "),
        (["--json", "/nowhere/profile.json", "train.py"], "--json: '/nowhere/profile.json' is not a file that can be"),
        (["--steps", "0", "train.py"], "argument --steps: expected a whole number of at least 1, got '0'"),
    ],
)
def test_bad_arguments(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", *argv]) == 2
    assert capsys.readouterr().err.startswith(f"sorix-dist profile: error: {said}")
