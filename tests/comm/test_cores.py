"""How many cores may be used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sorix_dist.comm.cores import cut_to_quota, own_cpus


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
def test_a_container_quota_cuts_the_cpus(tmp_path: Path, quota: str, cores: int) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(f"{quota}\n", encoding="ascii")
    assert cut_to_quota(8, file) == cores


def test_without_a_quota_nothing_is_cut(tmp_path: Path) -> None:
    assert cut_to_quota(8, tmp_path / "cpu.max") == 8


def test_where_there_is_no_affinity_it_is_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert own_cpus() == set(range(6))
