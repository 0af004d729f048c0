"""Training steps over links of 1 Gbit/s between hosts of this machine, with and without compression, beside PyTorch's
DDP: `make hosts-bench`. All on the same hosts take turns, with the same weights and batches."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sorix_dist.launch.command import Command
from tests.benchmarks.compare.arena import Arena
from tests.benchmarks.compare.contest import SAME
from tests.benchmarks.compare.contestants import OURS, SCRIPT, Contestant, Interpreters
from tests.benchmarks.measure import summary
from tests.benchmarks.workloads import WORKLOADS, store
from tests.clusters.hosts import PACKAGES, Network
from tests.clusters.service import ROOT, Machine, expect, main, need_packages, need_root

TORCH = ROOT / ".venv-parity" / "bin" / "python"
MEASURED = {"W1": (20.0, ((1, 1), (2, 2), (1, 1, 1, 1))), "W2": (60.0, ((1, 1),))}
"""For each workload the seconds, and how many ranks the hosts have."""
TURN, ROUNDS = 0.5, 3
COMPRESSED = "sorix_dist, fp16 hook"


@dataclass(frozen=True)
class OnHosts(Contestant):
    """A contestant on several hosts; each: the ranks of each host."""

    network: Network | None = None
    each: tuple[int, ...] = ()

    def commands(self, interpreter: str, socket: Path, meeting: Path) -> list[Command]:
        """Ours by `sorix-dist run` on the first host, torch's processes each on its host."""
        assert self.network is not None
        options = {"threads": 1, "ranks": self.ranks, "meeting": str(meeting), **dict(self.options)}
        words = [str(SCRIPT), self.peer, str(socket)]
        if self.peer == OURS:
            argv = self.network.command(self.each, *words, json.dumps({**options, "rank": 0}))
            return [Command(tuple(argv), self.network.machine.env)]
        environ = os.environ | {"OMP_NUM_THREADS": "1"}
        return [
            Command(
                ("ip", "netns", "exec", host, interpreter, *words, json.dumps({**options, "rank": rank})),
                environ | {"GLOO_SOCKET_IFNAME": host},
            )
            for rank, host in enumerate(host for host, n in zip(self.network.hosts, self.each) for _ in range(n))
        ]


def check() -> None:
    """Prints the table."""
    need_root("a host that is a network namespace")
    need_packages(PACKAGES)
    if not TORCH.exists():
        print(f"no torch beside it: there is no {TORCH}; make parity makes it")
    with Machine() as machine, Network(machine, 4) as network, tempfile.TemporaryDirectory() as folder:
        network.wait()
        network.limit()
        for workload, (seconds, layouts) in MEASURED.items():
            path = Path(folder, f"{workload}.npz")
            store(WORKLOADS[workload], path)
            for each in layouts:
                measure(network, each, workload, path, seconds)


def measure(network: Network, each: tuple[int, ...], workload: str, path: Path, seconds: float) -> None:
    """Prints the rows of the hosts that have so many ranks each."""
    some: dict[str, Any] = {"ranks": sum(each), "network": network, "each": each}
    contestants = [
        OnHosts("sorix_dist", OURS, **some),
        OnHosts(COMPRESSED, OURS, options=(("hook", "fp16_compress"),), **some),
    ]
    if TORCH.exists():
        contestants.append(OnHosts("torch DDP, gloo", "torch", **some))
    print(f"{workload}, ms a step, {each} ranks of 1 thread on {len(each)} hosts; load {os.getloadavg()[0]:.1f}")
    with Arena(contestants, Interpreters(str(TORCH))) as arena:
        for name, why in arena.failed.items():
            print(f"left out: {name} ({why})")
        losses = {}
        for name in arena.seats:
            arena.prepare(name, "step", workload=workload, path=str(path))
            losses[name] = arena.losses(name, "step", 3)
        exact = [np.array(found) for name, found in losses.items() if name != COMPRESSED]
        expect(np.allclose(exact, exact[0], rtol=SAME, atol=0), f"{workload}: all train alike", losses)
        times = arena.interleaved([(name, "step") for name in arena.seats], TURN, seconds, ROUNDS)
        for (name, _), found in times.items():
            p10, median = (1e3 * summary(found)[word] for word in ("p10", "median"))
            print(f"  {name:22}  p10 {p10:8.1f}  median {median:8.1f}", flush=True)


if __name__ == "__main__":
    sys.exit(main(check))
