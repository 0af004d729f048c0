"""Runs launch/sge.sh on a real Grid Engine, which is installed and started on this machine for it: `make sge`."""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path

from tests.clusters.service import PYTHON, ROOT, Failed, Machine, expect, main, need_packages, need_root, text, wait_for

BINARIES = Path("/usr/lib/gridengine")
DATA = Path("/usr/share/gridengine")
PACKAGES = {
    "sge_qmaster": "gridengine-master",
    "sge_execd": "gridengine-exec",
    "/usr/bin/qsub": "gridengine-client",
}
EPOCHS = "300"
ENVIRONMENT = """
pe_name            mpi
slots              8
user_lists         NONE
xuser_lists        NONE
start_proc_args    NONE
stop_proc_args     NONE
allocation_rule    $fill_up
control_slaves     TRUE
job_is_first_task  FALSE
urgency_slots      min
accounting_summary FALSE
qsort_args         NONE
"""
"""A parallel environment."""


def start(machine: Machine) -> None:
    """sge_qmaster and sge_execd, up to a queue that takes jobs."""
    host = socket.gethostname()
    root, spool, execution = (machine.folder / name for name in ("sge", "qmaster", "execd"))
    common = root / "default" / "common"
    for folder in (common, spool / "job_scripts", execution):
        folder.mkdir(parents=True)
    (root / "util").symlink_to(DATA / "util")
    for name in ("bin", "lib", "utilbin"):
        (root / name).mkdir()
        (root / name / "lx-amd64").symlink_to(BINARIES)
    spooling = f"{common};{spool}"
    settings = {
        "admin_user": "none",
        "default_domain": "none",
        "ignore_fqdn": "true",
        "spooling_method": "classic",
        "spooling_lib": "libspoolc",
        "spooling_params": spooling,
        "binary_path": "/usr/sbin",
        "qmaster_spool_dir": str(spool),
        "security_mode": "none",
        "listener_threads": "2",
        "worker_threads": "2",
        "scheduler_threads": "1",
    }
    (common / "bootstrap").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    (common / "act_qmaster").write_text(f"{host}\n")
    (common / "host_aliases").write_text(f"{host} localhost\n")  # the name of the loopback address
    configuration = (DATA / "default-configuration").read_text()
    for name, value in {
        "execd_spool_dir": execution,
        "mailer": "/bin/true",
        "min_uid": 0,
        "min_gid": 0,
    }.items():
        configuration = re.sub(rf"^{name} .*", f"{name} {value}", configuration, flags=re.MULTILINE)
    (machine.folder / "configuration").write_text(configuration)
    with socket.socket() as first, socket.socket() as second:
        for listener in (first, second):
            listener.bind(("127.0.0.1", 0))
        ports = [str(listener.getsockname()[1]) for listener in (first, second)]
    machine.env |= {"SGE_ROOT": str(root), "SGE_CELL": "default", "SGE_ND": "1"}
    machine.env |= dict(zip(("SGE_QMASTER_PORT", "SGE_EXECD_PORT"), ports))
    machine.env["LD_LIBRARY_PATH"] = str(BINARIES)
    machine.run(str(BINARIES / "spoolinit"), "classic", "libspoolc", spooling, "init")
    resources = DATA / "util" / "resources"
    for words in (
        ("configuration", machine.folder / "configuration"),
        ("complexes", resources / "centry"),
        ("usersets", resources / "usersets"),
        ("managers", "root"),
    ):
        machine.run(str(BINARIES / "spooldefaults"), *map(str, words))
    machine.daemon("/usr/sbin/sge_qmaster")
    wait_for("sge_qmaster", 30, lambda: machine.run("qconf", "-sh", code=None).returncode == 0)
    machine.run("qconf", "-as", host)
    machine.daemon("/usr/sbin/sge_execd")
    wait_for("sge_execd", 30, lambda: host in machine.run("qconf", "-sel", code=None).stdout)
    (machine.folder / "pe").write_text(ENVIRONMENT.lstrip())
    machine.run("qconf", "-Ap", str(machine.folder / "pe"))
    editor = machine.folder / "editor"  # of the new queue that qconf proposes
    changes = {"hostlist": host, "pe_list": "mpi", "slots": "4", "notify": "00:00:20", "load_thresholds": "NONE"}
    edits = "; ".join(f"s/^{name} .*/{name} {value}/" for name, value in changes.items())
    editor.write_text(f"#!/bin/sh\nsleep 1  # qconf looks at the time of the last change\nsed -i '{edits}' \"$1\"\n")
    editor.chmod(0o755)
    machine.env["EDITOR"] = str(editor)
    machine.run("qconf", "-aq", "all.q", code=None)
    wait_for("a queue", 30, lambda: "all.q@" in machine.run("qstat", "-f", code=None).stdout)


def submit(machine: Machine, script: Path, *options: str) -> tuple[str, Path]:
    """The number and the output of a job."""
    said = machine.run("qsub", "-terse", *options, str(script), cwd=machine.folder).stdout
    number = said.strip()
    (output,) = re.findall(r"stdout_path_list:\s+\S*?(/\S+)", machine.run("qstat", "-j", number).stdout)
    return number, Path(output)


def ended(machine: Machine, number: str, limit: float) -> None:
    """Waits until a job is over."""
    wait_for(
        f"the end of job {number}",
        limit,
        lambda: machine.run("qstat", "-j", number, code=None).returncode != 0,
        lambda: machine.run("qstat", "-f", code=None).stdout,
    )


def exit_code(machine: Machine, number: str) -> int:
    """What the accounting says about a job that is over."""
    accounting = machine.folder / "sge" / "default" / "common" / "accounting"
    wait_for("the accounting", 30, lambda: re.search(rf":{number}:", text(accounting)), lambda: text(accounting))
    for line in text(accounting).splitlines():
        fields = line.split(":")
        if not line.startswith("#") and fields[5] == number:
            return int(fields[12])
    raise Failed(f"no job {number} in {accounting}")


def use(machine: Machine) -> None:
    """The jobs of the check."""
    folder = machine.folder / "run"
    folder.mkdir()
    edited = text(ROOT / "launch" / "sge.sh").replace("PYTHON=(python)", f"PYTHON=({PYTHON})")
    (folder / "sge.sh").write_text(edited)  # bash starts as a login shell, which forgets the PATH given here
    output = machine.folder / "raw.out"
    options = ("-pe", "mpi", "2", "-o", str(output), "-wd", str(ROOT / "examples"), "-v", "PYTHONPATH")
    number, _ = submit(machine, folder / "sge.sh", *options)
    ended(machine, number, 120)
    said = text(output)
    expect(exit_code(machine, number) == 0, "qsub launch/sge.sh: exit code 0", said)
    expect("ranks: 2" in said, "qsub launch/sge.sh: 2 ranks trained together", said)
    accuracy = float(re.findall(r"test accuracy ([\d.]+)%", said)[-1])
    expect(accuracy > 96, f"qsub launch/sge.sh: test accuracy {accuracy} %", said)

    preempted(machine, folder / "preempted.sh")


def preempted(machine: Machine, script: Path) -> None:
    """Warns the digits example by qdel: it saves, and goes on when it is submitted again."""
    job = ("--name", "preempted", "--ranks-per-node", "2", "--time", "0:05:00", "--output", str(script))
    train = (str(ROOT / "examples" / "train.py"), "--epochs", EPOCHS, "--checkpoint", str(machine.folder / "saved"))
    machine.run(PYTHON, "-m", "sorix_dist", "job", "sge", *job, *train)
    output = machine.folder / "warned.out"
    number, _ = submit(machine, script, "-o", str(output), "-v", "PYTHONPATH")
    wait_for("some epochs", 60, lambda: "epoch 10 " in text(output), lambda: text(output))
    machine.run("qdel", number)
    ended(machine, number, 60)
    said = text(output)
    found = re.search(r"preempted, saved at step (\d+)", said)
    if found is None:
        raise Failed(f"qdel: nothing was saved\n{said}")
    expect(exit_code(machine, number) == 75, "qdel: a checkpoint is saved, exit code 75", said)

    output = machine.folder / "again.out"
    number, _ = submit(machine, script, "-o", str(output), "-v", "PYTHONPATH")
    ended(machine, number, 120)
    said = text(output)
    expect(f"goes on from step {found[1]}\n" in said, f"submitted again: goes on from step {found[1]}", said)
    expect(f"epoch {EPOCHS} " in said and "epoch  1 " not in said, f"submitted again: to epoch {EPOCHS}", said)
    expect(exit_code(machine, number) == 0, "submitted again: exit code 0", said)


def check() -> None:
    """Trains by qsub; warns a job by qdel, and goes on."""
    need_root("a Grid Engine of our own")
    need_packages(PACKAGES)
    with Machine() as machine:
        start(machine)
        try:
            use(machine)
        finally:
            machine.run("qdel", "-f", "-u", "root", code=None)


if __name__ == "__main__":
    sys.exit(main(check))
