"""What the variables of each launcher say, and which of them say nothing about ranks."""

from __future__ import annotations

import pytest

from sorix_dist.watchdog.launcher import Launch, detect

OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "PMIX_RANK": "5",
    "PMIX_NAMESPACE": "prterun-node1-1@1",
}
HYDRA = {"PMI_RANK": "5", "PMI_SIZE": "8", "PMI_FD": "9", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"}
SBATCH = {
    "SLURM_JOB_ID": "77",
    "SLURM_NTASKS": "8",
    "SLURM_NPROCS": "8",
    "SLURM_TASKS_PER_NODE": "4(x2)",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_GTIDS": "0",
}
SRUN = SBATCH | {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEPID": "0",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_TASKS_PER_NODE": "4,2",
}
PALS = {
    "PALS_RANKID": "5",
    "PMI_RANK": "5",
    "PMI_SIZE": "8",
    "PALS_LOCAL_RANKID": "1",
    "PALS_LOCAL_SIZE": "4",
}
FLUX = {"FLUX_TASK_RANK": "5", "FLUX_JOB_SIZE": "8", "FLUX_TASK_LOCAL_ID": "1", "FLUX_JOB_ID": "f2"}


def _prefixed(prefix: str) -> dict[str, str]:
    return {
        prefix + "RANK": "5",
        prefix + "SIZE": "8",
        prefix + "LOCAL_RANK": "1",
        prefix + "LOCAL_SIZE": "4",
    }


@pytest.mark.parametrize(
    ("environ", "launch"),
    [
        (OPEN_MPI, Launch("Open MPI", 5, 8, 1, 4)),
        (HYDRA, Launch("MPICH", 5, 8, 1, 4)),
        (_prefixed("MV2_COMM_WORLD_"), Launch("MVAPICH2", 5, 8, 1, 4)),
        (_prefixed("MV2_COMM_WORLD_") | HYDRA, Launch("MVAPICH2", 5, 8, 1, 4)),
        (SRUN, Launch("Slurm srun", 5, 6, 1, 2)),
        (PALS, Launch("Cray PALS", 5, 8, 1, 4)),
        (_prefixed("JSM_NAMESPACE_"), Launch("LSF jsrun", 5, 8, 1, 4)),
        (FLUX, Launch("Flux", 5, 8, 1, None)),
        ({"PMIX_RANK": "5", "PMIX_NAMESPACE": "n"}, Launch("PMIx", 5, None, None, None)),
        ({"PMI_RANK": "5", "PMI_SIZE": "8"}, Launch("PMI", 5, 8, None, None)),
        # Several at once: an MPI's own launcher is the innermost one.
        (SRUN | OPEN_MPI, Launch("Open MPI", 5, 8, 1, 4)),
        (SBATCH | HYDRA, Launch("MPICH", 5, 8, 1, 4)),
        (FLUX | OPEN_MPI, Launch("Open MPI", 5, 8, 1, 4)),
        # A scheduler that speaks PMI keeps its name and its local ranks.
        (SRUN | {"PMI_RANK": "5", "PMI_SIZE": "6"}, Launch("Slurm srun", 5, 6, 1, 2)),
        (SRUN | {"PMIX_RANK": "5", "PMIX_NAMESPACE": "n"}, Launch("Slurm srun", 5, 6, 1, 2)),
        (FLUX | {"PMI_RANK": "5", "PMI_SIZE": "8"}, Launch("Flux", 5, 8, 1, None)),
    ],
)
def test_each_launcher_is_understood(environ: dict[str, str], launch: Launch) -> None:
    assert detect(environ) == launch


@pytest.mark.parametrize(
    "environ",
    [
        {},
        SBATCH,  # the batch script is no rank, though its SLURM_PROCID is 0
        SBATCH | {"SLURM_STEP_ID": "4294967291", "SLURM_STEP_NUM_TASKS": "8"},  # the batch step's number
        SBATCH | {"SLURM_STEPID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},  # salloc's interactive step
        SBATCH | {"SLURM_STEP_ID": "batch", "SLURM_STEP_NUM_TASKS": "8"},
        {"PBS_JOBID": "1", "PBS_NODEFILE": "/x"},
        {"LSB_JOBID": "1"},
        {"JOB_ID": "1", "NSLOTS": "8"},
        {"FLUX_JOB_ID": "f2"},
        {"PMIX_RANK": "0"},
        {"PMI_RANK": "0"},
        {"OMPI_COMM_WORLD_RANK": "x", "OMPI_COMM_WORLD_SIZE": "8"},
        {"OMPI_COMM_WORLD_RANK": "", "OMPI_COMM_WORLD_SIZE": ""},
        {"PMI_RANK": "-1", "PMI_SIZE": "8"},
    ],
)
def test_a_job_alone_is_no_launch(environ: dict[str, str]) -> None:
    assert detect(environ) is None


@pytest.mark.parametrize(
    ("entries", "node", "tasks"),
    [
        ("4", "0", 4),
        ("4(x3),1", "2", 4),
        ("4(x3),1", "3", 1),
        ("4(x3),1", "4", None),
        ("2,1(x2)", "1", 1),
        ("many", "0", None),
        ("", "0", None),
        ("4", "", None),
    ],
)
def test_slurms_tasks_per_node(entries: str, node: str, tasks: int | None) -> None:
    launch = detect(SRUN | {"SLURM_STEP_TASKS_PER_NODE": entries, "SLURM_NODEID": node})
    assert launch is not None
    assert launch.local_size == tasks


def test_several() -> None:
    assert Launch("MPICH", 0, 2, 0, 2).several
    assert not Launch("MPICH", 0, 1, 0, 1).several
    assert Launch("PMIx", 0, None, None, None).several
    assert str(Launch("MPICH", 1, 2, 1, 2)) == "rank 1 of 2, by MPICH"
    assert str(Launch("PMIx", 1, None, None, None)) == "rank 1 of an unknown number, by PMIx"
