"""examples/any_loss.py prints one table on one process and on four ranks, and finds a number that differs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.launching import ROOT, Ended, needs_mpirun, run_command, run_ranks

SCRIPT = str(ROOT / "examples" / "any_loss.py")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The numbers of one process."""
    return tmp_path_factory.mktemp("numbers") / "1.json"


@pytest.fixture(scope="module")
def alone(saved: Path) -> Ended:
    ended = run_command([sys.executable, SCRIPT, "--save", str(saved)])
    assert ended.code == 0, ended.err
    return ended


def test_ten_losses_with_gradients(alone: Ended, saved: Path) -> None:
    table = json.loads(saved.read_text())
    assert len(table) == len(alone.out.splitlines()) == 10
    losses, gradients = np.array([*table.values()]).T
    assert np.isfinite(losses).all()
    assert gradients.min() > 1
    assert not alone.err, "one process gathers nothing"


@needs_mpirun
def test_four_ranks_print_the_same(alone: Ended, saved: Path, tmp_path: Path) -> None:
    own = tmp_path / "4.json"
    ended = run_ranks(4, SCRIPT, "--compare", str(saved), "--save", str(own))
    assert ended.code == 0, ended.out + ended.err
    assert ended.out == f"{alone.out}the same as in {saved}\n"
    ours, theirs = (json.loads(file.read_text()) for file in (own, saved))
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-12, err_msg=name)
    # Only the contrastive loss needs rows of other ranks, and that is said once.
    assert ended.err.count("RuntimeWarning") == 1
    assert "@ works on the rows of the whole batch" in ended.err


@pytest.mark.usefixtures("alone")
def test_a_number_that_differs_is_found(saved: Path, tmp_path: Path) -> None:
    table = json.loads(saved.read_text())
    table["VAE"][1] *= 1 + 1e-10
    off = tmp_path / "off.json"
    off.write_text(json.dumps(table))
    ended = run_command([sys.executable, SCRIPT, "--compare", str(off)])
    assert ended.code == 1
    assert ended.out.endswith("these differ: VAE\n")
