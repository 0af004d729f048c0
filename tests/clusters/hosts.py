"""Trains across two hosts, which are network namespaces of this machine joined by a cable: `make hosts`."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.clusters.service import (
    PYTHON,
    ROOT,
    Failed,
    Machine,
    Skipped,
    expect,
    main,
    need_packages,
    need_root,
    text,
    wait_for,
)
from tests.support.launching import MPIRUN

NETWORK = "10.77.83"
TAG = f"sx{os.getpid()}"
HOSTS = {f"{TAG}a": f"{NETWORK}.1", f"{TAG}b": f"{NETWORK}.2"}
"""The names, which are those of the namespaces too, and the addresses."""

ACROSS = ROOT / "tests" / "ranks" / "across_hosts.py"
TRAIN = ROOT / "examples" / "train.py"
PACKAGES = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux", "hostname": "hostname"}
GIGABIT = ("tbf", "rate", "1gbit", "burst", "128kb", "latency", "20ms")


def ip(*arguments: str) -> None:
    """One command of ip; Skipped if it fails, for the reason that it gives."""
    answer = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=30)
    if answer.returncode:
        raise Skipped(f"ip {' '.join(arguments)}: {answer.stderr.strip()}")


class Cable:
    """Two namespaces with a host name, an address and each other's address; on leaving they are gone."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.agent = machine.folder / "agent"
        # What mpirun calls instead of ssh: agent HOST COMMAND...
        self.agent.write_text(
            "#!/bin/sh\nhost=$1; shift\n"
            'exec ip netns exec "$host" unshare --uts sh -c \'hostname "$0"; exec sh -c "$1"\' "$host" "$*"\n'
        )
        self.agent.chmod(0o755)
        self.files = [Path("/etc/netns") / host for host in HOSTS]
        self.had_folder = self.files[0].parent.exists()

    def __enter__(self) -> Cable:
        try:
            self.plug()
        except BaseException:
            self.__exit__()
            raise
        return self

    def plug(self) -> None:
        """Makes the two hosts."""
        for host, folder in zip(HOSTS, self.files):
            ip("netns", "add", host)
            # `ip netns exec` shows the files of this folder as those of /etc
            folder.mkdir(parents=True)
            lines = [f"{address} {name}" for name, address in HOSTS.items()]
            (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines]) + "\n")
        a, b = HOSTS
        ip("link", "add", a, "netns", a, "type", "veth", "peer", "name", b, "netns", b)
        for host, address in HOSTS.items():
            ip("-n", host, "address", "add", f"{address}/24", "dev", host)
            ip("-n", host, "link", "set", host, "up")
            ip("-n", host, "link", "set", "lo", "up")

    def wait(self) -> None:
        """Returns when one host reaches the other."""
        a, b = HOSTS
        reach = ["ip", "netns", "exec", a, PYTHON, "-c", f"import socket; socket.create_connection(('{b}', 9), 1)"]
        wait_for(
            "one host to reach the other",
            20,
            lambda: "refused" in subprocess.run(reach, capture_output=True, text=True, timeout=30).stderr,
        )

    def cut(self, *, again: bool = False) -> None:
        """Unplugs the cable, or plugs it in again."""
        first = next(iter(HOSTS))
        ip("-n", first, "link", "set", first, "up" if again else "down")

    def limit(self) -> None:
        """Makes it a cable of 1 Gbit/s."""
        for host in HOSTS:
            command = ["ip", "netns", "exec", host, "tc", "qdisc", "add", "dev", host, "root", *GIGABIT]
            answer = subprocess.run(command, capture_output=True, text=True, timeout=30)
            if answer.returncode:
                raise Skipped(f"{' '.join(command)}: {answer.stderr.strip()}")

    def __exit__(self, *_: object) -> None:
        for host, folder in zip(HOSTS, self.files):
            subprocess.run(["ip", "netns", "delete", host], capture_output=True, timeout=30)
            shutil.rmtree(folder, ignore_errors=True)
        if not self.had_folder and self.files[0].parent.exists():
            self.files[0].parent.rmdir()

    def ranks(self, each: int, *arguments: str, limit: float = 90.0) -> str:
        """What a Python script prints on so many ranks of each host, started on the first by `sorix-dist run`."""
        return self.ended(each, *arguments, limit=limit, code=0).stdout

    def ended(
        self, each: int, *arguments: str, limit: float = 90.0, code: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        """What came of it; Failed if it ended with another exit code than `code`, if that is given."""
        return self.machine.run(*self.command(each, *arguments), limit=limit, code=code)

    def command(self, each: int, *arguments: str) -> list[str]:
        """The command that runs a Python script on so many ranks of each host."""
        run = [PYTHON, "-m", "sorix_dist", "run", *self.options(each), *arguments]
        return [str(self.agent), next(iter(HOSTS)), shlex.join(run)]

    def on_the_first(
        self, command: list[str], limit: float = 90.0, code: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        """What came of a command on the first host."""
        return self.machine.run(str(self.agent), next(iter(HOSTS)), shlex.join(command), limit=limit, code=code)

    def options(self, each: int) -> list[str]:
        """Those of `sorix-dist run`; the variables are set for this machine's commands too."""
        self.machine.env |= {
            "PRTE_MCA_plm_ssh_agent": str(self.agent),
            "PRTE_MCA_prte_if_include": f"{NETWORK}.0/24",
        }
        settings = {
            "OMPI_MCA_pml": "ob1",
            "OMPI_MCA_btl": "self,sm,tcp",
            "OMPI_MCA_btl_tcp_if_include": f"{NETWORK}.0/24",
            # Both hosts share the cores of this machine, and each believes to have them all.
            "OMPI_MCA_mpi_yield_when_idle": "1",
        }
        options = ["--hosts", ",".join(f"{host}:{each}" for host in HOSTS), "--threads", "1"]
        for name, value in settings.items():
            options += ["--env", f"{name}={value}"]
        self.machine.env |= settings | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        return options


def answer(printed: str) -> dict[str, Any]:
    """The JSON of tests/ranks/across_hosts.py."""
    for line in printed.splitlines():
        if line.startswith("{"):
            result: dict[str, Any] = json.loads(line)
            return result
    raise Failed(f"no result was printed\n{printed}")


FAULT = """
import sys, time
import numpy as np
import sorix_dist as sx
sx.init(timeout=60)
last = sx.rank() == sx.size() - 1
for step in range(6):
    sx.comm.note(step=step)
    if last and step == 3:
        {fault}
    sx.all_reduce(np.ones(4))
if last:
    time.sleep(3)
"""


def blamed(report: str) -> list[str]:
    """The ranks that are said to have died, where their launcher can't have ended them for another host."""
    died = re.finditer(r"rank (\d) \(pid.*?(?:died without a word|was killed)[^\n]*", report)
    return [found[1] for found in died if "for another host" not in found[0]]


def check_faults(cable: Cable) -> None:
    """A fault on the one host is named on the other, which cannot see it, and to work on at the end is none."""
    script = cable.machine.folder / "fault.py"
    for each in (1, 2):
        for fault, says in (
            ("sys.exit(0)", f"rank {2 * each - 1}"),
            ("raise ValueError('a bad row')", "ValueError: a bad row"),
            ("import os; os.kill(os.getpid(), 9)", f"rank {2 * each - 1} (pid"),
            ("pass", ""),
        ):
            script.write_text(FAULT.format(fault=fault))
            began = time.monotonic()
            ended = cable.ended(each, str(script))
            seconds = time.monotonic() - began
            right = (ended.returncode != 0) == bool(says) and says in ended.stderr and seconds < 15
            right = right and not blamed(ended.stderr)
            expect(right, f"{fault} on one of {2 * each} ranks: code {ended.returncode}, {seconds:.1f} s", ended.stderr)


CUT = """
import sys, time
from pathlib import Path
import numpy as np
import sorix_dist as sx
folder, total = Path(sys.argv[1]), np.ones(4)
sx.init(timeout=5)
saved = sx.Checkpointer(folder / "checkpoints")
found = saved.load_latest()
for step in range(found["step"] + 1 if found else 0, 40):
    sx.comm.note(step=step)
    sx.all_reduce(total)  # here
    total /= sx.size()
    saved.save(step)
    if step == 20 and sx.rank() == 0 and not found:
        (folder / "cut").touch()
    time.sleep(0.1)
if sx.rank() == 0:
    (folder / "trained").write_text(str(step))
"""


def ranks_of(script: Path) -> list[Path]:
    """The processes that run a script."""
    return [
        process
        for process in Path("/proc").glob("[0-9]*")
        if text(process / "cmdline").split("\0")[:2] == [PYTHON, str(script)]
    ]


def check_cut_cable(cable: Cable) -> None:
    """No rank is to blame, and everything ends on both hosts, so that `sorix-dist run` can start the ranks again."""
    folder = cable.machine.folder / "cut"
    script = cable.machine.folder / "cut.py"
    script.write_text(CUT)
    launchers = {
        "mpirun": [str(MPIRUN), "--host", ",".join(f"{host}:2" for host in HOSTS), "-n", "4", PYTHON],
        "sorix-dist run": [PYTHON, "-m", "sorix_dist", "run", *cable.options(2)],
        "sorix-dist run --max-restarts": [
            *(PYTHON, "-m", "sorix_dist", "run", *cable.options(2)),
            *("--max-restarts", "1", "--checkpoint", str(folder / "checkpoints")),
        ],
    }
    for name, command in launchers.items():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        restarts = "--max-restarts" in command
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(cable.on_the_first, [*command, str(script), str(folder)], 90)
            wait_for("20 steps", 60, (folder / "cut").exists)
            cable.cut()
            began = time.monotonic()
            if restarts:
                wait_for("the end of the ranks", 30, lambda: not ranks_of(script))
                cable.cut(again=True)
            ended = running.result()
        seconds = time.monotonic() - began
        cable.cut(again=True)
        cable.wait()
        wait_for("the end on both hosts", 20, lambda: not ranks_of(script))
        expect((ended.returncode == 0) == restarts, f"a cut cable under {name}: code {ended.returncode}", ended.stderr)
        expect(seconds < (60 if restarts else 25), f"{seconds:.1f} s after the cut", ended.stderr)
        right = "has waited 5 s" in ended.stderr and not blamed(ended.stderr)
        expect(right, "the time-out is told, no rank is blamed", ended.stderr)


def check() -> None:
    """Places, faults, weights and times."""
    need_root("a host that is a network namespace")
    need_packages(PACKAGES)
    with Machine() as machine, Cable(machine) as cable:
        cable.wait()
        places = answer(cable.ranks(2, str(ACROSS)))["places"]
        expected = [[name, host, 2, local, 2] for host, name in enumerate(HOSTS) for local in range(2)]
        expect(places == expected, "4 ranks on 2 hosts, local ranks 0 and 1 on each", places)

        check_faults(cable)
        check_cut_cable(cable)

        saved = [str(machine.folder / f"ranks-{ranks}.npz") for ranks in (4, 1)]
        said = cable.ranks(2, str(TRAIN), "--epochs", "10", "--save", saved[0], limit=120)
        expect("ranks: 4" in said, "4 ranks trained together", said)
        machine.run(PYTHON, str(TRAIN), "--epochs", "10", "--save", saved[1])
        compared = machine.run(PYTHON, str(ROOT / "examples" / "compare.py"), *saved, code=None)
        expect(compared.returncode == 0, f"one process: {compared.stdout.strip()}", compared.stderr)

        measured = {}
        for link in ("free link", "1 Gbit/s"):
            if link == "1 Gbit/s":
                cable.limit()
            for each in (1, 2):
                times = answer(cable.ranks(each, str(ACROSS), "W1", "6"))["ms"]
                measured[link, each] = times["step"]["p10"]
                words = [f"{name} {ms['p10']:.1f} (median {ms['median']:.1f})" for name, ms in times.items()]
                print(f"W1, 2 hosts, {each} rank(s) each, {link}: {', '.join(words)} ms at p10", flush=True)
        print(f"load of this machine, with its {os.cpu_count()} cores for both hosts: {os.getloadavg()[0]:.1f}")
        wire = 4 * (784 * 512 + 512 + 512 * 512 + 512 + 512 * 10 + 10) * 8 / 1e9 * 1e3
        print(f"the gradient of W1 once over 1 Gbit/s: {wire:.1f} ms")
        expect(measured["1 Gbit/s", 1] > 0.8 * wire, "the link was limited", measured)


if __name__ == "__main__":
    sys.exit(main(check))
