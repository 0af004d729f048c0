"""One outcome for all ranks, whatever happens on one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sorix_dist as sx
from sorix_dist.comm import current, run_threads
from tests.support.train.outcomes import on_ranks, threads_on_ranks
from tests.support.train.saving import Part


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("work", [on_ranks, threads_on_ranks])
def test_on_ranks(work: Callable[[Path], None], size: int, folder: Path) -> None:
    run_threads(work, size, args=(folder,), timeout=60)


def own_error() -> Exception:
    class Own(Exception):
        """One that can't be pickled."""

    return Own("of a user's own")


def test_errors_that_can_not_be_sent(folder: Path) -> None:
    def work() -> None:
        class Bad(Part):
            def state_dict(self) -> dict[str, Any]:
                if current().rank == 1:
                    raise own_error()
                return super().state_dict()

        checkpointer = sx.Checkpointer(folder)
        with pytest.raises(Exception, match="of a user's own"):
            checkpointer.save(1, part=Bad())

    run_threads(work, 2, timeout=60)
