"""The communicator contract under MPI."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from sorix_dist.comm import Checked, Comm, MpiComm, current, init, mpi
from sorix_dist.watchdog.launcher import detect
from tests.support.comm import contract
from tests.support.comm.contract import CHECKS

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(world: Comm, check: Callable[[Comm], None]) -> None:
    check(world)


@pytest.mark.parametrize(
    "check",
    [
        contract.all_reduce_every_dtype,
        contract.all_reduce_every_size,
        contract.all_reduce_is_the_same_on_every_rank,
        contract.float16_sums_are_rounded_once,
        contract.all_gather_stacks_in_rank_order,
        contract.pieces_are_combined_in_order,
        contract.exchange_sums_over_hosts,
    ],
    ids=lambda check: check.__name__,
)
def test_as_if_every_rank_were_on_a_host_of_its_own(
    world: Comm, check: Callable[[Comm], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mpi4py import MPI

    monkeypatch.setattr(mpi, "locate", lambda host_of, rank: (rank, len(host_of), 0, 1))
    monkeypatch.setattr(mpi, "SHORT", 0)
    far = []
    monkeypatch.setattr(
        MpiComm, "_is_far", lambda *given, is_far=MpiComm._is_far: far.append(is_far(*given)) or far[-1]
    )
    check(MpiComm(MPI.COMM_WORLD))
    own_messages = check in (contract.exchange_sums_over_hosts, contract.pieces_are_combined_in_order)
    assert any(far) == (world.size > 1) or own_messages


def test_the_world_is_that_of_mpi(world: Comm) -> None:
    from mpi4py import MPI

    assert isinstance(world.inner if isinstance(world, Checked) else world, MpiComm)
    assert (world.rank, world.size) == (MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size)
    assert current() is world is init()


def test_the_launcher_says_what_mpi_says(world: Comm) -> None:
    launch = detect(os.environ)
    assert launch is not None
    assert launch.name in ("MPICH", "Open MPI")
    assert (launch.rank, launch.size) == (world.rank, world.size)
    assert launch.local_size == world.local_size
    # Open MPI numbers the ranks of a host in its own order, ours is that of the ranks.
    assert sorted(world.gather_objects(launch.local_rank)) == list(range(world.size))


def test_a_given_communicator_is_duplicated(world: Comm) -> None:
    """Messages of the program and ours do not meet, even with the same tag and source."""
    from mpi4py import MPI

    theirs = MPI.COMM_WORLD.Split(world.rank % 2, world.rank)
    ours = MpiComm(theirs)
    assert (ours.rank, ours.size) == (theirs.rank, theirs.size)
    theirs.Free()
    assert ours.gather_objects(world.rank) == list(range(world.rank % 2, world.size, 2))
    with pytest.raises(TypeError, match="communicator must be an mpi4py intra-communicator"):
        MpiComm(MPI.COMM_NULL)
    with pytest.raises(TypeError, match="got int 7"):
        MpiComm(7)  # type: ignore[arg-type]
