"""How many cores may be used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sorix_dist.comm.blas import cut_to_quota, own_cpus


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max", 8),
        ("200000", 2),
        ("250000", 2),
        ("50000", 1),  # half a core is still one
        ("1600000", 8),  # more than there are
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_a_container_quota_cuts_the_cpus(tmp_path: Path, quota: str, cores: int, version: int) -> None:
    if version == 2:
        (tmp_path / "cpu.max").write_text(f"{quota} 100000\n", encoding="ascii")
    else:
        (tmp_path / "cpu").mkdir()
        (tmp_path / "cpu/cpu.cfs_quota_us").write_text(f"{quota.replace('max', '-1')}\n", encoding="ascii")
        (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n", encoding="ascii")
    assert cut_to_quota(8, tmp_path) == cores


def test_without_a_quota_nothing_is_cut(tmp_path: Path) -> None:
    assert cut_to_quota(8, tmp_path) == 8


def test_where_there_is_no_affinity_it_is_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert own_cpus() == set(range(6))
