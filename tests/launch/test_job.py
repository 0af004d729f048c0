"""Job scripts: right as they lie in launch/, and with anybody's numbers and command filled in."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from sorix_dist.launch import LaunchError
from sorix_dist.launch import job as job_scripts
from sorix_dist.launch.job import SCHEDULERS, Job, fill, script, template
from tests.support.jobs import ROOT, job
from tests.support.launching import needs_mpirun

SHELLS = [kind for kind in SCHEDULERS if kind != "kubernetes"]
AWKWARD = ("a b", "it's", '"q"', "$HOME", "$(id)", "`id`", "\\", "*", "#", "", "a\nb", "é", "--nodes", "{{id}}", "%x")
JOB = Job(
    ("train.py", *AWKWARD), ("/opt/my env/bin/python", "-X", "dev"), "/data/it's here", setup="export A='x y'; true"
)

BIG = Job(
    ("train.py",),
    ("python",),
    "/d",
    nodes=3,
    ranks_per_node=4,
    cores_per_rank=2,
    seconds=5405,
    warning=300,
    name="big-run",
)
WHOLE = {
    "slurm": (
        "#SBATCH --job-name=big-run",
        "#SBATCH --nodes=3",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --cpus-per-task=2",
        "#SBATCH --time=1:30:05",
        "#SBATCH --signal=B:USR1@300",
        "##SBATCH --mem=16G",
        "##SBATCH --account=NAME",
    ),
    "pbs": (
        "#PBS -N big-run",
        "#PBS -l select=3:ncpus=8:mpiprocs=4:ompthreads=2",
        "#PBS -l walltime=1:30:05",
        "WARN_AFTER=5105",
    ),
    "lsf": (
        "#BSUB -J big-run",
        "#BSUB -n 12",
        '#BSUB -R "span[ptile=4]"',
        '#BSUB -R "affinity[core(2)]"',
        "#BSUB -W 1:31",
        "#BSUB -wt 5",
    ),
    "sge": ("#$ -N big-run", "#$ -pe mpi 24", "#$ -l h_rt=1:30:05", "#$ -l s_rt=1:25:05", "CORES_PER_RANK=2"),
    "flux": (
        "# flux: --job-name=big-run",
        "# flux: --nodes=3",
        "# flux: --nslots=12",
        "# flux: --cores-per-slot=2",
        "# flux: --time-limit=5405s",
        "# flux: --signal=USR1@300s",
        "NODES=3",
        "RANKS=12",
        "CORES_PER_RANK=2",
    ),
}


def values(text: str) -> dict[str, list[str]]:
    """What bash itself takes SETUP, DIRECTORY, PYTHON and COMMAND of a script to be."""
    part = "\n".join(line for line in text.partition("# ----")[0].splitlines() if not line.startswith("#"))
    show = 'for word in "$SETUP" "$DIRECTORY" "${PYTHON[@]}" END "${COMMAND[@]}"; do printf "%s\\0" "$word"; done'
    answer = subprocess.run(["bash", "-uc", f"{part}\n{show}"], capture_output=True, check=True, timeout=30)
    words = answer.stdout.decode().split("\0")[:-1]
    end = words.index("END")
    return {"SETUP": words[:1], "DIRECTORY": words[1:2], "PYTHON": words[2:end], "COMMAND": words[end + 1 :]}


def container(text: str, replica: str) -> dict[str, Any]:
    """The one container of a replica of the MPIJob."""
    (found,) = yaml.safe_load(text)["spec"]["mpiReplicaSpecs"][replica]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("kind", SHELLS)
def test_bash_gets_back_what_the_user_gave(kind: str) -> None:
    assert values(script(kind, JOB)) == {
        "SETUP": [JOB.setup],
        "DIRECTORY": [JOB.directory],
        "PYTHON": list(JOB.python),
        "COMMAND": list(JOB.command),
    }


@pytest.mark.parametrize("kind", SHELLS)
@pytest.mark.parametrize("filled", [False, True])
def test_syntax(kind: str, filled: bool, tmp_path: Path) -> None:
    text = script(kind, JOB) if filled else template(SCHEDULERS[kind].template)
    path = tmp_path / "job.sh"
    path.write_text(text, encoding="utf-8")
    checkers = [["bash", "-n"]]
    if shutil.which("shellcheck"):
        checkers.append(["shellcheck", "--shell=bash", "--severity=warning"])
    for checker in checkers:
        answer = subprocess.run([*checker, str(path)], capture_output=True, text=True, timeout=60)
        assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize("kind", WHOLE)
def test_numbers_come_into_the_right_lines(kind: str) -> None:
    lines = script(kind, BIG).splitlines()
    assert [line for line in WHOLE[kind] if line not in lines] == []
    assert not re.search(r"^#(SBATCH|PBS|BSUB|\$) .*NAME", "\n".join(lines), re.MULTILINE), "an option nobody gave"


@pytest.mark.parametrize("kind", SHELLS)
def test_directives_come_before_any_command(kind: str) -> None:
    """Schedulers stop reading them at the first command."""
    lines = template(SCHEDULERS[kind].template).splitlines()
    directive = re.compile(r"#(SBATCH|PBS|BSUB|\$) |# flux: ")
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert [line for line in lines[first_command:] if directive.match(line)] == []
    assert kind == "local" or len([line for line in lines[:first_command] if directive.match(line)]) >= 5


def test_the_options_of_one_scheduler() -> None:
    some = {"command": ("t.py",), "python": ("p",), "directory": "/d", "account": "a1", "queue": "q1"}
    slurm = script("slurm", Job(**some, memory=2048, srun="pmix")).splitlines()
    assert {"#SBATCH --account=a1", "#SBATCH --partition=q1", "#SBATCH --mem=2048M", "SRUN=pmix"} <= {*slurm}
    pbs = script("pbs", Job(**some, memory=2048)).splitlines()
    assert {"#PBS -A a1", "#PBS -q q1", "#PBS -l select=1:ncpus=1:mpiprocs=1:ompthreads=1:mem=2048mb"} <= {*pbs}
    lsf = script("lsf", Job(**some, memory=2048)).splitlines()
    assert {"#BSUB -P a1", "#BSUB -q q1", '#BSUB -R "rusage[mem=2048MB]"'} <= {*lsf}
    sge = script("sge", Job(**some, memory=2048, ranks_per_node=4, parallel_environment="orte")).splitlines()
    assert {"#$ -P a1", "#$ -q q1", "#$ -l h_vmem=512M", "#$ -pe orte 4"} <= {*sge}
    flux = script("flux", Job(**some)).splitlines()
    assert {"# flux: --bank=a1", "# flux: --queue=q1"} <= {*flux}


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        ("flux", {"memory": 1}, "--memory: a flux job script has no such thing"),
        ("kubernetes", {"account": "a"}, "--account: a kubernetes job script"),
        ("pbs", {"srun": "pmix"}, "--srun: a pbs job script"),
        ("flux", {"run_options": ("--bind", "core")}, "--bind: a flux job script starts the ranks without"),
        ("local", {"directives": ("x",)}, "--directive: a local job script has none"),
        ("local", {"nodes": 2}, "--nodes: a local job script runs on this host"),
        ("kubernetes", {"name": "Train"}, "--name: Kubernetes takes .* got 'Train'"),
    ],
)
def test_what_a_scheduler_does_not_have(kind: str, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        script(kind, Job(("t.py",), ("p",), "/d", **changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seconds": 120}, "--warning: expected less than the time limit of 120 seconds, got 120"),
        ({"name": "a b"}, "--name: .* got 'a b'"),
        ({"name": "1st"}, "--name: .* got '1st'"),
        ({"queue": "q\n#SBATCH --exclusive"}, "--queue: expected letters"),
        ({"account": "$(id)"}, "--account: expected letters"),
        ({"command": ("t.py", "\0")}, "NUL"),
        ({"directives": ("--exclusive\n--mem=1",)}, "--directive: expected one line"),
        ({"srun": "pmix", "run_options": ("--tee",)}, "--tee: srun starts the ranks without `sorix-dist run`"),
    ],
)
def test_bad_input(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        script("slurm", Job(**{"command": ("t.py",), "python": ("p",), "directory": "/d"} | changed))


def test_the_mpijob_has_the_fields_of_v2beta1() -> None:
    """Names and types of kubeflow.org/v2beta1, which the API server checks."""
    for text in (template("kubernetes-mpijob.yaml"), script("kubernetes", BIG)):
        whole = yaml.safe_load(text)
        assert (whole["apiVersion"], whole["kind"]) == ("kubeflow.org/v2beta1", "MPIJob")
        assert set(whole) == {"apiVersion", "kind", "metadata", "spec"}
        spec = whole["spec"]
        assert set(spec) == {
            "slotsPerWorker", "launcherCreationPolicy", "mpiImplementation", "runPolicy", "mpiReplicaSpecs",
        }  # fmt: skip
        assert isinstance(spec["slotsPerWorker"], int)
        assert spec["launcherCreationPolicy"] in ("AtStartup", "WaitForWorkersReady")
        assert spec["mpiImplementation"] in ("OpenMPI", "Intel", "MPICH")
        policy = spec["runPolicy"]
        assert set(policy) == {"cleanPodPolicy", "backoffLimit", "activeDeadlineSeconds"}
        assert policy["cleanPodPolicy"] in ("None", "Running", "All")
        assert isinstance(policy["activeDeadlineSeconds"], int)
        assert set(spec["mpiReplicaSpecs"]) == {"Launcher", "Worker"}
        for replica, replicas in spec["mpiReplicaSpecs"].items():
            assert set(replicas) == {"replicas", "restartPolicy", "template"}
            assert replicas["restartPolicy"] in ("Never", "OnFailure")
            assert isinstance(replicas["replicas"], int)
            it = container(text, replica)
            assert set(it) <= {"name", "image", "workingDir", "env", "command", "args", "lifecycle", "resources"}
            assert all(isinstance(word, str) for word in [*it["command"], *it.get("args", ())])
            assert all(isinstance(one["value"], str) for one in it.get("env", ()))
        ranks = {one["name"]: one["value"] for one in container(text, "Launcher")["env"]}["RANKS"]
        assert int(ranks) == spec["slotsPerWorker"] * spec["mpiReplicaSpecs"]["Worker"]["replicas"]


def test_the_mpijob_runs_what_the_user_gave(tmp_path: Path) -> None:
    text = script("kubernetes", Job(JOB.command, JOB.python, JOB.directory, setup=JOB.setup, image="r/i:1"))
    launcher, worker = container(text, "Launcher"), container(text, "Worker")
    assert launcher["image"] == worker["image"] == "r/i:1"
    assert launcher["workingDir"] == worker["workingDir"] == JOB.directory
    # Kubernetes puts $ for $$ and replaces $(NAME); nothing is left to replace
    given = [word.replace("$$", "\0").replace("$(", "REPLACED").replace("\0", "$") for word in launcher["args"]]
    assert given == list(JOB.command)
    assert "$(" not in launcher["command"][2]
    assert "$$" not in launcher["command"][2]
    path = tmp_path / "launcher.sh"
    path.write_text(launcher["command"][2])
    subprocess.run(["bash", "-n", path], check=True, timeout=30)


@needs_mpirun
def test_a_warning_becomes_sigusr1_and_the_exit_code_comes_back(tmp_path: Path) -> None:
    """local.sh as it is, with a script that saves on SIGUSR1, warned twice."""
    train = tmp_path / "train.py"
    train.write_text(
        "import os, signal, sys, time\n"
        "def save(*_):\n    time.sleep(0.5)\n    print('saved', flush=True)\n    os._exit(75)\n"
        "signal.signal(signal.SIGUSR1, save)\nprint('ready', flush=True)\ntime.sleep(60)\n"
    )
    path = tmp_path / "local.sh"
    path.write_text(script("local", Job(("train.py",), (sys.executable,), str(tmp_path))))
    with job(["bash", str(path)], env=os.environ | {"PYTHONPATH": str(ROOT)}) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == "saved\n"
        assert process.wait(30) == 75


@needs_mpirun
def test_ctrl_c_ends_a_local_job(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import os, time\nos.write(1, b'ready\\n')\ntime.sleep(60)\n")
    path = tmp_path / "local.sh"
    path.write_text(script("local", Job(("train.py",), (sys.executable,), str(tmp_path), ranks_per_node=2)))
    with job(["bash", str(path)], env=os.environ | {"PYTHONPATH": str(ROOT)}) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) != 0


@pytest.mark.parametrize("kind", [kind for kind in SCHEDULERS if SCHEDULERS[kind].directive])
def test_directives_follow_the_others_and_come_before_any_command(kind: str) -> None:
    prefix = SCHEDULERS[kind].directive
    lines = script(kind, Job(("t.py",), ("p",), "/d", directives=("--exclusive", "-x 'a b'"))).splitlines()
    at = lines.index(f"{prefix}--exclusive")
    assert lines[at + 1] == f"{prefix}-x 'a b'"
    assert lines[at - 1].startswith(prefix)
    assert all(line.startswith("#") for line in lines[:at])
    assert not any(line.startswith(prefix) for line in lines[at + 2 :])


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_the_header_names_the_file_that_is_written(kind: str) -> None:
    head = script(kind, Job(("t.py",), ("p",), "/d"), "my-job.sh").partition("\n\n")[0]
    assert "my-job.sh" in head
    assert SCHEDULERS[kind].template not in head


def test_options_of_run_stand_before_the_script(tmp_path: Path) -> None:
    """The words that start the ranks, as bash and Kubernetes get them."""
    options = ("--log-dir", "my logs", "--max-restarts", "3", "--env=A=$x")
    job_ = Job(("t.py", "--lr", "1"), ("env", "A=b c", "echo"), "/", run_options=options, ranks_per_node=2)
    path = tmp_path / "local.sh"
    path.write_text(script("local", job_))
    output = subprocess.run(["bash", str(path)], capture_output=True, text=True, check=True, timeout=30).stdout
    assert output == "-P -m sorix_dist run --log-dir my logs --max-restarts 3 --env=A=$x -n 2 t.py --lr 1\n"
    launcher = container(script("kubernetes", job_), "Launcher")
    environ = {one["name"]: one["value"].replace("$$", "$") for one in launcher["env"]}
    output = subprocess.run(
        [*launcher["command"], *launcher["args"]],
        env=os.environ | environ, capture_output=True, text=True, check=True, timeout=30,
    ).stdout  # fmt: skip
    assert output == "-P -m sorix_dist run --log-dir my logs --max-restarts 3 --env=A=$x -n 2 t.py --lr 1\n"


@pytest.mark.parametrize("kind", SHELLS)
def test_a_setup_that_fails_ends_the_job(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "job.sh"
    path.write_text(script(kind, Job(("t.py",), ("echo", "ran"), "/", setup="(exit 3)")))
    ended = subprocess.run(["bash", str(path)], capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout) == (3, "")
    assert ended.stderr == "the setup failed with code 3: (exit 3)\n"


def test_fill_refuses_a_line_that_is_not_there_or_there_twice() -> None:
    assert fill("a=1\n  #b=2\n", {"b=": "3"}) == "a=1\n  b=3\n"
    with pytest.raises(KeyError, match="0 lines begin with 'c='"):
        fill("a=1\n", {"c=": "3"})
    with pytest.raises(KeyError, match="2 lines"):
        fill("a=1\n#a=2\n", {"a=": "3"})


def test_the_wheel_and_the_source_hold_the_templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path), "-t"]
    subprocess.run([*build, "wheel"], cwd=ROOT, check=True, capture_output=True, timeout=100)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "site")
    installed = tmp_path / "site" / "sorix_dist" / "launch" / "scripts"
    names = sorted(path.name for path in (ROOT / "launch").iterdir())
    assert sorted(path.name for path in installed.iterdir()) == names
    here = [template(scheduler.template) for scheduler in SCHEDULERS.values()]
    monkeypatch.setattr(job_scripts, "INSTALLED", installed)
    monkeypatch.setattr(job_scripts, "CHECKOUT", tmp_path)
    assert [template(scheduler.template) for scheduler in SCHEDULERS.values()] == here
