"""Preemption: a signal to one rank stops all after the same step, with a checkpoint and a code of its own."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist.comm import current, run_threads
from tests.support.launching import Ended, needs_mpirun, run_ranks


def test_a_signal(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with sx.Preemption() as preemption:
        assert not preemption.should_stop()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert preemption.should_stop()
        assert preemption.should_stop()
        with pytest.raises(SystemExit) as caught:
            preemption.exit()
        assert caught.value.code == sx.EXIT_PREEMPTED == 75
    assert signal.getsignal(signal.SIGUSR1) is before


def test_only_the_given_signals() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with sx.Preemption([signal.SIGUSR2]) as preemption:
        assert signal.getsignal(signal.SIGTERM) is before
        os.kill(os.getpid(), signal.SIGUSR2)
        assert preemption.should_stop()


def test_several_at_a_time() -> None:
    """A second one must not make the first one deaf, nor the end of either one the other."""
    before = signal.getsignal(signal.SIGUSR1)
    first, second = sx.Preemption(), sx.Preemption()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert first.should_stop()
    assert second.should_stop()
    first.close()
    with sx.Preemption() as third:
        second.close()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert third.should_stop()
    assert signal.getsignal(signal.SIGUSR1) is before


def test_all_stop_together() -> None:
    def work() -> int:
        preemption = sx.Preemption()
        for step in range(10):
            if step == 4 and current().rank == 1:
                preemption.request()
            if preemption.should_stop():
                return step
        return -1

    assert run_threads(work, 3) == [4, 4, 4]


def run(n: int, *arguments: str) -> Ended:
    return run_ranks(n, "-m", "tests.support.train.preempted", *arguments, limit=60)


@needs_mpirun
@pytest.mark.timeout(150)
@pytest.mark.parametrize(("name", "rank"), [("SIGTERM", 0), ("SIGUSR1", 2)])
def test_under_mpirun(name: str, rank: int, tmp_path: Path) -> None:
    pytest.importorskip("mpi4py")
    ended = run(3, str(tmp_path), "6", name, str(rank))
    assert ended.code == sx.EXIT_PREEMPTED, ended
    assert sorted(ended.out.split("\n"))[-3:] == [f"rank {r} stops after step 3" for r in range(3)], ended
    again = run(3, str(tmp_path), "6")
    total = np.sum([3 * step + 3 for step in range(6)], dtype=float)
    assert again.code == 0, again
    assert sorted(again.out.split("\n"))[-3:] == [f"rank {r} has {total} from step 4" for r in range(3)], again
