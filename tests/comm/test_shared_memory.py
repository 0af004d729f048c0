"""The barrier of one host's ranks, and what a host's shared memory must have room for."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sorix_dist.comm import runtime, shared_memory
from sorix_dist.comm.shared_memory import CACHE_LINE, SpinBarrier, check_free, free_bytes


def barriers(size: int) -> list[SpinBarrier]:
    counters = memoryview(bytearray(size * CACHE_LINE))
    return [SpinBarrier(counters, rank, lambda: None) for rank in range(size)]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("patience", [0, 1000])
def test_no_rank_leaves_a_barrier_before_all_have_come(
    size: int, patience: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "SPINS", patience)
    monkeypatch.setattr(shared_memory, "YIELDS", 3)
    rounds, come, wrong = 200, np.zeros(size, int), []

    def work(rank: int, barrier: SpinBarrier) -> None:
        for number in range(1, rounds + 1):
            if (number + rank) % 50 == 0:
                time.sleep(0.001)
            come[rank] = number
            barrier.wait()
            if come.min() < number or come.max() > number + 1:
                wrong.append((rank, number, come.tolist()))

    threads = [threading.Thread(target=work, args=each) for each in enumerate(barriers(size))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
    assert come.tolist() == [rounds] * size


def test_a_fence_before_and_after() -> None:
    calls: list[int] = []
    counters = memoryview(bytearray(CACHE_LINE))
    SpinBarrier(counters, 0, lambda: calls.append(counters.cast("q")[0])).wait()
    assert calls == [0, 1]


def test_a_rank_that_left_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others would take its next wait for the one that it left, and read what it writes meanwhile."""
    barrier, other = barriers(2)

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sorix_dist.comm.shared_memory.time.sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        barrier.wait()
    other.wait()
    with pytest.raises(RuntimeError, match="left a wait for the others"):
        barrier.wait()


def test_room() -> None:
    check_free(100, 100)
    check_free(100, None)
    with pytest.raises(MemoryError, match=r"need 3 MB .* has 1 MB left: .*--shm-size=2g.*doctor --clean"):
        check_free(3 << 20, 1 << 20)


def test_free_bytes(tmp_path: object) -> None:
    free = free_bytes(str(tmp_path))
    assert free is not None
    assert free > 0
    assert free_bytes(f"{tmp_path}/nothing") is None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, MPICH uses other memory")
def test_mpich_without_a_folder_of_shared_memory_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "SHARED_MEMORY", str(tmp_path / "none"))
    launch: Any = SimpleNamespace(local_size=2)
    with pytest.warns(RuntimeWarning, match=r"MPICH needs .*none, and this process may not write there"):
        runtime._check_shared_memory(launch, "MPICH")
    runtime._check_shared_memory(launch, "Open MPI")  # it goes on without
