"""A DDP script and its port: 11 of 83 lines differ, docs/from-pytorch.md shows them, and the port trains."""

from __future__ import annotations

import difflib
import re
import sys
from pathlib import Path

import pytest

from tests.support.launching import ROOT, needs_mpirun, run_command, run_ranks

FOLDER = ROOT / "examples" / "ported"
PORT = str(FOLDER / "ddp.py")


def changes() -> list[str]:
    """The lines that `diff` names, in its order."""
    theirs, ours = ((FOLDER / name).read_text().splitlines() for name in ("ddp_torch.py", "ddp.py"))
    compared = difflib.unified_diff(theirs, ours, n=0, lineterm="")
    return [line for line in compared if re.match(r"[+-](?![+-]{2} )", line)]


def test_the_port_changes_11_of_83_lines() -> None:
    lines = [line for line in (FOLDER / "ddp_torch.py").read_text().splitlines() if line]
    assert len(lines) == 83
    assert [sum(line[0] == sign for line in changes()) for sign in "-+"] == [11, 11]


def test_the_page_shows_the_changes() -> None:
    page = (ROOT / "docs" / "from-pytorch.md").read_text()
    (block,) = re.findall(r"^```diff\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert block.splitlines() == changes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the port prints on one process."""
    ended = run_command([sys.executable, PORT, "--checkpoint", str(tmp_path_factory.mktemp("port") / "digits.pt")])
    assert ended.code == 0, ended.err
    return ended.out.splitlines()


def test_it_learns(whole: list[str]) -> None:
    assert len(whole) == 5
    assert float(whole[-1].split()[-1]) > 0.8


@needs_mpirun
def test_it_goes_on_from_its_checkpoint_with_the_same_result(whole: list[str], tmp_path: Path) -> None:
    printed = []
    for ranks, epochs in ((1, "1"), (2, "3"), (3, "5")):
        ended = run_ranks(ranks, PORT, "--epochs", epochs, "--checkpoint", str(tmp_path / "digits.pt"))
        assert ended.code == 0, ended.err
        printed += ended.out.splitlines()
    assert printed == whole
