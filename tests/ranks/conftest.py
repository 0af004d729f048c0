"""Each rank writes down what became of its tests; tests/test_ranks.py starts the ranks and reads it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sorix_dist.comm import Comm, current

_outcomes: dict[str, str] = {}


@pytest.fixture(scope="session")
def world() -> Comm:
    """The communicator of all ranks."""
    return current()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.outcome != "passed" or report.when == "call":
        _outcomes[report.nodeid] = report.outcome


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.outcome != "passed":  # a module that is skipped as a whole has no test to report
        _outcomes[report.nodeid] = report.outcome


def pytest_sessionfinish() -> None:
    comm = current()
    report = Path(os.environ["RANKS_REPORT"]) / f"{comm.rank}.json"
    report.write_text(json.dumps({"size": comm.size, "outcomes": _outcomes}))
