"""examples/cross_entropy.py prints the reference values, on one process and on several ranks."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest

from tests.support.launching import ROOT, Ended, needs_mpirun, run_command, run_ranks

SCRIPT = str(ROOT / "examples" / "cross_entropy.py")

LOSS = 0.2159
GRADIENT = [[-0.17049944, 0.12121648, 0.04928295], [0.00331929, -0.00737348, 0.00405419]]
LOSSES = [2.8399, 0.6802, 0.2603, 0.1513, 0.1052, 0.0803]
"""At steps 0, 10, ... 50, printed to 4 digits."""
OUTPUT_AT_50 = [-1.5918877, -0.70369416, 2.1223652]
FINAL_OUTPUT = [-1.5963862, -0.714629, 2.1377985]

PRINTED_TO_4 = 1e-8
FLOAT32 = 1e-6


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=needs_mpirun), pytest.param(4, marks=needs_mpirun)])
def ended(request: pytest.FixtureRequest) -> Ended:
    """The script after it ran on one process, and on 2 ranks, and on 4, of which 2 have no row."""
    ended = run_command([sys.executable, SCRIPT]) if request.param == 1 else run_ranks(request.param, SCRIPT)
    assert ended.code == 0, ended.err
    return ended


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.\d*(?:e[+-]\d+)?", text)]


def test_loss_and_gradient(ended: Ended) -> None:
    loss, *gradient = numbers(ended.out.partition("step")[0])
    assert loss == pytest.approx(LOSS, abs=PRINTED_TO_4)
    np.testing.assert_allclose(np.reshape(gradient, (2, 3)), GRADIENT, rtol=0, atol=FLOAT32)


def test_training(ended: Ended) -> None:
    steps = re.findall(r"^step +(\d+)  loss (\S+)  output (.*)$", ended.out, re.MULTILINE)
    assert [int(step) for step, _, _ in steps] == [0, 10, 20, 30, 40, 50]
    np.testing.assert_allclose([float(loss) for _, loss, _ in steps], LOSSES, rtol=0, atol=PRINTED_TO_4)
    np.testing.assert_allclose(numbers(steps[-1][2]), OUTPUT_AT_50, rtol=0, atol=FLOAT32)
    (final,) = re.findall(r"^final output (.*)$", ended.out, re.MULTILINE)
    np.testing.assert_allclose(numbers(final), FINAL_OUTPUT, rtol=0, atol=FLOAT32)


def test_the_wrapped_gradient_is_of_the_global_mean(ended: Ended) -> None:
    """The script itself compares it on every rank and fails if it differs."""
    assert "2 rows on " in ended.out
    assert ended.out.rstrip().endswith("(P - Y) / 2")
