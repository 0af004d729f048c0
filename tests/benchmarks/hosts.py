"""Training steps over a link of 1 Gbit/s between two hosts of this machine, with and without compression, beside
PyTorch's DDP: `make hosts-bench`. All take turns, with the same weights and batches."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sorix_dist.launch.command import Command
from tests.benchmarks.compare.arena import Arena
from tests.benchmarks.compare.contest import SAME
from tests.benchmarks.compare.contestants import OURS, SCRIPT, Contestant, Interpreters
from tests.benchmarks.measure import summary
from tests.benchmarks.workloads import WORKLOADS, store
from tests.clusters.hosts import HOSTS, PACKAGES, Cable
from tests.clusters.service import ROOT, Machine, expect, main, need_packages, need_root

TORCH = ROOT / ".venv-parity" / "bin" / "python"
SECONDS = {"W1": 20.0, "W2": 60.0}
TURN, ROUNDS = 0.5, 3
COMPRESSED = "sorix_dist, fp16 hook"


@dataclass(frozen=True)
class OnHosts(Contestant):
    """A contestant with one rank on each host of a cable."""

    cable: Cable | None = None

    def commands(self, interpreter: str, socket: Path, meeting: Path) -> list[Command]:
        """Ours by `sorix-dist run` on the first host, torch's processes each on its host."""
        assert self.cable is not None
        options = {"threads": 1, "ranks": self.ranks, "meeting": str(meeting), **dict(self.options)}
        words = [str(SCRIPT), self.peer, str(socket)]
        if self.peer == OURS:
            argv = self.cable.command(1, *words, json.dumps({**options, "rank": 0}))
            return [Command(tuple(argv), self.cable.machine.env)]
        environ = os.environ | {"OMP_NUM_THREADS": "1"}
        return [
            Command(
                ("ip", "netns", "exec", host, interpreter, *words, json.dumps({**options, "rank": rank})),
                environ | {"GLOO_SOCKET_IFNAME": host},
            )
            for rank, host in enumerate(HOSTS)
        ]


def check() -> None:
    """Prints the table."""
    need_root("a host that is a network namespace")
    need_packages(PACKAGES)
    with Machine() as machine, Cable(machine) as cable, tempfile.TemporaryDirectory() as folder:
        cable.wait()
        cable.limit()
        contestants = [
            OnHosts("sorix_dist", OURS, len(HOSTS), cable=cable),
            OnHosts(COMPRESSED, OURS, len(HOSTS), options=(("hook", "fp16_compress"),), cable=cable),
        ]
        if TORCH.exists():
            contestants.append(OnHosts("torch DDP, gloo", "torch", len(HOSTS), cable=cable))
        else:
            print(f"no torch beside it: there is no {TORCH}; make parity makes it")
        print(f"ms a step, {len(HOSTS)} hosts with 1 rank of 1 thread each, 1 Gbit/s; load {os.getloadavg()[0]:.1f}")
        with Arena(contestants, Interpreters(str(TORCH))) as arena:
            for name, why in arena.failed.items():
                print(f"left out: {name} ({why})")
            for workload, seconds in SECONDS.items():
                path = Path(folder, f"{workload}.npz")
                store(WORKLOADS[workload], path)
                losses = {}
                for name in arena.seats:
                    arena.prepare(name, "step", workload=workload, path=str(path))
                    losses[name] = arena.losses(name, "step", 3)
                exact = [np.array(found) for name, found in losses.items() if name != COMPRESSED]
                expect(np.allclose(exact, exact[0], rtol=SAME, atol=0), f"{workload}: all train alike", losses)
                turns = [(name, "step") for name in arena.seats]
                times = arena.interleaved(turns, TURN, seconds, ROUNDS)
                for (name, _), found in times.items():
                    p10, median = (1e3 * summary(found)[word] for word in ("p10", "median"))
                    print(f"  {workload}  {name:22}  p10 {p10:8.1f}  median {median:8.1f}", flush=True)


if __name__ == "__main__":
    sys.exit(main(check))
