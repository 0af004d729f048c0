"""Random training situations on MPI ranks."""

from __future__ import annotations

import pytest

from tests.support.parallel import random_training

pytestmark = pytest.mark.mpi


def test_same_as_one_process():
    assert random_training.run(range(60))["cases"] == 60
