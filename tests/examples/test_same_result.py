"""The examples print the same numbers on one process and on four ranks."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest

from tests.support.launching import ROOT, needs_mpirun, run_command, run_ranks

LONG = pytest.mark.skipif(not os.environ.get("SORIX_DIST_LONG"), reason="one of the long tables: make test-all")
FASHION = Path("/usr/share/datasets/fashion-mnist").is_dir()
SKLEARN = importlib.util.find_spec("sklearn") is not None and importlib.util.find_spec("pandas") is not None
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@needs_mpirun
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vae", ["--epochs", "2"]),
        pytest.param("contrastive", ["--epochs", "3"], marks=LONG),
        pytest.param("wgan_gp", ["--epochs", "3"], marks=LONG),
        pytest.param("imbalanced", [], marks=LONG),
        pytest.param("tabular", [], marks=[LONG, pytest.mark.skipif(not SKLEARN, reason="needs pandas, scikit-learn")]),
        pytest.param("char_gpt", ["--steps", "100"], marks=LONG),
        pytest.param(
            "fashion_mnist",
            ["--epochs", "1", "--rows", "2000"],
            marks=[LONG, pytest.mark.skipif(not FASHION, reason="needs Debian's dataset-fashion-mnist")],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_on_one_and_four_ranks(name: str, options: list[str]):
    """To the printed digits, but for a unit of the last one, which rounding moves."""
    script = str(ROOT / "examples" / f"{name}.py")
    alone = run_command([sys.executable, script, *options], limit=140)
    four = run_ranks(4, script, *options, limit=140)
    assert alone.code == four.code == 0, alone.err + four.err
    first, second = (_without_ranks_own(name, ended.out) for ended in (alone, four))
    assert len(first) == len(second) > 0
    for line, other in zip(first, second, strict=True):
        assert NUMBER.sub("#", line) == NUMBER.sub("#", other)
        for a, b in zip(NUMBER.findall(line), NUMBER.findall(other), strict=True):
            # In float32 an image whose best two classes nearly tie may change sides.
            unit = 0.2 if f"{a}%" in line else 1.01 * 10.0 ** -len(a.partition(".")[2])
            assert abs(float(a) - float(b)) <= unit, f"{line}\n{other}"


def _without_ranks_own(name: str, out: str) -> list[str]:
    """The lines without speeds, and without what is meant to differ."""
    ends = [line for line in out.splitlines() if not line.endswith(" left")]  # not those in the middle of an epoch
    lines = [re.sub(r"[\d,]+ (images|samples)/s.*", "", line) for line in ends]
    if name == "imbalanced":  # which shows the mean of the ranks' own means
        lines[0] = lines[0].partition(";")[0]
    return lines[:2] if name == "char_gpt" else lines  # the letters of a sample may part by rounding


@needs_mpirun
@LONG
@pytest.mark.timeout(300)
def test_a_killed_rank_costs_nothing(tmp_path: Path):
    """restart.py ends with the hash of a run that nothing disturbed."""
    script, saved = str(ROOT / "examples" / "restart.py"), str(tmp_path / "saved")
    undisturbed = run_command([sys.executable, script, "--never"], limit=100)
    command = [sys.executable, "-m", "sorix_dist", "run", "-n", "4", "--max-restarts", "2", "--checkpoint", saved]
    killed = run_command([*command, script, "--checkpoint", saved], limit=140)
    assert undisturbed.code == killed.code == 0, killed.err
    assert "goes on from step 145" in killed.out
    assert killed.out.splitlines()[-1] == undisturbed.out.splitlines()[-1]
