"""Half a minute of `make chaos`."""

from __future__ import annotations

import pytest

from tests.comm import chaos
from tests.launching import needs_mpirun


@needs_mpirun
@pytest.mark.timeout(240)
def test_every_run_ends_in_time_and_leaves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert chaos.main(30) == 0, capsys.readouterr().out
