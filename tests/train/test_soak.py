"""A short soak; `make soak` makes a long one."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.support.launching import Ended, needs_mpirun
from tests.support.train import soak

pytestmark = [needs_mpirun, pytest.mark.timeout(300)]


def test_random_faults_change_no_bit() -> None:
    totals, wrong = soak.soak(10, random.randrange(10**6))  # another one each time: the output says which
    assert wrong == 0
    assert totals.runs > 0


def test_another_bit_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = soak.trained

    def with_another_seed(folder: Path, plan: str, before: list[str]) -> Ended:
        optimizer, seed, faults = json.loads(plan)
        return trained(folder, json.dumps([optimizer, seed + (folder.name == "alone"), faults]), before)

    monkeypatch.setattr(soak, "trained", with_another_seed)
    assert soak.soak(0, 42)[1] == 1  # of one fault, a kill
