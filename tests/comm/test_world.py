"""How a process comes to its communicator, each case in processes of its own."""

from __future__ import annotations

import sys

import pytest

from sorix_dist.comm import Solo, current, init, using
from tests.support.launching import needs_mpirun, run_command, run_ranks

STARTED_AS_2_OF_4 = {"PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALRANKID": "2", "MPI_LOCALNRANKS": "4"}
SRUN_2_OF_4 = {
    "SLURM_PROCID": "2",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "2",
}
PRINT_WORLD = "import sys; from sorix_dist.comm import *; w = init({}); sys.stdout.write(f'{{w!r}}\\n')"


def lines(arguments: str, ranks: int = 0, env: dict[str, str] | None = None) -> list[str]:
    script = PRINT_WORLD.format(arguments)
    ended = run_ranks(ranks, "-c", script) if ranks else run_command([sys.executable, "-c", script], env=env)
    assert ended.code == 0, ended.err
    return sorted(ended.out.splitlines())


def test_one_process_is_solo_without_mpi4py() -> None:
    script = "import sys\nfrom sorix_dist.comm import *\nprint(current(), 'mpi4py' in sys.modules)"
    assert run_command([sys.executable, "-c", script]).out == "Solo() False\n"


@needs_mpirun
def test_backends() -> None:
    assert lines("", 2) == [f"MpiComm(rank {rank} of 2 on host 0 of 1)" for rank in range(2)]
    assert lines("", 1) == ["Solo()"]
    assert lines("backend='solo'", 2) == ["Solo()", "Solo()"]
    assert lines("backend='mpi'", 1) == ["MpiComm(rank 0 of 1 on host 0 of 1)"]
    assert lines("backend='mpi'") == ["MpiComm(rank 0 of 1 on host 0 of 1)"]
    assert lines("backend='solo'", env=STARTED_AS_2_OF_4) == ["Solo()"]
    assert lines("comm=Solo()", 2) == ["Solo()", "Solo()"]


@needs_mpirun
def test_a_program_that_uses_mpi_already() -> None:
    script = (
        "import sys\nfrom mpi4py import MPI\nfrom sorix_dist.comm import *\n"
        "assert isinstance(current(), MpiComm)\nsys.stdout.write(f'{current()!r}\\n')"
    )
    assert run_command([sys.executable, "-c", script]).out == "MpiComm(rank 0 of 1 on host 0 of 1)\n"
    half = (
        "import sys\nfrom mpi4py import MPI\nfrom sorix_dist.comm import *\nw = MPI.COMM_WORLD\n"
        "c = init(comm=w.Split(w.rank % 2))\nsys.stdout.write(f'{w.rank}: {c!r}\\n')"
    )
    ended = run_ranks(3, "-c", half)
    assert sorted(ended.out.splitlines()) == [
        "0: MpiComm(rank 0 of 2 on host 0 of 1)",
        "1: MpiComm(rank 0 of 1 on host 0 of 1)",
        "2: MpiComm(rank 1 of 2 on host 0 of 1)",
    ], ended.err


def failure(script: str, env: dict[str, str] | None = None) -> str:
    ended = run_command([sys.executable, "-c", script], env=env, limit=60)
    assert ended.code != 0
    assert "Traceback" in ended.err
    return ended.err


def test_mpi4py_missing_under_a_launcher() -> None:
    script = (
        "import sys, importlib.abc\n"
        "class Missing(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'mpi4py': raise ModuleNotFoundError(\"No module named 'mpi4py'\")\n"
        "sys.meta_path.insert(0, Missing())\nfrom sorix_dist.comm import *\ncurrent()"
    )
    error = failure(script, STARTED_AS_2_OF_4)
    assert "This process was started as rank 2 of 4, by MPICH, but mpi4py cannot be loaded" in error
    assert 'pip install "sorix_dist[mpi]"' in error
    assert "rank 2 of 4 (host " in error
    error = failure(script.replace("current()", "init(backend='mpi')"))
    assert "backend='mpi' was asked for, but mpi4py cannot be loaded" in error


@needs_mpirun
def test_many_processes_alone_are_found() -> None:
    """srun without PMI starts N processes, each of which MPI takes for the only one."""
    pytest.importorskip("mpi4py")
    error = failure("from sorix_dist.comm import *\ncurrent()", SRUN_2_OF_4)
    assert "This process was started as rank 2 of 4, by Slurm srun, but " in error
    assert "MPI knows of this one only" in error or "srun has not told Open MPI 5" in error
    assert "use srun --mpi=pmix" in error


@needs_mpirun
def test_the_mpirun_of_another_mpi_is_found_before_mpi_starts() -> None:
    from mpi4py import MPI

    vendor = MPI.get_vendor()[0]
    other, environ = {
        "MPICH": ("Open MPI", {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4"}),
        "Open MPI": ("MPICH", STARTED_AS_2_OF_4),
    }[vendor]
    error = failure("from sorix_dist.comm import *\ncurrent()", environ)
    assert f"started as rank 2 of 4, by {other}: the mpirun of another MPI than the {vendor} " in error


def test_init_twice() -> None:
    script = """
from sorix_dist.comm import *
assert not is_initialized()
first = current()
assert is_initialized()
assert init() is first is init(timeout=300.0)
try:
    init(threads=2, timeout=9)
except RuntimeError as error:
    print(error)
"""
    out = run_command([sys.executable, "-c", script]).out
    assert out.startswith("init: timeout=9 instead of 300.0, threads=2 instead of 'auto', but the comm")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"timeout": 0}, "timeout must be a finite number of seconds above 0 .* got 0"),
        ({"timeout": "5"}, "timeout must be a finite number of seconds above 0 .* got '5'"),
        ({"timeout": float("nan")}, "timeout .* got nan"),
        ({"timeout": float("inf")}, "timeout .*1e9: no limit.* got inf"),
        ({"timeout": None}, "timeout .* got None"),
        ({"timeout": True}, "timeout .* got True"),
        ({"threads": 0}, "threads must be 'auto' or an int of 1 or more, got 0"),
        ({"threads": True}, "threads .* got True"),
        ({"threads": "all"}, "threads .* got 'all'"),
        ({"backend": "gloo"}, "backend must be one of 'auto', 'mpi', 'solo', got 'gloo'"),
        ({"comm": Solo(), "backend": "solo"}, "comm and backend='solo' exclude each other"),
    ],
)
def test_bad_options_are_named(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        init(**arguments)  # type: ignore[arg-type]


def test_using_nests() -> None:
    one, two = Solo(), Solo()
    with using(one):
        with using(two) as given:
            assert given is two is current() is init()
        assert current() is one


@needs_mpirun
@pytest.mark.parametrize("late", [0, 1])
def test_a_rank_that_never_comes_is_not_waited_for_longer_than_the_timeout(late: int) -> None:
    """MPI_Init waits for all ranks and holds Python's lock meanwhile."""
    script = f"""
import time
from sorix_dist.comm import *
from sorix_dist.watchdog.launcher import detect
import os
if detect(os.environ).rank == {late}:
    time.sleep(40)
init(timeout=2)
"""
    ended = run_ranks(2, "-c", script, limit=35)
    assert ended.code != 0
    assert ended.seconds < 30
    waits = 1 - late
    assert f"rank {waits} has waited 2 s (init(timeout=)) in the start of MPI" in ended.err
    assert f"rank {late} has not arrived; ending all ranks" in ended.err
    assert f"the stack of rank {late}, innermost call first:\n" in ended.err


@needs_mpirun
def test_what_is_no_communicator() -> None:
    pytest.importorskip("mpi4py")
    error = failure("from sorix_dist.comm import *\ninit(comm=3)")
    assert "communicator must be an mpi4py intra-communicator that is not COMM_NULL, got int 3" in error
