"""Trains across hosts that are network namespaces of this machine behind a switch: `make hosts`."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
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
    said,
    wait_for,
)

NETWORK = "10.77.83"
TAG = f"sx{os.getpid()}"
SWITCH = f"{TAG}s"
"""The namespace of the bridge that all cables end in."""

ACROSS = ROOT / "tests" / "ranks" / "across_hosts.py"
TRAIN = ROOT / "examples" / "train.py"
EPOCHS = "10"
LAYOUTS = ((2, 2), (1, 1, 1, 1), (2, 1, 1))
"""How many ranks the hosts have, of those that training must not depend on."""
PACKAGES = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux", "hostname": "hostname"}
GIGABIT = ("tbf", "rate", "1gbit", "burst", "128kb", "latency", "20ms")
MEGABIT = ("tbf", "rate", "1mbit", "burst", "32kb", "latency", "4s")


def ip(*arguments: str) -> None:
    """One command of ip; Skipped if it fails, for the reason that it gives."""
    answer = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=30)
    if answer.returncode:
        raise Skipped(f"ip {' '.join(arguments)}: {answer.stderr.strip()}")


Ranks = int | tuple[int, ...]
"""How many ranks each host has: one number for all, or one for each of the first ones."""


class Network:
    """Namespaces with a host name, an address and the others' addresses; on leaving they are gone.

    hosts: the names, which are those of the namespaces and of both ends of each cable too, and the addresses.
    """

    def __init__(self, machine: Machine, count: int) -> None:
        self.machine = machine
        self.hosts = {f"{TAG}{'abcdefgh'[i]}": f"{NETWORK}.{i + 1}" for i in range(count)}
        self.first = next(iter(self.hosts))
        self.agent = machine.folder / "agent"
        # What mpirun calls instead of ssh: agent HOST COMMAND...
        self.agent.write_text(
            "#!/bin/sh\nhost=$1; shift\n"
            'exec ip netns exec "$host" unshare --uts sh -c \'hostname "$0"; exec sh -c "$1"\' "$host" "$*"\n'
        )
        self.agent.chmod(0o755)
        self.files = [Path("/etc/netns") / host for host in self.hosts]
        self.had_folder = self.files[0].parent.exists()

    def __enter__(self) -> Network:
        try:
            self.plug()
        except BaseException:
            self.__exit__()
            raise
        return self

    def plug(self) -> None:
        """Makes the hosts and the switch."""
        ip("netns", "add", SWITCH)
        ip("-n", SWITCH, "link", "add", "bridge", "type", "bridge")
        ip("-n", SWITCH, "link", "set", "bridge", "up")
        for host, folder in zip(self.hosts, self.files):
            ip("netns", "add", host)
            # `ip netns exec` shows the files of this folder as those of /etc
            folder.mkdir(parents=True)
            lines = [f"{address} {name}" for name, address in self.hosts.items()]
            (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines]) + "\n")
        for host, address in self.hosts.items():
            ip("link", "add", host, "netns", host, "type", "veth", "peer", "name", host, "netns", SWITCH)
            ip("-n", SWITCH, "link", "set", host, "master", "bridge", "up")
            ip("-n", host, "address", "add", f"{address}/24", "dev", host)
            ip("-n", host, "link", "set", host, "up")
            ip("-n", host, "link", "set", "lo", "up")

    def wait(self) -> None:
        """Returns when the first host reaches the others."""
        for other in [*self.hosts][1:]:
            wait_for(f"{self.first} to reach {other}", 20, partial(self._reaches, other))

    def _reaches(self, other: str) -> bool:
        connect = f"import socket; socket.create_connection(('{other}', 9), 1)"
        command = ["ip", "netns", "exec", self.first, PYTHON, "-c", connect]
        return "refused" in subprocess.run(command, capture_output=True, text=True, timeout=30).stderr

    def cut(self, host: str = "", *, again: bool = False) -> None:
        """Unplugs the cable of a host, by default the first, or plugs it in again."""
        host = host or self.first
        ip("-n", host, "link", "set", host, "up" if again else "down")

    def kill(self, host: str) -> None:
        """Kills everything that runs on a host."""
        for pid in said(["ip", "netns", "pids", host]).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def limit(self, *hosts: str, rate: tuple[str, ...] = GIGABIT) -> None:
        """Limits the cables of some hosts, by default of all, in both directions."""
        for host, end in [(name, end) for name in hosts or self.hosts for end in (name, SWITCH)]:
            command = ["ip", "netns", "exec", end, "tc", "qdisc", "replace", "dev", host, "root", *rate]
            answer = subprocess.run(command, capture_output=True, text=True, timeout=30)
            if answer.returncode:
                raise Skipped(f"{' '.join(command)}: {answer.stderr.strip()}")

    def __exit__(self, *_: object) -> None:
        subprocess.run(["ip", "netns", "delete", SWITCH], capture_output=True, timeout=30)
        for host, folder in zip(self.hosts, self.files):
            subprocess.run(["ip", "netns", "delete", host], capture_output=True, timeout=30)
            shutil.rmtree(folder, ignore_errors=True)
        if not self.had_folder and self.files[0].parent.exists():
            self.files[0].parent.rmdir()

    def ranks(self, each: Ranks, *arguments: str, limit: float = 90.0) -> str:
        """What a Python script prints on so many ranks of each host, started on the first by `sorix-dist run`."""
        return self.ended(each, *arguments, limit=limit, code=0).stdout

    def ended(
        self, each: Ranks, *arguments: str, limit: float = 90.0, code: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        """What came of it; Failed if it ended with another exit code than `code`, if that is given."""
        return self.machine.run(*self.command(each, *arguments), limit=limit, code=code)

    def command(self, each: Ranks, *arguments: str) -> list[str]:
        """The command that runs a Python script on so many ranks of each host."""
        run = [PYTHON, "-m", "sorix_dist", "run", *self.options(each), *arguments]
        return [str(self.agent), self.first, shlex.join(run)]

    def on_the_first(
        self, command: list[str], limit: float = 90.0, code: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        """What came of a command on the first host."""
        return self.machine.run(str(self.agent), self.first, shlex.join(command), limit=limit, code=code)

    def options(self, each: Ranks) -> list[str]:
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
        counts = [each] * len(self.hosts) if isinstance(each, int) else each
        where = ",".join(f"{host}:{count}" for host, count in zip(self.hosts, counts))
        options = ["--hosts", where, "--threads", "1"]
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


def check_places(network: Network, each: tuple[int, ...]) -> None:
    """Ranks are on the hosts where they were asked to be."""
    places = answer(network.ranks(each, str(ACROSS)))["places"]
    numbered = enumerate(zip(network.hosts, each))
    expected = [[name, host, len(each), local, count] for host, (name, count) in numbered for local in range(count)]
    expect(places == expected, f"{each} ranks on {len(each)} hosts", places)


def check_training(network: Network, each: tuple[int, ...], alone: str) -> None:
    """Training ends with the weights of one process, on whatever hosts the ranks are."""
    ranks = sum(each)
    saved = str(network.machine.folder / f"ranks-{'-'.join(map(str, each))}.npz")
    printed = network.ranks(each, str(TRAIN), "--epochs", EPOCHS, "--save", saved, limit=120)
    expect(f"ranks: {ranks}" in printed, f"{each} ranks trained together", printed)
    comparison = str(ROOT / "examples" / "compare.py")
    compared = network.machine.run(PYTHON, comparison, saved, alone, code=None)
    expect(compared.returncode == 0, f"one process: {compared.stdout.strip()}", compared.stderr)


def check() -> None:
    """Places, weights and times."""
    need_root("a host that is a network namespace")
    need_packages(PACKAGES)
    with Machine() as machine:
        alone = str(machine.folder / "alone.npz")
        machine.run(PYTHON, str(TRAIN), "--epochs", EPOCHS, "--save", alone)
        with Network(machine, 2) as network:
            network.wait()
            check_places(network, (2, 2))
        with Network(machine, 4) as network:
            network.wait()
            check_places(network, (2, 1, 1))
            for each in LAYOUTS:
                check_training(network, each, alone)
            network.limit()
            for each in ((1, 1), (2, 2), (1, 1, 1, 1)):
                check_times(network, each)
        print(f"load of this machine, with its {os.cpu_count()} cores for all hosts: {os.getloadavg()[0]:.1f}")


def check_times(network: Network, each: tuple[int, ...]) -> None:
    """Prints how long a step takes beside the time that its gradient takes on the wire."""
    times = answer(network.ranks(each, str(ACROSS), "W1", "4"))["ms"]
    words = [f"{name} {ms['p10']:.1f} (median {ms['median']:.1f})" for name, ms in times.items()]
    gradient = 4 * (784 * 512 + 512 + 512 * 512 + 512 + 512 * 10 + 10)
    wire = 2 * (len(each) - 1) / len(each) * gradient * 8 / 1e9 * 1e3
    print(f"W1, {each} ranks, 1 Gbit/s: {', '.join(words)} ms at p10; the wire alone {wire:.1f}", flush=True)
    expect(times["step"]["p10"] > 0.8 * wire, "the links were limited", times)


if __name__ == "__main__":
    sys.exit(main(check))
