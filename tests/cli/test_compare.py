"""`sorix-dist compare`: the steps of the user's own script on one process and on several ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sorix_dist.cli import main
from sorix_dist.train.compared import Backward, differences
from tests.support.jobs import SORIX_DIST, finished
from tests.support.launching import needs_mpirun

TRAIN = """
import sys
import numpy as np
import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.utils.data import DataLoader, Dataset
assert __name__ == "__main__" and sys.argv[1:] == ["--lr", "1"], sys.argv
sx.manual_seed(0)
draw = np.random.default_rng(0)
x = draw.standard_normal((40, 4)).astype(np.float32)
y = draw.standard_normal((40, 2)).astype(np.float32)
model = sx.DistributedDataParallel(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2)))
optimizer = optim.Adam(model.parameters(), lr=0.01)
checkpoints = sx.Checkpointer("checkpoints")
for epoch in range(9):
    for xb, yb in DataLoader(Dataset(x, y), batch_size=16, shuffle=True):
        optimizer.zero_grad()
        loss = ((model(xb) - yb) ** 2).mean()
        loss.backward()
        optimizer.step()
    checkpoints.save(epoch, model=model, optimizer=optimizer)
    if epoch == 4:
        raise SystemExit("too far")
"""
INPUTS = "model(xb)"


def compared(*options: str) -> tuple[int, str]:
    return finished([*SORIX_DIST, "compare", *options, "train.py", "--lr", "1"])


@needs_mpirun
def test_a_script_that_is_right(script: Path) -> None:
    script.write_text(TRAIN)
    code, output = compared()
    assert code == 0, output
    assert "10 backwards are the same on one process and on 3 ranks (largest relative difference: " in output
    assert not [*script.parent.glob("checkpoints/*")]


@needs_mpirun
def test_a_script_that_is_not(script: Path) -> None:
    """Rows that NumPy computes are a rank's own, which nothing else finds."""
    own = "model(sx.tensor((xb.numpy() - xb.numpy().mean(0)) / xb.numpy().std(0)))"
    script.write_text(TRAIN.replace(INPUTS, own))
    code, output = compared("-n", "2", "--steps", "3")
    assert code == 1, output
    assert "compare: backward 1, at train.py:19: the loss is " in output
    assert "Two runs on one process differ as well" not in output


@needs_mpirun
def test_a_script_without_a_seed(script: Path) -> None:
    script.write_text(TRAIN.replace("sx.manual_seed(0)", ""))
    code, output = compared("-n", "2", "--steps", "2")
    assert code == 1, output
    assert "Two runs on one process differ as well: seed the random numbers" in output


@needs_mpirun
def test_a_script_that_several_ranks_refuse(script: Path) -> None:
    script.write_text(TRAIN.replace("(model(xb) - yb)", "(model(xb) - yb)[:8]"))
    code, output = compared("-n", "2")
    assert code == 1, output
    assert "compare: the run on 2 ranks ended with exit code 1" in output
    assert "along axis 0 lie the rows of this rank only" in output


def test_a_script_without_a_wrapped_model(script: Path) -> None:
    script.write_text("import sorix_dist")
    code, output = finished([*SORIX_DIST, "compare", "-n", "2", "train.py"])
    assert code == 1
    assert output.startswith("compare: the script made no backward of a model that is wrapped in Distributed")
    assert output.count("compare:") == 1


ONE = [Backward("a.py:1", [2.0], {"w": [1.0, 4.0]}), Backward("a.py:2", [1.0], {"w": [1.0, 1.0]})]


@pytest.mark.parametrize(
    ("second", "text", "distance"),
    [
        (Backward("a.py:2", [1.0], {"w": [1.0, 1.0]}), "", 0.0),
        (Backward("a.py:2", [1.5], {"w": [1.0, 1.0]}), "the loss is 1 on one process and 1.5 on several ranks", 1 / 3),
        (Backward("a.py:2", [1.0], {"w": [1.0, 2.0]}), "the gradient of w", 0.5),
        (Backward("a.py:2", [1.0], {"w": [1.0, np.nan]}), "the gradient of w", np.inf),
        (Backward("a.py:2", [1.0], {}), "", 0.0),
        (Backward("a.py:3", [1.0], {"w": [1.0, 1.0]}), "at a.py:2 on one process, at a.py:3 on several ranks", np.inf),
        (None, "at a.py:2 on one process, none on several ranks", np.inf),
    ],
)
def test_differences(second: Backward | None, text: str, distance: float) -> None:
    several = [ONE[0], *([second] if second else [])]
    found = max(differences(ONE, several), key=lambda each: each[1])
    assert text in found[0]
    assert found[1] == pytest.approx(distance)


@pytest.mark.usefixtures("script")
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["other.py"], "there is no script 'other.py' in "),
        (["-n", "1", "train.py"], "-n must be at least 2: one process is compared with several ranks"),
        (["--steps", "0", "train.py"], "argument --steps: expected a whole number of at least 1, got '0'"),
    ],
)
def test_bad_arguments(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *argv]) == 2
    assert capsys.readouterr().err.startswith(f"sorix-dist compare: error: {message}")
