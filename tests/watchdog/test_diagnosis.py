"""What is a fault, and whose."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sorix_dist.watchdog.diagnosis import FROZEN, OTHERS_FIRST, PATIENCE, Fault, Observations, diagnose, ending
from sorix_dist.watchdog.guard import Guard
from sorix_dist.watchdog.status_page import State, Status

LONG = 1000.0


def status(rank: int, count: int, *, waits: bool = False, state: State = State.RUNNING, **others: Any) -> Status:
    """A rank that has entered `count` collectives of communicator 7, and has left the last one unless it waits."""
    known = {"step": count, "signature": 1, "counts": {7: count}, "key": 7, "text": ("all_reduce", "train.py:9")}
    left = count - waits
    return Status(rank, 100 + rank, state, count, left, count=count, stack=-1, **(known | others))


def fault_of(*rows: Status, timeout: float = 300.0, **observed: Any) -> str | None:
    table = {row.rank: row for row in rows}
    waited = {row.rank: LONG for row in rows}
    fault = diagnose(table, Observations(**({"waited": waited} | observed)), timeout)
    return None if fault is None else fault.what


def test_ranks_that_work_or_wait_for_one_that_works() -> None:
    assert fault_of(status(0, 3), status(1, 4, waits=True), waited={1: 1.0}) is None
    assert fault_of(status(0, 3, state=State.IMPORTED), status(1, 4, state=State.STARTING), waited={1: 1.0}) is None


def test_a_rank_that_died() -> None:
    what = fault_of(status(0, 4, waits=True), status(1, 3), gone={1: 9})
    assert what == "rank 1 (pid 101) was killed by SIGKILL: step 3, last seen in all_reduce at train.py:9"
    assert "rank 0 " in str(fault_of(status(0, 4, waits=True), status(1, 4), gone={0: 9, 1: 9}))
    assert fault_of(status(0, 4), status(1, 3, state=State.ENDED), gone={1: 0}) is None
    another = diagnose({1: status(1, 3)}, Observations({1: 9}), 300.0, world_size=2)
    assert another is not None
    assert "SIGKILL, or its launcher has ended it for a rank without a status page: step 3" in another.what
    assert fault_of(status(0, 4), status(1, 3, state=State.FAILED), gone={1: 0}) is None


@pytest.mark.parametrize(("wait_status", "fault"), [(0, False), (None, False), (3 << 8, False), (11, True)])
def test_a_rank_that_left_before_mpi_matters_to_who_waits_or_if_killed(wait_status: int | None, fault: bool) -> None:
    left = status(1, 0, state=State.IMPORTED)
    assert (fault_of(status(0, 0, state=State.IMPORTED), left, gone={1: wait_status}) is not None) == fault
    assert "rank 1" in str(fault_of(status(0, 0, state=State.STARTING), left, gone={1: wait_status}))


def test_how_a_process_ended_in_words() -> None:
    assert ending(9) == "was killed by SIGKILL"
    assert ending(15) == "was ended from outside by SIGTERM"
    assert ending(11 | 0x80) == "was killed by SIGSEGV"  # with a core file
    assert ending(3 << 8) == "left with os._exit(3) or the like"
    assert "without a word" in ending(None)
    assert ending(100) == "was killed by signal 100"


def test_a_signal_to_all_ranks_is_no_ranks_fault() -> None:
    rows = status(0, 4, waits=True), status(1, 3), status(2, 4, waits=True)
    what = "rank 1 and 1 more were ended by SIGTERM, as by mpirun, a user or a scheduler"
    assert fault_of(*rows, gone={1: 15, 0: 15}) == fault_of(*rows, gone={1: 15, 2: None}) == what
    assert fault_of(*rows, gone={1: 15}, waited={0: 1.0}) is None  # others may follow
    hydra = {"ends_by_kill": True}
    assert fault_of(*rows, gone={1: None}, waited={0: 1.0}, **hydra) is None
    assert "rank 1 (pid 101) died without a word" in str(fault_of(*rows, gone={1: None}))  # Open MPI ends by SIGTERM
    first = "rank 1 ended first, how is not known; 2 more were ended by SIGTERM, as by mpirun, a user or a scheduler"
    assert fault_of(*rows, gone={1: None, 0: None, 2: 15}, **hydra) == first
    assert "rank 1 (pid 101) died without a word" in str(fault_of(*rows, gone={1: None, 0: 9, 2: 9}, **hydra))
    assert "rank 1 (pid 101) died without a word" in str(fault_of(*rows, gone={1: None}, gone_for=PATIENCE, **hydra))
    assert "rank 1 (pid 101) was ended from outside by SIGTERM" in str(fault_of(*rows, gone={1: 15}, gone_for=PATIENCE))
    assert "rank 1 (pid 101) was ended from outside by SIGTERM" in str(fault_of(*rows, gone={1: 15, 0: 9, 2: 9}))


def test_a_rank_that_died_before_mpi_is_named_before_those_that_its_launcher_ended() -> None:
    rows = status(0, 0), status(1, 0, state=State.IMPORTED, counts={}), status(2, 0, state=State.IMPORTED, counts={})
    assert fault_of(*rows, gone={1: None}) is None
    assert "rank 1 (pid 101) died without a word" in str(fault_of(*rows, gone={1: None, 2: 15, 0: 15}))
    what = fault_of(*rows, gone={1: 0, 2: 15}, gone_for=PATIENCE)
    assert "rank 2 (pid 102) was ended from outside by SIGTERM" in str(what)


def test_a_rank_that_ended_while_another_waits_for_it() -> None:
    ended = status(1, 3, state=State.ENDED)
    what = str(fault_of(status(0, 4, waits=True), ended))
    assert "rank 1 (pid 101) has ended" in what
    assert "rank 0 waits for it in all_reduce at train.py:9" in what
    assert fault_of(status(0, 4, waits=True), ended, waited={0: PATIENCE / 2}) is None
    assert fault_of(status(0, 3, waits=True), ended, waited={0: 1.0}) is None  # rank 1 has done its part
    assert fault_of(status(0, 4), ended) is None
    assert fault_of(status(0, 4, waits=True, key=8, counts={7: 3, 8: 1}), ended, waited={0: 1.0}) is None  # other group
    other = status(1, 3, state=State.ENDED, signature=2, refused=frozenset({7}))  # and was told so, but went on
    what = str(fault_of(status(0, 3, waits=True), other, waited={0: 1.0}))
    assert "rank 1 (pid 101) has ended (its script came to its end, or sys.exit) after a collective had failed" in what
    ended_early = status(1, 0, state=State.ENDED, counts={})
    assert "rank 1" in str(fault_of(status(0, 0, state=State.STARTING), ended_early))


def test_a_rank_whose_collective_failed_and_whose_program_went_on() -> None:
    rows = status(0, 4, waits=True), status(1, 4, refused=frozenset({7}))
    what = str(fault_of(*rows, waited={0: OTHERS_FIRST}))
    assert "rank 1 makes no further calls in the communicator where rank 0 waits for it in all_reduce at" in what
    assert fault_of(*rows, waited={0: OTHERS_FIRST / 2}) is None  # it may be about to say so
    assert fault_of(status(0, 4, waits=True), status(1, 4, refused=frozenset({8})), waited={0: OTHERS_FIRST}) is None


def test_a_rank_whose_shell_may_start_another_program() -> None:
    rows = status(0, 0, state=State.STARTING), status(1, 0, state=State.ENDED, counts={})
    assert "rank 1" in str(fault_of(*rows))
    assert fault_of(*rows, may_come=frozenset({1}), waited={0: 5.0}) is None
    assert "rank 1 has not arrived" in str(fault_of(*rows, may_come=frozenset({1})))
    trained = status(1, 3, state=State.ENDED)
    assert "rank 1" in str(fault_of(status(0, 4, waits=True), trained, may_come=frozenset({1})))


def test_of_several_hosts_none_blames_a_rank_that_its_launcher_may_have_ended() -> None:
    rows = {0: status(0, 4, waits=True), 1: status(1, 3)}
    fault = diagnose(rows, Observations(gone={1: None}, gone_for=PATIENCE), 300.0, single_host=False)
    assert fault is not None
    assert "died without a word (killed, crashed, or os._exit), or its launcher has ended it for another" in fault.what


def test_a_rank_that_never_came() -> None:
    starting = status(0, 0, state=State.STARTING)
    assert "rank 1 has ended before it imported sorix_dist, while rank 0 waits" in str(
        fault_of(starting, absent=frozenset({1}))
    )
    assert fault_of(starting, absent=frozenset({1}), waited={0: 0.5}) is None


def test_a_rank_that_stays_after_its_end() -> None:
    ended, stays = status(0, 3, state=State.ENDED, script_over=True), status(1, 3, script_over=True)
    assert "the script of rank 1 (pid 101) ended 300 s ago" in str(fault_of(ended, stays, over={0: LONG, 1: LONG}))
    assert fault_of(ended, stays, over={0: LONG, 1: 1.0}) is None
    assert fault_of(ended, stays, over={0: LONG, 1: LONG}, idle=1.0) is None
    assert fault_of(ended, status(1, 3), over={0: LONG}) is None  # it works on at the end


def test_ranks_in_different_collectives() -> None:
    rows = status(0, 4, waits=True), status(1, 4, waits=True, signature=2)
    assert "rank 1 waits in another collective than rank 0" in str(fault_of(*rows, waited={0: 1.0, 1: 1.0}))
    assert fault_of(*rows, waited={0: 1.0, 1: 0.0}) is None
    one_left = status(0, 3, waits=True), status(1, 4, waits=True, signature=2)
    assert fault_of(*one_left, waited={0: 1.0, 1: 1.0}) is None


def test_a_frozen_rank() -> None:
    assert "rank 1 is frozen" in str(fault_of(status(0, 4), status(1, 4), stopped={0: 0.0, 1: FROZEN}))
    assert fault_of(status(0, 4), status(1, 4), stopped={0: 0.0, 1: FROZEN / 2}) is None


def test_a_rank_that_is_late() -> None:
    rows = status(0, 4, waits=True), status(1, 3), status(2, 4, waits=True)
    what = str(fault_of(*rows, timeout=5.0))
    assert "rank 0 has waited 5 s" in what
    assert what.endswith("rank 1 has not arrived")
    assert fault_of(*rows, timeout=0.0) is None
    assert fault_of(*rows, timeout=5.0, idle=1.0) is None  # rank 1 saves a file, say
    again = status(0, 0, state=State.STARTING), status(1, 4, waits=True)
    assert str(fault_of(*again, timeout=5.0)).endswith("at train.py:9; rank 0 has not arrived")
    starting = status(0, 1, state=State.STARTING), status(1, 1, state=State.STARTING)
    assert "on another host" in str(fault_of(*starting, timeout=5.0))
    assert fault_of(*starting, timeout=5.0, waited={0: 6.0, 1: 6.0}) is None  # the other host speaks first
    all_here = diagnose({row.rank: row for row in starting}, Observations(waited={0: LONG, 1: LONG}), 5.0, world_size=2)
    assert all_here is not None
    assert all_here.what.endswith("no rank is missing: the machine is too busy for them, or messages are lost")
    behind = status(0, 4, waits=True), status(1, 3, waits=True, key=8, counts={7: 3, 8: 1})
    assert str(fault_of(*behind, timeout=5.0)).endswith("rank 1 has not arrived")


def test_a_report_of_many_ranks_lists_those_at_fault() -> None:
    guard: Any = SimpleNamespace(observed=Observations(), processes={})
    rows = {rank: status(rank, 4, waits=rank != 29) for rank in range(32)}
    _, *lines = Guard._report(guard, Fault("rank 29 has not arrived", (29,)), rows).splitlines()
    assert [line.split()[1].rstrip(":") for line in lines] == [*map(str, range(11)), "29", "20"]
    assert "  rank 29: step 4, last seen in all_reduce at train.py:9" in lines
