"""The barrier by counters: nobody passes before all have come, and a rank that left it does not come back."""

from __future__ import annotations

import threading
import time

import pytest

from sorix_dist.comm.node import LINE, Gate


def gates(size: int, counters: bytearray | None = None) -> list[Gate]:
    memory = memoryview(bytearray(size * LINE) if counters is None else counters)
    return [Gate(memory, rank, lambda: None) for rank in range(size)]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_nobody_passes_before_all_have_come(size: int) -> None:
    rounds, came, wrong = 30, [0] * size, []

    def rank(number: int, gate: Gate) -> None:
        for _ in range(rounds):
            time.sleep(0.0001 * number)
            came[number] += 1
            here = came[number]
            gate.wait()
            if min(came) < here:
                wrong.append((number, here, list(came)))
            gate.wait()

    threads = [threading.Thread(target=rank, args=each, daemon=True) for each in enumerate(gates(size))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert came == [rounds] * size
    assert not wrong


def test_a_rank_that_left_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others would take its next wait for the one that it left, and read what it writes meanwhile."""
    gate, other = gates(2)

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sorix_dist.comm.node.time.sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        gate.wait()
    other.wait()
    with pytest.raises(RuntimeError, match="left a wait for the others"):
        gate.wait()
