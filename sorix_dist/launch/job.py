"""A scheduler's job script: a file of `launch/` with the user's numbers, names and command filled in."""

from __future__ import annotations

import json
import re
import shlex
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sorix_dist.launch import LaunchError

INSTALLED = Path(__file__).parent / "scripts"
CHECKOUT = Path(__file__).parents[2] / "launch"


@dataclass(frozen=True)
class Job:
    """A job: its command, its resources and its time limit. None is the scheduler's default.

    command: the script or module and its arguments; python: the words that start the interpreter; run_options: of
    `sorix-dist run`; seconds: the time limit; warning: how long before it the ranks must save; memory: of a
    host, in MB; setup: shell commands that run first; srun: the plugin that srun starts the ranks with;
    directives: options of the scheduler, written as they are.
    """

    command: Sequence[str]
    python: Sequence[str]
    directory: str
    run_options: Sequence[str] = ()
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
    directives: Sequence[str] = ()

    def values(self) -> dict[str, Any]:
        """The fields, and what follows from them, by the names that `Scheduler.lines` uses."""
        ranks, cores = self.nodes * self.ranks_per_node, self.ranks_per_node * self.cores_per_rank
        memory = self.memory
        return vars(self) | {
            "ranks": ranks,
            "cores": cores,
            "slots": ranks * self.cores_per_rank,
            "until_warning": self.seconds - self.warning,
            "whole_minutes": -(-self.seconds // 60) * 60,  # still in seconds
            "warning_minutes": -(-self.warning // 60),
            "chunk_memory": "" if memory is None else f":mem={memory}mb",
            "slot_memory": None if memory is None else max(1, memory // cores),
            "parallel_environment": self.parallel_environment or "mpi",
        }


@dataclass(frozen=True)
class Scheduler:
    """One kind of job script.

    template: its file in `launch/`; submit: the command that submits {}; directive: what an option of the scheduler
    begins with, "" if there are none; lines: those of the template that are filled in, as format strings for
    `Job.values`. One with a value that is None stays as it is in the template.
    """

    template: str
    submit: str
    directive: str
    lines: str

    def has(self, option: str) -> bool:
        """Whether a field of `Job` has a place in this kind of script."""
        return any(name.endswith(option) for name in _names(self.lines))


_SHELL = """\
SETUP={setup!q}
DIRECTORY={directory!q}
PYTHON=({python!w})
COMMAND=({command!w})
"""
_RUN = _SHELL + "RUN_OPTIONS=({run_options!w})\n"

_SLURM = """\
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={ranks_per_node}
#SBATCH --cpus-per-task={cores_per_rank}
#SBATCH --time={seconds!t}
#SBATCH --mem={memory}M
#SBATCH --account={account}
#SBATCH --partition={queue}
#SBATCH --signal=B:USR1@{warning}
SRUN={srun}
"""
_PBS = """\
#PBS -N {name}
#PBS -l select={nodes}:ncpus={cores}:mpiprocs={ranks_per_node}:ompthreads={cores_per_rank}{chunk_memory}
#PBS -l walltime={seconds!t}
#PBS -A {account}
#PBS -q {queue}
WARN_AFTER={until_warning}
"""
_LSF = """\
#BSUB -J {name}
#BSUB -n {ranks}
#BSUB -R "span[ptile={ranks_per_node}]"
#BSUB -R "affinity[core({cores_per_rank})]"
#BSUB -R "rusage[mem={memory}MB]"
#BSUB -W {whole_minutes!m}
#BSUB -P {account}
#BSUB -q {queue}
#BSUB -wt {warning_minutes}
"""
_SGE = """\
#$ -N {name}
#$ -pe {parallel_environment} {slots}
#$ -l h_rt={seconds!t}
#$ -l s_rt={until_warning!t}
#$ -l h_vmem={slot_memory}M
#$ -P {account}
#$ -q {queue}
CORES_PER_RANK={cores_per_rank}
"""
_FLUX = """\
# flux: --job-name={name}
# flux: --nodes={nodes}
# flux: --nslots={ranks}
# flux: --cores-per-slot={cores_per_rank}
# flux: --time-limit={seconds}s
# flux: --signal=USR1@{warning}s
# flux: --bank={account}
# flux: --queue={queue}
NODES={nodes}
RANKS={ranks}
CORES_PER_RANK={cores_per_rank}
"""
_KUBERNETES = """\
name: &name {name}
slotsPerWorker: &ranks-per-node {ranks_per_node}
activeDeadlineSeconds: &time {seconds}
image: &image {image!j}
workingDir: &directory {directory!j}
value: &ranks "{ranks}"
value: &python {python!y}
value: &setup {setup!y}
value: &run-options {run_options!y}
args: &command [{command!l}]
replicas: &nodes {nodes}
cpu: &cores "{cores}"
memory: &memory {memory}Mi
"""

SCHEDULERS = {
    "slurm": Scheduler("slurm.sbatch", "sbatch {}", "#SBATCH ", _SLURM + _RUN),
    "pbs": Scheduler("pbs.sh", "qsub {}", "#PBS ", _PBS + _RUN),
    "lsf": Scheduler("lsf.bsub", "bsub < {}", "#BSUB ", _LSF + _RUN),
    "sge": Scheduler("sge.sh", "qsub {}", "#$ ", _SGE + _RUN),
    "flux": Scheduler("flux.sh", "flux batch {}", "# flux: ", _FLUX + _SHELL),
    "kubernetes": Scheduler("kubernetes-mpijob.yaml", "kubectl apply -f {}", "", _KUBERNETES),
    "local": Scheduler("local.sh", "bash {}", "", "RANKS={ranks}\n" + _RUN),
}


def script(kind: str, job: Job, file: str = "FILE") -> str:
    """The text of a job script that will be stored as `file`.

    Raises LaunchError for a value that can't be written in a script, and for an option that the scheduler lacks.
    """
    scheduler = SCHEDULERS[kind]
    for mistake in _mistakes(kind, scheduler, job):
        raise LaunchError(mistake)
    values, filled = job.values(), {}
    for line in scheduler.lines.splitlines():
        if all(values[name] is not None for name in _names(line)):
            beginning = line.partition("{")[0]
            filled[beginning] = _Formatter().format(line, **values).removeprefix(beginning)
    lines = fill(template(scheduler.template).replace(scheduler.template, " ".join(file.split())), filled).splitlines()
    if job.directives:
        last = max(i for i, line in enumerate(lines) if line.startswith(scheduler.directive))
        lines[last + 1 : last + 1] = [scheduler.directive + directive for directive in job.directives]
    return "\n".join(lines) + "\n"


def template(name: str) -> str:
    """The text of a file of the top-level folder `launch/`, in a checkout and in an installed package alike."""
    return ((INSTALLED if INSTALLED.is_dir() else CHECKOUT) / name).read_text(encoding="utf-8")


def fill(text: str, lines: Mapping[str, str]) -> str:
    """The text with other values in some of its lines.

    lines: what follows the beginning of a line, by that beginning. A line that is commented out begins like the line
    that it stands for, and comes into force. KeyError unless exactly one line begins so.
    """
    result = text.splitlines()
    for beginning, value in lines.items():
        found = [i for i, line in enumerate(result) if _bare(line).startswith(_bare(beginning))]
        if len(found) != 1:
            raise KeyError(f"{len(found)} lines begin with {beginning!r}, expected 1")
        line = result[found[0]]
        result[found[0]] = line[: len(line) - len(line.lstrip())] + beginning + value
    return "\n".join(result) + "\n"


def _bare(line: str) -> str:
    return "".join(line.replace("#", "").split())


def _names(text: str) -> list[str]:
    """The names in a format string."""
    return [name for _, name, _, _ in string.Formatter().parse(text) if name]


def _mistakes(kind: str, scheduler: Scheduler, job: Job) -> Iterator[str]:
    """Errors for values that can't be written in a script, and for options that the scheduler lacks."""
    if job.warning >= job.seconds:
        yield f"--warning: expected less than the time limit of {job.seconds} seconds, got {job.warning}"
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", job.name):
        yield f"--name: expected a letter, then letters, digits and '-_.', got {job.name!r}"
    if kind == "kubernetes" and not re.fullmatch(r"[a-z]([a-z0-9-]{0,40}[a-z0-9])?", job.name):
        yield f"--name: Kubernetes takes at most 42 of 'a-z0-9-', a letter first, got {job.name!r}"
    if kind == "local" and job.nodes > 1:
        yield f"--nodes: a local job script runs on this host; for {job.nodes}, set its HOSTFILE by hand"
    for field in ("account", "queue", "memory", "srun", "image", "parallel_environment"):
        value, option = getattr(job, field), "--" + field.replace("_", "-")
        if value is not None and not scheduler.has(field):
            yield f"{option}: a {kind} job script has no such thing"
        if isinstance(value, str) and not re.fullmatch(r"[\w.:@/+=,-]+", value, re.ASCII):
            yield f"{option}: expected letters, digits and '_.:@/+=,-', got {value!r}"
    if job.run_options and (job.srun or not scheduler.has("run_options")):
        starter = "srun" if job.srun else f"a {kind} job script"
        yield f"{job.run_options[0]}: {starter} starts the ranks without `sorix-dist run`, whose option this is"
    if job.directives and not scheduler.directive:
        yield f"--directive: a {kind} job script has none"
    for directive in job.directives:
        if not directive.isprintable() or not directive.strip():
            yield f"--directive: expected one line, got {directive!r}"
    for text in (*job.command, *job.python, *job.run_options, job.directory, job.setup):
        if "\0" in text:
            yield f"a job's command cannot contain a NUL character, got {text!r}"


class _Formatter(string.Formatter):
    """Format strings with conversions for shells, clocks and YAML."""

    def convert_field(self, value: Any, conversion: Any) -> Any:
        """`value`, converted: `{name!CONVERSION}`."""
        match conversion:
            case "q":
                return shlex.quote(value)
            case "w":
                return shlex.join(value)
            case "t":
                return f"{value // 3600}:{value // 60 % 60:02}:{value % 60:02}"
            case "m":
                return f"{value // 3600}:{value // 60 % 60:02}"
            case "j":
                return json.dumps(value)
            case "y":
                return _literal(value if isinstance(value, str) else shlex.join(value))
            case "l":
                return ", ".join(map(_literal, value))
        return super().convert_field(value, conversion)


def _literal(text: str) -> str:
    """A string in YAML. Kubernetes does not replace a $(NAME) in it."""
    return json.dumps(text.replace("$", "$$"))
