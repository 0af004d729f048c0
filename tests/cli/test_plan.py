"""`sorix-dist plan`: predictions for the user's own script, from some seconds on one rank."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sorix_dist.cli import main, parser, plan
from sorix_dist.cli.parser import bandwidth, duration
from tests.support.jobs import SORIX_DIST, finished
from tests.support.launching import needs_mpirun

TRAIN = """
import sys
import numpy as np
import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.utils.data import DataLoader, Dataset
assert __name__ == "__main__" and sys.argv[1:] == ["--lr", "1"], sys.argv
x = np.random.default_rng(0).standard_normal((512, 100)).astype(np.float32)
model = sx.DistributedDataParallel(nn.Sequential(nn.Linear(100, 200), nn.ReLU(), nn.Linear(200, 10)))
optimizer, criterion = optim.SGD(model.parameters(), lr=0.01), nn.CrossEntropyLoss()
loader = DataLoader(Dataset(x, (x[:, 0] > 0).astype(int)), batch_size=128)
saved, recorder = sx.Checkpointer("saved"), sx.Recorder("runs/it")
found = saved.load_latest(model=model)


@sx.compile
def step(xb, yb):
    optimizer.zero_grad()
    loss = criterion(model(xb), yb)
    loss.backward()
    optimizer.step()
    return loss


for epoch in range(int(EPOCHS)):
    for xb, yb in loader:
        loss = step(xb, yb)
        recorder.log(1, loss=loss.item())
    saved.save(epoch, model=model)
print("the end")
"""
NUMBERS = 100 * 200 + 200 + 200 * 10 + 10


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "SECONDS", 0.3)


def test_predictions_for_a_script(script: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script.write_text(TRAIN.replace("EPOCHS", "1000000"))
    options = ["--hosts", "16", "--ranks-per-host", "32", "--link", "10gbit", "--latency", "20us"]
    assert main(["plan", "train.py", *options, "--json", "plan.json", "-o", "plan.png", "--", "--lr", "1"]) == 0
    printed = capfd.readouterr().out
    assert "one rank here, 128 rows: " in printed
    assert "32 ranks a host, 10 Gbit/s, 20 us, 128 rows in all" in printed
    assert "16 hosts, 512 ranks: exact " in printed
    assert not re.search(r"\b1 (hosts|ranks)\b", printed)
    assert "384 ranks have no row of a batch of 128" in printed
    table = re.findall(r"^[> ] +(\d+) +(\d+) .* (\w+)$", printed, re.MULTILINE)
    assert [(int(hosts), int(ranks)) for hosts, ranks, _ in table] == [(1 << k, 32 << k) for k in range(11)]
    assert {best for *_, best in table} <= {"exact", "fp16", "PowerSGD", "LocalSGD"}
    assert "the end" not in printed
    assert not Path("saved").exists() or not list(Path("saved").iterdir())
    assert not Path("runs").exists()
    assert Path("plan.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(Path("plan.json").read_text())
    step = found["step"]
    assert (step["rows"], step["nbytes"]) == (128, 4 * NUMBERS)
    assert all(seconds > 0 for seconds in (step["forward"][1], step["backward"][1], step["update"], step["rest"]))
    completes = [complete for _, complete in step["borders"]]
    assert completes == sorted(completes)
    # The last layer's gradient is complete before the first one's product begins.
    assert completes[0] == 0
    assert completes[-1] == pytest.approx(2010 / NUMBERS, rel=0.05)
    assert [entry["hosts"] for entry in found["predicted"]] == [1 << power for power in range(11)]
    assert all(seconds > 0 for entry in found["predicted"] for seconds in entry["seconds"].values())


def test_a_loss_that_is_not_defined_for_a_part_of_a_batch(script: Path, capfd: pytest.CaptureFixture[str]) -> None:
    nan = "criterion(model(xb), yb) * (1.0 if len(xb) == 128 else float('nan'))"
    script.write_text(TRAIN.replace("EPOCHS", "1000000").replace("criterion(model(xb), yb)", nan))
    assert main(["plan", "train.py", "--link", "10gbit", "--json", "plan.json", "--", "--lr", "1"]) == 0
    assert json.loads(Path("plan.json").read_text())["step"]["rows"] == 128
    assert "one rank here, 128 rows: " in capfd.readouterr().out


@needs_mpirun
def test_predictions_from_a_trace(script: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script.write_text(TRAIN.replace("EPOCHS", "3").replace("@sx.compile", ""))
    code, output = finished([*SORIX_DIST, "run", "-n", "2", "--profile", "trace.json", "train.py", "--lr", "1"])
    assert code == 0, output
    assert main(["plan", "trace.json", "--link", "1gbit", "--json", "plan.json", "--scaling", "weak"]) == 0
    assert "128 rows on each rank" in capfd.readouterr().out
    step = json.loads(Path("plan.json").read_text())["step"]
    assert step["rows"] == 128
    assert step["nbytes"] == pytest.approx(4 * NUMBERS, rel=0.01)  # with gaps between the parameters
    assert len(step["borders"]) > 2


def test_a_script_that_cannot_be_measured(script: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script.write_text("import sorix_dist")
    assert main(["plan", "--link", "1gbit", "train.py"]) == 1
    assert "plan: train.py made 0 steps, and more than 3 are needed that sum gradients" in capfd.readouterr().err
    script.write_text("raise ValueError('a bad row')")
    assert main(["plan", "--link", "1gbit", "train.py"]) == 1
    assert "ValueError: a bad row" in capfd.readouterr().err
    Path("other.json").write_text("{}")
    assert main(["plan", "--link", "1gbit", "other.json"]) == 1
    assert "'other.json' is no trace that sx.profile has written" in capfd.readouterr().err


@pytest.mark.usefixtures("script")
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train.py"], "--link is missing: give the bandwidth of a host's link, such as --link 10gbit"),
        (
            ["train.py", "--link", "10gb"],
            "argument --link: expected a bandwidth such as 10gbit, 100mbit or 25GB/s, got",
        ),
        (["--latency", "20", "train.py"], "argument --latency: expected a time such as 20us, 1ms or 0.1s, got '20'"),
        (["train.py", "--memory", "1gb/s"], "argument --memory: expected a bandwidth"),
        (["train.py", "--hosts", "0"], "argument --hosts: expected a whole number of at least 1, got '0'"),
        (["train.py", "--lr", "1"], "there is no option '--lr': arguments of the script follow after `--`"),
        (["--link", "1gbit", "other.py"], "there is no script 'other.py' in "),
        (["--link", "1gbit", "train.py", "--json", "/nowhere/x.json"], "--json: '/nowhere/x.json' is not a file that"),
        (["--link", "1gbit", "train.py", "-o", "/nowhere/x.png"], "--output: '/nowhere/x.png' is not a file that"),
    ],
)
def test_bad_arguments(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *argv]) == 2
    assert capsys.readouterr().err.startswith(f"sorix-dist plan: error: {message}")


def test_options_before_and_after_the_script() -> None:
    found = parser().parse_args(
        ["plan", "--hosts", "8", "train.py", "--link", "25GB/s", "--", "--hosts", "9", "--", "x"]
    )
    assert (found.hosts, found.link, found.script) == (8, 25e9, "train.py")
    assert found.arguments == ["--hosts", "9", "--", "x"]


def test_units() -> None:
    assert [bandwidth(text) for text in ("10gbit", "100Mbit/s", "1.5Gbit", "25GB/s", "8 kbit", "8bit")] == [
        *(1.25e9, 1.25e7, 1.875e8, 2.5e10, 1e3, 1.0)
    ]
    assert [duration(text) for text in ("20us", "1ms", "0.5s", "800ns", ".1 s", "0us")] == pytest.approx(
        [20e-6, 1e-3, 0.5, 8e-7, 0.1, 0]
    )
    for wrong in (
        "",
        "10",
        "10g",
        "10gb",
        "10GB",
        "10Gb/s",
        "-1gbit",
        "0gbit",
        "nangbit",
        "1e9bit",
        "gbit",
        "10 Gbit/m",
    ):
        with pytest.raises(Exception, match="expected a bandwidth such as"):
            bandwidth(wrong)
    for wrong in ("", "20", "20 sec", "-1us", "us", "1m", "1e-6s", "inf s"):
        with pytest.raises(Exception, match="expected a time such as"):
            duration(wrong)
