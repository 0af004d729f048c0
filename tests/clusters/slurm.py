"""Runs launch/slurm.sbatch on a real Slurm, which is installed and started on this machine for it: `make slurm`."""

from __future__ import annotations

import os
import re
import socket
import sys
from pathlib import Path

from tests.clusters.service import PYTHON, ROOT, Failed, Machine, expect, main, need_packages, need_root, text, wait_for

PACKAGES = {
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "sbatch": "slurm-wlm",
    "munged": "munge",
    "/usr/lib/*/pmix2/lib/libpmix.so": "libpmix-dev",  # Debian's plugin of srun opens the library by this name
}
CORES = max(2, os.cpu_count() or 1)
PREEMPTED = ROOT / "tests" / "ranks" / "preempted.py"


def configuration(folder: Path, host: str, ports: tuple[int, int]) -> str:
    """A slurm.conf for one node, this machine, on which several jobs may share a core."""
    return f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldTimeout=30
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=5,batch_sched_delay=0
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={CORES} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES OverSubscribe=FORCE:4 MaxTime=INFINITE State=UP
"""


def start(machine: Machine) -> None:
    """munge, slurmctld and slurmd, up to a node that takes jobs."""
    folder, host = machine.folder, socket.gethostname().partition(".")[0]
    for name in ("state", "spool", "jobs"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    files = [f"--{file}-file={folder}/munge.{file}" for file in ("key", "pid", "log", "seed")]
    machine.daemon("munged", "--foreground", f"--socket={folder}/munge.socket", *files)
    wait_for("munged", 20, (folder / "munge.socket").exists)
    with socket.socket() as first, socket.socket() as second:
        for listener in (first, second):
            listener.bind(("127.0.0.1", 0))
        ports = (first.getsockname()[1], second.getsockname()[1])
    conf = folder / "slurm.conf"
    conf.write_text(configuration(folder, host, ports))
    machine.env["SLURM_CONF"] = str(conf)
    machine.daemon("slurmctld", "-D", "-f", str(conf))
    machine.daemon("slurmd", "-D", "-f", str(conf), "-N", host)
    wait_for(
        "a node that takes jobs",
        60,
        lambda: "idle" in machine.run("sinfo", "--noheader", "--format=%T", code=None).stdout,
        lambda: machine.run("sinfo", "--long", "--Node", code=None).stdout,
    )


class Cluster:
    """A Slurm that runs on this machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.jobs = machine.folder / "jobs"

    def script(self, name: str, *arguments: str) -> Path:
        """A job script for two ranks by `sorix-dist job slurm`."""
        path = self.jobs / f"{name}.sbatch"
        job = ("--name", name, "--ranks-per-node", "2", "--directory", str(ROOT), "--output", str(path))
        self.machine.run(PYTHON, "-m", "sorix_dist", "job", "slurm", *job, *arguments)
        return path

    def submit(self, script: Path, *options: str, cwd: Path | None = None) -> tuple[str, Path]:
        """The number and the output of a job."""
        output = self.jobs / "%x-%j.out"
        answer = self.machine.run("sbatch", "--parsable", f"--output={output}", *options, str(script), cwd=cwd)
        number = answer.stdout.strip()
        (name,) = re.findall(r"JobName=(\S+)", self.machine.run("scontrol", "show", "job", number).stdout)
        return number, self.jobs / f"{name}-{number}.out"

    def clear(self) -> None:
        """Ends all jobs."""
        self.machine.run("scancel", "--user=root", code=None)
        wait_for("an empty queue", 60, lambda: not self.machine.run("squeue", "--noheader").stdout)

    def exit_code(self, number: str, output: Path, limit: float) -> int:
        """The exit code of a job that ends within `limit` seconds."""

        def shown() -> str:
            return self.machine.run("scontrol", "show", "job", number).stdout

        wait_for(
            f"the end of job {number}",
            limit,
            lambda: not re.search("JobState=(PENDING|CONFIGURING|RUNNING|COMPLETING)", shown()),
            lambda: shown() + text(output),
        )
        code, signal = map(int, re.findall(r"ExitCode=(\d+):(\d+)", shown())[0])
        return 128 + signal if signal else code


def trained(cluster: Cluster, number: str, output: Path, how: str) -> None:
    """Checks a finished job of examples/train.py."""
    code = cluster.exit_code(number, output, 120)
    said = text(output)
    expect(code == 0, f"{how}: exit code 0", f"{code}\n{said}")
    expect("ranks: 2" in said, f"{how}: 2 ranks trained together", said)
    accuracy = float(re.findall(r"test accuracy ([\d.]+)%", said)[-1])
    expect(accuracy > 96, f"{how}: test accuracy {accuracy} %", said)


def saved(cluster: Cluster, number: str, output: Path, how: str, limit: float) -> int:
    """The step at which both ranks of a job were told to make room, and saved."""
    code = cluster.exit_code(number, output, limit)
    said = text(output)
    expect(code == 75, f"{how}: exit code 75", f"{code}\n{said}")
    found = re.search(r"saved step (\d+), warned ranks: (\d)", said)
    if found is None:
        raise Failed(f"{how}: nothing was saved\n{said}")
    expect(found[2] == "2", f"{how}: both ranks got SIGUSR1 and saved at step {found[1]}", said)
    return int(found[1])


def preempted(cluster: Cluster) -> None:
    """Warns the digits example by scancel: it saves, and goes on when it is submitted again."""
    folder, epochs = str(cluster.machine.folder / "checkpoints"), "150"
    script = cluster.script(
        "digits", "--time", "0:05:00", "examples/train.py", "--epochs", epochs, "--checkpoint", folder
    )
    number, output = cluster.submit(script)
    wait_for("some epochs", 60, lambda: "epoch 10 " in text(output), lambda: text(output))
    cluster.machine.run("scancel", "--signal=TERM", "--batch", number)
    code = cluster.exit_code(number, output, 30)
    said = text(output)
    found = re.search(r"preempted, saved at step (\d+)", said)
    expect(code == 75 and found is not None, "scancel --signal=TERM: a checkpoint is saved, exit code 75", said)
    assert found is not None
    number, output = cluster.submit(script)
    trained(cluster, number, output, "submitted again")
    said = text(output)
    expect(f"goes on from step {found[1]}\n" in said, f"submitted again: goes on from step {found[1]}", said)
    expect(f"epoch {epochs} " in said and "epoch  1 " not in said, f"submitted again: to epoch {epochs}", said)


def use(cluster: Cluster) -> None:
    """The jobs of the check."""
    # The time limit's warning comes when it comes, within a minute: meanwhile the rest is done.
    state = cluster.machine.folder / "limited"
    script = cluster.script(
        "limited", "--time", "0:02:00", "--warning", "90", "--srun", "pmix", str(PREEMPTED), str(state), "100000"
    )
    limited = cluster.submit(script)

    raw = cluster.submit(ROOT / "launch" / "slurm.sbatch", "--nodes=1", "--ntasks-per-node=2", cwd=ROOT / "examples")
    trained(cluster, *raw, "sbatch launch/slurm.sbatch")

    script = cluster.script("by-srun", "--time", "0:05:00", "--srun", "pmix", "examples/train.py")
    trained(cluster, *cluster.submit(script), "srun --mpi=pmix")

    preempted(cluster)
    saved(cluster, *limited, "the time limit, under srun", 130)


def check() -> None:
    """Trains by sbatch and by srun; warns a job by scancel and by its time limit, and goes on."""
    need_root("a Slurm of our own")
    need_packages(PACKAGES)
    with Machine() as machine:
        start(machine)
        cluster = Cluster(machine)
        try:
            use(cluster)
        finally:
            cluster.clear()


if __name__ == "__main__":
    sys.exit(main(check))
