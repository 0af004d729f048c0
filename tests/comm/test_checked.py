"""Collectives that are compared before they mix anything; by messages here, in shared memory in test_faults."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sorix_dist.comm import Checked, CollectiveMismatch, Comm, RankFailed, current, run_threads
from sorix_dist.watchdog import watch
from sorix_dist.watchdog.call_site import call_site
from sorix_dist.watchdog.status_page import StatusPages
from sorix_dist.watchdog.watch import RankPage
from tests.support.comm.contract import CHECKS


@pytest.mark.parametrize("hosts", [1, 2])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check: Callable[[Comm], None], hosts: int) -> None:
    run_threads(lambda: check(Checked(current())), 3, timeout=100, hosts=hosts)


CALLS: dict[str, Callable[[Comm], object]] = {
    "all_reduce('sum') of float64 (3,)": lambda comm: comm.all_reduce(np.ones(3)),
    "all_reduce('max') of float64 (3,)": lambda comm: comm.all_reduce(np.ones(3), "max"),
    "all_reduce('sum') of float64 (4,)": lambda comm: comm.all_reduce(np.ones(4)),
    "all_reduce('sum') of float32 (3,)": lambda comm: comm.all_reduce(np.ones(3, "f4")),
    "all_gather of float64 (3,)": lambda comm: comm.all_gather(np.ones(3)),
    "all_to_all of float64 (3, 2)": lambda comm: comm.all_to_all(np.ones((3, 2))),
    "broadcast(0) of float64 (3,)": lambda comm: comm.broadcast(np.ones(3)),
    "broadcast(1) of float64 (3,)": lambda comm: comm.broadcast(np.ones(3), 1),
    "broadcast_object(root=1)": lambda comm: comm.broadcast_object(1, 1),
    "gather_objects": lambda comm: comm.gather_objects(1),
    "barrier": lambda comm: comm.barrier(),
    "split": lambda comm: comm.split(0),
    "window": lambda comm: comm.window(8),
}


@pytest.mark.parametrize("name", list(CALLS)[1:])
def test_every_difference_is_found_on_every_rank(name: str) -> None:
    usual, calls = next(iter(CALLS)), CALLS

    def rank() -> str:
        comm = Checked(current())
        with pytest.raises(CollectiveMismatch) as raised:
            calls[name if comm.rank == 1 else usual](comm)
        return str(raised.value)

    texts = run_threads(rank, 3, timeout=60)
    assert all(text.startswith(f"{name if rank == 1 else usual} at ") for rank, text in enumerate(texts))
    assert all(f"of rank {rank}, but rank {0 if rank == 1 else 1} calls" in text for rank, text in enumerate(texts))


@pytest.mark.parametrize("hosts", [1, 3])
def test_after_a_failure_every_further_call_is_refused_with_the_first_reason(hosts: int) -> None:
    """Ranks that went on would be one call apart, and each sum that of another call."""
    calls = [*CALLS.values(), lambda comm: comm.split(0), lambda comm: comm.exchange()]

    def rank() -> None:
        comm = Checked(current())
        window = comm.window(8)
        other = comm.split(0)
        with pytest.raises(CollectiveMismatch, match="every rank must make"):
            comm.all_reduce(np.ones(3 + comm.rank))
        for call in [*calls, lambda comm: window.barrier(), lambda comm: window.close()]:
            with pytest.raises(CollectiveMismatch, match=r"no further calls .* CollectiveMismatch: all_reduce"):
                call(comm)
        total = np.ones(3)
        other.all_reduce(total)
        assert total.tolist() == [3, 3, 3]

    run_threads(rank, 3, timeout=60, hosts=hosts)


class Counting:
    """A communicator that counts the messages of another one."""

    def __init__(self, inner: Comm) -> None:
        self.inner, self.messages = inner, 0

    def __getattr__(self, name: str) -> object:
        found = getattr(self.inner, name)
        if not callable(found):
            return found

        def call(*arguments: object, **options: object) -> object:
            self.messages += 1
            return found(*arguments, **options)

        return call


def test_a_short_array_between_hosts_travels_in_the_message_that_compares_the_call() -> None:
    def rank() -> list[int]:
        counting = Counting(current())
        comm = Checked(counting)  # type: ignore[arg-type]
        found = []
        for work in (
            lambda: comm.all_gather(np.ones(30)),
            lambda: comm.all_gather(np.ones(31)),
            lambda: comm.all_reduce(np.ones(30)),
            lambda: comm.all_reduce(np.ones(31)),
            lambda: comm.agreed().all_reduce(np.ones(31)),
            lambda: comm.agreed().broadcast(np.ones(31)),
        ):
            counting.messages = 0
            work()
            found.append(counting.messages)
        return found

    assert run_threads(rank, 3, timeout=60, hosts=3) == [[1, 2, 1, 2, 1, 1]] * 3


def test_a_wrong_argument_on_one_rank_is_a_call_that_others_see() -> None:
    def rank() -> None:
        comm = Checked(current())
        with pytest.raises(TypeError):
            comm.all_reduce([1.0])  # type: ignore[arg-type] # on all ranks: they are in step
        comm.barrier()
        with pytest.raises(CollectiveMismatch, match="a call with a wrong argument"):
            comm.all_reduce(np.ones(3, "O" if comm.rank == 1 else "f8"))
        with pytest.raises(CollectiveMismatch, match="no further calls"):
            comm.all_reduce(np.ones(3))

    run_threads(rank, 3, timeout=60)


@pytest.fixture
def in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that are threads compare their calls in status pages, as those of one host do."""
    pages = StatusPages.join(tmp_path / "pages", 3)
    own = [RankPage(pages, rank) for rank in range(3)]
    monkeypatch.setattr(watch, "page", lambda: own[current().rank])


@pytest.mark.usefixtures("in_memory")
@pytest.mark.parametrize("further", ["", "UUUU"])
def test_a_call_of_a_rank_that_has_gone_on_is_named(further: str, tmp_path: Path) -> None:
    """Their own calls equal its later ones, which must not replace the one that was different."""

    gone_on = tmp_path / "gone on"

    def rank() -> None:
        comm = Checked(current())
        if comm.rank == 1:
            for dtype in "O" + further:
                with pytest.raises(TypeError):
                    comm.all_reduce(np.ones(3, dtype))
            gone_on.touch()
            comm.barrier()
        while not gone_on.exists():
            time.sleep(0.01)
        with pytest.raises(CollectiveMismatch, match=r"rank 1 calls a call with a wrong .*'\|O'.* at .*py:\d"):
            comm.all_reduce(np.ones(3, further[:1] or "f8"))

    with pytest.raises(RankFailed):
        run_threads(rank, 3, timeout=20)


def test_who_has_ended_is_named_at_the_next_collective() -> None:
    def rank() -> str:
        comm = Checked(current())
        comm.barrier()
        if comm.rank == 1:
            comm.goodbye()
            return ""
        with pytest.raises(CollectiveMismatch) as raised:
            comm.all_reduce(np.ones(3))
        return str(raised.value)

    first, second, third = run_threads(rank, 3, timeout=60, hosts=3)
    assert second == ""
    for rank_, text in ((0, first), (2, third)):
        assert text.startswith("all_reduce('sum') of float64 (3,) at ")
        assert f"of rank {rank_}, but rank 1 has ended (its script came to its end, or sys.exit)" in text


def test_ranks_that_all_end_wait_for_each_other_and_raise_nothing() -> None:
    def rank() -> tuple[float, float]:
        comm = Checked(current())
        comm.barrier()
        time.sleep(0.1 * comm.rank)
        called = time.monotonic()
        comm.goodbye()
        return called, time.monotonic()

    called, returned = zip(*run_threads(rank, 3, timeout=60, hosts=2), strict=True)
    assert min(returned) >= max(called)


def test_a_site_is_the_innermost_line_outside_the_package() -> None:
    a = np.ones(2)

    def all_reduce(array: np.ndarray) -> tuple[str, str, str]:
        site = call_site()
        return site.where, site.function, site.argument

    where, *_ = all_reduce(a)
    assert where.startswith("tests/comm/test_checked.py:")
