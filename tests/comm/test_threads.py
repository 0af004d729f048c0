"""What ranks as threads do beyond the contract: copies, failures, mismatches, limits."""

from __future__ import annotations

import decimal
import signal
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sorix_dist.comm import (
    CollectiveMismatch,
    Comm,
    RankFailed,
    Solo,
    current,
    init,
    is_initialized,
    run_threads,
    threads,
    using,
)


def test_each_rank_has_its_own_copy() -> None:
    kept: list[int] = []
    given = np.zeros(3)

    def rank(argument: np.ndarray) -> tuple[list[int], np.ndarray]:
        kept.append(current().rank)
        argument += current().rank
        current().barrier()
        return kept, argument

    results = run_threads(rank, 3, (given,))
    assert [one for one, _ in results] == [[0], [1], [2]]
    assert [two.tolist() for _, two in results] == [[0.0] * 3, [1.0] * 3, [2.0] * 3]
    assert kept == []
    assert not given.any()


def test_each_rank_has_its_own_context() -> None:
    def rank() -> tuple[int, int]:
        before = decimal.getcontext().prec  # a context variable
        decimal.getcontext().prec = 50 + current().rank
        current().barrier()
        return before, decimal.getcontext().prec

    with decimal.localcontext(prec=7):
        assert run_threads(rank, 3) == [(28, 50), (28, 51), (28, 52)]
        assert decimal.getcontext().prec == 7


def test_init_inside_is_the_thread_communicator() -> None:
    def rank() -> bool:
        assert is_initialized()
        given = current()
        with pytest.raises(RuntimeError, match=r"comm=Solo.. was given where the communicator is ThreadComm"):
            init(comm=Solo())
        inner = given.split(given.rank)
        with using(inner):
            assert current() is inner
        return init(timeout=5) is given is current()

    assert run_threads(rank, 2) == [True, True]


@pytest.mark.parametrize("failing", [0, 2])
def test_the_first_exception_is_raised_with_its_traceback(failing: int) -> None:
    def breaks() -> None:
        raise KeyError("bad row")

    def rank() -> None:
        if current().rank == failing:
            breaks()
        current().barrier()

    began = time.monotonic()
    with pytest.raises(KeyError, match="bad row") as caught:
        run_threads(rank, 3, timeout=60)
    assert time.monotonic() - began < 20
    text = "".join(traceback.format_exception(caught.value))
    assert "in breaks" in text
    assert f"raised on rank {failing} of 3" in text


def test_the_others_collectives_end_with_the_ranks_name(tmp_path: Path) -> None:
    def rank() -> None:
        comm = current()
        half = comm.split(comm.rank // 2)
        if comm.rank == 2:
            raise ValueError("bad row")
        try:
            if comm.rank == 1:
                half.barrier()  # a group that the failing rank is not in ends too
            else:
                comm.all_reduce(np.ones(2))
        except RankFailed as error:
            (tmp_path / str(comm.rank)).write_text(str(error))
            raise

    with pytest.raises(ValueError, match="bad row"):
        run_threads(rank, 3, timeout=60)
    reason = "cannot be complete: rank 2 failed with ValueError: bad row"
    assert (tmp_path / "0").read_text() == f"all_reduce('sum') of float64 (2,) of rank 0 {reason}"
    assert (tmp_path / "1").read_text() == f"barrier of rank 1 {reason}"


MISMATCHES: dict[str, tuple[Callable[[Comm], object], Callable[[Comm], object], str, str]] = {
    "operation": (
        lambda comm: comm.barrier(),
        lambda comm: comm.all_reduce(np.ones(2)),
        "barrier",
        r"all_reduce\('sum'\) of float64 \(2,\)",
    ),
    "shape": (
        lambda comm: comm.all_reduce(np.ones((2, 3))),
        lambda comm: comm.all_reduce(np.ones((3, 2))),
        r"float64 \(2, 3\)",
        r"float64 \(3, 2\)",
    ),
    "dtype": (
        lambda comm: comm.all_gather(np.ones(2, "f4")),
        lambda comm: comm.all_gather(np.ones(2, "i4")),
        r"float32 \(2,\)",
        r"int32 \(2,\)",
    ),
    "reduction": (
        lambda comm: comm.all_reduce(np.ones(2), "max"),
        lambda comm: comm.all_reduce(np.ones(2), "min"),
        r"all_reduce\('max'\)",
        r"all_reduce\('min'\)",
    ),
    "root": (
        lambda comm: comm.broadcast(np.ones(2), 0),
        lambda comm: comm.broadcast(np.ones(2), 1),
        r"broadcast\(root=0\)",
        r"broadcast\(root=1\)",
    ),
    "root of an object": (
        lambda comm: comm.broadcast_object(1, 0),
        lambda comm: comm.broadcast_object(1, 1),
        r"broadcast_object\(root=0\)",
        r"broadcast_object\(root=1\)",
    ),
    "kind of object call": (
        lambda comm: comm.broadcast_object(1),
        lambda comm: comm.gather_objects(1),
        "broadcast_object",
        "gather_",
    ),
    "memory": (lambda comm: comm.window(8), lambda comm: comm.split(0), "window", "split"),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_calls_that_do_not_match_are_both_named(name: str) -> None:
    one, other, one_name, other_name = MISMATCHES[name]
    before = np.arange(4.0)

    def rank() -> None:
        (other if current().rank == 1 else one)(current())

    with pytest.raises(CollectiveMismatch) as caught:
        run_threads(rank, 3, timeout=60)
    caught.match(one_name)
    caught.match(other_name)
    caught.match(r"rank \d calls .*, but rank \d calls ")
    np.testing.assert_array_equal(before, np.arange(4.0))


def test_a_mismatch_mixes_no_memory() -> None:
    def rank() -> list[float]:
        comm = current()
        array = np.full(2 + comm.rank, 7.0)
        with pytest.raises((CollectiveMismatch, RankFailed)):
            comm.all_reduce(array)
        assert (array == 7).all()
        raise LookupError("all is well") if comm.rank == 0 else RankFailed("as well")

    with pytest.raises(CollectiveMismatch):
        run_threads(rank, 2, timeout=60)


def test_a_rank_that_has_ended_is_named() -> None:
    def rank() -> None:
        if current().rank != 1:
            current().barrier()

    with pytest.raises(RankFailed, match=r"barrier of rank . cannot be complete: rank 1 has ended already"):
        run_threads(rank, 3, timeout=60)


def test_the_limit_tells_where_each_rank_is() -> None:
    def rank() -> None:
        if current().rank == 1:
            time.sleep(5)
        current().barrier()

    match = r"not done after 0\.5 s; rank 0 waits in barrier; rank 1 is at .*test_threads.py:\d+ in rank"
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=match):
        run_threads(rank, 2, timeout=0.5)
    assert time.monotonic() - began < 4


def test_abort_ends_all_ranks_with_its_code() -> None:
    def rank() -> None:
        if current().rank == 1:
            current().abort(3)
        current().barrier()

    with pytest.raises(SystemExit) as caught:
        run_threads(rank, 3, timeout=60)
    assert caught.value.code == 3


def test_runs_do_not_disturb_each_other() -> None:
    def inner() -> int:
        return sum(current().gather_objects(current().rank))

    def outer() -> list[int]:
        results = run_threads(inner, 2 + current().rank)
        current().barrier()
        return results

    assert run_threads(outer, 3) == [[1, 1], [3, 3, 3], [6, 6, 6, 6]]


def test_hosts_can_be_pretended() -> None:
    def rank() -> tuple[int, int, int, int]:
        comm = current()
        return comm.host, comm.local_rank, comm.local_size, comm.hosts

    assert run_threads(rank, 3, hosts=2) == [(0, 0, 2, 2), (0, 1, 2, 2), (1, 0, 1, 2)]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"size": 0}, "size must be 1 or more.*got 0"),
        ({"size": 2, "hosts": 3}, "hosts from 1 to size, got 2, 3"),
        ({"size": 2, "timeout": 0}, "timeout must be more than 0 seconds, got 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        run_threads(lambda: None, **arguments)


def interrupted(seconds: float) -> list[str]:
    """The notes of an interrupt of two ranks that sleep for `seconds` at a time, without a collective."""

    def rank() -> None:
        while True:
            time.sleep(seconds)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it for what runs in the background
    pressed = threading.Timer(0.5, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
    pressed.start()
    with pytest.raises(KeyboardInterrupt) as caught:
        run_threads(rank, 2)
    return getattr(caught.value, "__notes__", [])


def test_an_interrupt_ends_ranks_that_compute() -> None:
    assert interrupted(0.01) == []
    deadline = time.monotonic() + 10
    while any(thread.name in ("rank 0", "rank 1") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ranks_that_an_interrupt_does_not_end_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "ENDING", 0.1)
    (note,) = interrupted(1.5)
    assert note.startswith("these ranks end only when they come back to Python: rank 0 is at ")
    assert "; rank 1 is at " in note
