"""Run tests/ranks on 1 to 4 MPI ranks: what is tested there is tested on every rank, or this fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.launching import needs_mpirun, run_ranks

RANKS = Path(__file__).parent / "ranks"


@needs_mpirun
@pytest.mark.timeout(330)
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_on_ranks(n: int, tmp_path: Path) -> None:
    pytest.importorskip("mpi4py")
    ended = run_ranks(
        n,
        *("-m", "mpi4py", "-m", "pytest", "--with-mpi", "-x", "-q", "-p", "no:cacheprovider"),
        *("-o", "timeout=0", "-o", "faulthandler_timeout=100", "-o", "faulthandler_exit_on_timeout=true"),
        *("--rootdir", str(RANKS.parent.parent), str(RANKS)),
        limit=300,
        env={"RANKS_REPORT": str(tmp_path)},
    )
    text = f"{ended.out}\n{ended.err}"
    assert ended.code == 0, text
    reports = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert [report["size"] for report in reports] == [n] * n, text
    for report in reports:
        assert report["outcomes"], text
        assert set(report["outcomes"].values()) == {"passed"}, text
        assert report["outcomes"].keys() == reports[0]["outcomes"].keys(), text
