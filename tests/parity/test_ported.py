"""The DDP script that examples/ported/ddp.py is the port of runs as it is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.launching import ROOT, run_command

pytest.importorskip("torch")


def test_the_original_trains(tmp_path: Path) -> None:
    script = str(ROOT / "examples" / "ported" / "ddp_torch.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29617"]
    ended = run_command([*launch, script, "--checkpoint", str(tmp_path / "digits.pt")], limit=100)
    assert ended.code == 0, ended.err
    epochs = ended.out.splitlines()
    assert len(epochs) == 5
    assert float(epochs[-1].split()[-1]) > 0.8
