"""The barrier of one host's ranks, and what a host's shared memory must have room for."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from sorix_dist.comm import node
from sorix_dist.comm.node import LINE, Gate, check_free, free_bytes


def gates(size: int) -> list[Gate]:
    counters = memoryview(bytearray(size * LINE))
    return [Gate(counters, rank, lambda: None) for rank in range(size)]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("patience", [0, 1000])
def test_nobody_leaves_a_gate_before_all_have_come(size: int, patience: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "PATIENCE", patience)
    monkeypatch.setattr(node, "LOOKS_AWAKE", 3)
    rounds, come, wrong = 200, np.zeros(size, int), []

    def work(rank: int, gate: Gate) -> None:
        for number in range(1, rounds + 1):
            if (number + rank) % 50 == 0:
                time.sleep(0.001)
            come[rank] = number
            gate.wait()
            if come.min() < number or come.max() > number + 1:
                wrong.append((rank, number, come.tolist()))

    threads = [threading.Thread(target=work, args=each) for each in enumerate(gates(size))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
    assert come.tolist() == [rounds] * size


def test_a_fence_before_and_after() -> None:
    calls: list[int] = []
    counters = memoryview(bytearray(LINE))
    Gate(counters, 0, lambda: calls.append(counters.cast("q")[0])).wait()
    assert calls == [0, 1]


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
