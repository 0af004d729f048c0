"""Half a minute of `make chaos`."""

from __future__ import annotations

import sys

import pytest

from tests.support.launching import needs_mpirun, run_command


@needs_mpirun
@pytest.mark.timeout(300)
def test_every_run_ends_in_time_leaves_nothing_and_goes_on_with_the_same_bits() -> None:
    ended = run_command([sys.executable, "-m", "tests.watchdog.chaos", "30"], limit=280)
    assert ended.code == 0, ended.out + ended.err
    assert not ended.left, ended.left
