"""What the tests of the commands have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from sorix_dist.launch.command import HOSTS_FROM_OUTSIDE
from tests.support.jobs import ROOT


@pytest.fixture(autouse=True)
def _plain_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """No scheduler's allocation, whatever the tests run in; the package can be imported anywhere."""
    for name in HOSTS_FROM_OUTSIDE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty script in the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "train.py"
    path.touch()
    return path
