"""How many cores may be used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sorix_dist.launch.cores import usable_cores


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("250000 100000", 2),
        ("50000 100000", 1),  # half a core is still one
        ("1600000 100000", 8),  # a quota above the affinity gives nothing
    ],
)
def test_a_container_quota_cuts_the_affinity(tmp_path: Path, quota: str, cores: int) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(f"{quota}\n", encoding="ascii")
    assert usable_cores(file) == cores


def test_without_a_quota_it_is_the_affinity(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "cpu.max") == 8


def test_where_there_is_no_affinity_it_is_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores(tmp_path / "cpu.max") == 6
