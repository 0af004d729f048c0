"""Half a minute of `make chaos`, in `make test-all`: random moments belong to no run that must always end alike."""

from __future__ import annotations

import os

import pytest

from tests.launching import needs_mpirun
from tests.watchdog import chaos


@needs_mpirun
@pytest.mark.skipif(not os.environ.get("SORIX_DIST_LONG"), reason="one of the long tables: make test-all")
@pytest.mark.timeout(240)
def test_every_run_ends_in_time_and_leaves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert chaos.main(30) == 0, capsys.readouterr().out
