"""Metrics, evaluation and predictions on MPI ranks: those of one process."""

from __future__ import annotations

import pytest

from tests.support.train import evaluation_checks, metric_checks

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("check", metric_checks.CHECKS, ids=lambda check: check.__name__)
def test_metrics(check):
    for count in (0, 1, 2, 5, 13, 40):
        check(count)


@pytest.mark.parametrize("check", evaluation_checks.CHECKS, ids=lambda check: check.__name__)
def test_evaluation(check):
    for rows in (1, 2, 5, 13):
        check(rows)
