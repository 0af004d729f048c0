"""A scheduler's job script: a file of launch/ with the user's numbers, names and command in it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sorix_dist.launch.errors import LaunchError
from sorix_dist.launch.templates import fill, template

Lines = dict[str, str | None]
"""What comes after the beginning of a line, for each beginning; None leaves the line as it is."""


@dataclass(frozen=True)
class Job:
    """What runs, on how much and for how long; None leaves the scheduler's own default.

    seconds: the time limit; warning: how many of them before it the ranks are told to save; memory: of a host,
    in MB; setup: shell commands that run first; srun: the plugin that makes srun start the ranks; image:
    the container's; parallel_environment: Grid Engine's.
    """

    command: Sequence[str]
    python: str
    directory: str
    nodes: int = 1
    ranks_per_node: int = 1
    cores_per_rank: int = 1
    seconds: int = 3600
    warning: int = 120
    name: str = "train"
    account: str | None = None
    queue: str | None = None
    memory: int | None = None
    setup: str = ""
    srun: str | None = None
    image: str | None = None
    parallel_environment: str | None = None

    def __post_init__(self) -> None:
        for option in ("nodes", "ranks_per_node", "cores_per_rank", "warning"):
            if getattr(self, option) < 1:
                raise LaunchError(f"{_option(option)}: expected at least 1, got {getattr(self, option)}")
        if self.warning >= self.seconds:
            raise LaunchError(
                f"--warning: expected less than the time limit of {self.seconds} seconds, got {self.warning}"
            )
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", self.name):
            raise LaunchError(f"--name: expected a letter, then letters, digits and '-_.', got {self.name!r}")
        for option in ("account", "queue", "srun", "image", "parallel_environment"):
            value = getattr(self, option)
            if value is not None and not re.fullmatch(r"[\w.:@/+=,-]+", value, re.ASCII):
                raise LaunchError(f"{_option(option)}: expected letters, digits and '_.:@/+=,-', got {value!r}")
        for text in (*self.command, self.python, self.directory):
            if "\0" in text:
                raise LaunchError(f"a job's command cannot hold a NUL character, got {text!r}")

    @property
    def ranks(self) -> int:
        """The number of all ranks."""
        return self.nodes * self.ranks_per_node

    @property
    def cores(self) -> int:
        """The cores of a host that the job takes."""
        return self.ranks_per_node * self.cores_per_rank


def script(kind: str, job: Job) -> str:
    """The text of the job script; LaunchError for an option that this scheduler does not have."""
    scheduler = SCHEDULERS[kind]
    for option in ("account", "queue", "memory", "srun", "image", "parallel_environment"):
        if getattr(job, option) is not None and option not in scheduler.options:
            raise LaunchError(f"{_option(option)}: a {kind} job script has no such thing")
    lines = {beginning: value for beginning, value in scheduler.lines(job).items() if value is not None}
    return fill(template(scheduler.template), lines)


def _option(attribute: str) -> str:
    return "--" + attribute.replace("_", "-")


def _shell(job: Job) -> Lines:
    return {
        "SETUP=": shlex.quote(job.setup),
        "DIRECTORY=": shlex.quote(job.directory),
        "PYTHON=": shlex.quote(job.python),
        "COMMAND=": f"({shlex.join(job.command)})",
    }


def _clock(seconds: int) -> str:
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _slurm(job: Job) -> Lines:
    return _shell(job) | {
        "#SBATCH --job-name=": job.name,
        "#SBATCH --nodes=": str(job.nodes),
        "#SBATCH --ntasks-per-node=": str(job.ranks_per_node),
        "#SBATCH --cpus-per-task=": str(job.cores_per_rank),
        "#SBATCH --time=": _clock(job.seconds),
        "#SBATCH --mem=": None if job.memory is None else f"{job.memory}M",
        "#SBATCH --account=": job.account,
        "#SBATCH --partition=": job.queue,
        "#SBATCH --signal=": f"B:USR1@{job.warning}",
        "SRUN=": job.srun,
    }


def _pbs(job: Job) -> Lines:
    memory = "" if job.memory is None else f":mem={job.memory}mb"
    chunk = f"ncpus={job.cores}:mpiprocs={job.ranks_per_node}:ompthreads={job.cores_per_rank}{memory}"
    return _shell(job) | {
        "#PBS -N ": job.name,
        "#PBS -l select=": f"{job.nodes}:{chunk}",
        "#PBS -l walltime=": _clock(job.seconds),
        "#PBS -A ": job.account,
        "#PBS -q ": job.queue,
        "WARN_AFTER=": str(job.seconds - job.warning),
    }


def _lsf(job: Job) -> Lines:
    minutes = -(-job.seconds // 60)
    return _shell(job) | {
        "#BSUB -J ": job.name,
        "#BSUB -n ": str(job.ranks),
        '#BSUB -R "span[': f'ptile={job.ranks_per_node}]"',
        '#BSUB -R "affinity[': f'core({job.cores_per_rank})]"',
        '#BSUB -R "rusage[': None if job.memory is None else f'mem={job.memory}MB]"',
        "#BSUB -W ": f"{minutes // 60}:{minutes % 60:02}",
        "#BSUB -P ": job.account,
        "#BSUB -q ": job.queue,
        "#BSUB -wt ": str(-(-job.warning // 60)),
    }


def _sge(job: Job) -> Lines:
    slots = job.ranks * job.cores_per_rank
    return _shell(job) | {
        "#$ -N ": job.name,
        "#$ -pe ": f"{job.parallel_environment or 'mpi'} {slots}",
        "#$ -l h_rt=": _clock(job.seconds),
        "#$ -l s_rt=": _clock(job.seconds - job.warning),
        "#$ -l h_vmem=": None if job.memory is None else f"{max(1, job.memory // job.cores)}M",  # of a slot
        "#$ -P ": job.account,
        "#$ -q ": job.queue,
        "CORES_PER_RANK=": str(job.cores_per_rank),
    }


def _flux(job: Job) -> Lines:
    return _shell(job) | {
        "# flux: --job-name=": job.name,
        "# flux: --nodes=": str(job.nodes),
        "# flux: --nslots=": str(job.ranks),
        "# flux: --cores-per-slot=": str(job.cores_per_rank),
        "# flux: --time-limit=": f"{job.seconds}s",
        "# flux: --signal=": f"USR1@{job.warning}s",
        "# flux: --bank=": job.account,
        "# flux: --queue=": job.queue,
        "NODES=": str(job.nodes),
        "RANKS=": str(job.ranks),
        "CORES_PER_RANK=": str(job.cores_per_rank),
    }


def _kubernetes(job: Job) -> Lines:
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,40}[a-z0-9])?", job.name):
        raise LaunchError(f"--name: Kubernetes takes at most 42 of 'a-z0-9-', a letter first, got {job.name!r}")
    return {
        "name: &name ": job.name,
        "slotsPerWorker: &ranks-per-node ": str(job.ranks_per_node),
        "activeDeadlineSeconds: &time ": str(job.seconds),
        "image: &image ": None if job.image is None else json.dumps(job.image),
        "workingDir: &directory ": json.dumps(job.directory),
        "value: &ranks ": f'"{job.ranks}"',
        "value: &python ": _literal(job.python),
        "value: &setup ": _literal(job.setup),
        "args: &command ": f"[{', '.join(map(_literal, job.command))}]",
        "replicas: &nodes ": str(job.nodes),
        "cpu: &cores ": f'"{job.cores}"',
        "memory: &memory ": None if job.memory is None else f"{job.memory}Mi",
    }


def _literal(text: str) -> str:
    """A string in YAML whose $(NAME) Kubernetes does not replace."""
    return json.dumps(text.replace("$", "$$"))


def _local(job: Job) -> Lines:
    if job.nodes > 1:
        raise LaunchError(f"--nodes: a local job script runs on this host; for {job.nodes}, set its HOSTFILE by hand")
    return _shell(job) | {"RANKS=": str(job.ranks)}


@dataclass(frozen=True)
class Scheduler:
    """A scheduler's template, how it is filled, the options that only some have, and how a script is submitted."""

    template: str
    lines: Callable[[Job], Lines]
    options: tuple[str, ...]
    submit: str


_QUEUES = ("account", "queue")

SCHEDULERS = {
    "slurm": Scheduler("slurm.sbatch", _slurm, (*_QUEUES, "memory", "srun"), "sbatch {}"),
    "pbs": Scheduler("pbs.sh", _pbs, (*_QUEUES, "memory"), "qsub {}"),
    "lsf": Scheduler("lsf.bsub", _lsf, (*_QUEUES, "memory"), "bsub < {}"),
    "sge": Scheduler("sge.sh", _sge, (*_QUEUES, "memory", "parallel_environment"), "qsub {}"),
    "flux": Scheduler("flux.sh", _flux, _QUEUES, "flux batch {}"),
    "kubernetes": Scheduler("kubernetes-mpijob.yaml", _kubernetes, ("memory", "image"), "kubectl apply -f {}"),
    "local": Scheduler("local.sh", _local, (), "bash {}"),
}
