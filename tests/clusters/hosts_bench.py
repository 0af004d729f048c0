"""Steps over a link of 1 Gbit/s between two hosts of this machine, with and without compression, beside PyTorch's DDP:
`make hosts-bench`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from tests.clusters.hosts import ACROSS, HOSTS, PACKAGES, Cable, answer
from tests.clusters.service import ROOT, Failed, Machine, main, need_packages, need_root

TORCH = ROOT / ".venv-parity" / "bin" / "python"
STEP = Path(__file__).with_name("ddp_step.py")
SECONDS = {"W1": 5, "W2": 12}
ROUNDS = 2


def torch_step(name: str, seconds: float, port: int) -> dict[str, float]:
    """The times of a step of DistributedDataParallel, a process a host."""
    started = []
    for rank, host in enumerate(HOSTS):
        env = {
            "RANK": str(rank),
            "WORLD_SIZE": str(len(HOSTS)),
            "MASTER_ADDR": next(iter(HOSTS.values())),
            "MASTER_PORT": str(port),
            "GLOO_SOCKET_IFNAME": host,
            "OMP_NUM_THREADS": "1",
        }
        command = ["ip", "netns", "exec", host, str(TORCH), str(STEP), name, str(seconds)]
        started.append(subprocess.Popen(command, env=os.environ | env, stdout=subprocess.PIPE, text=True))
    try:
        out, _ = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    if any(process.returncode for process in started):
        raise Failed(f"torch: exit codes {[process.returncode for process in started]}\n{out}")
    found: dict[str, float] = json.loads(out.splitlines()[-1])
    return found


def check() -> None:
    """Prints the table."""
    need_root("a host that is a network namespace")
    need_packages(PACKAGES)
    with Machine() as machine, Cable(machine) as cable:
        cable.wait()
        cable.limit()
        found: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
        for number, name in ((number, name) for number in range(ROUNDS) for name in SECONDS):
            seconds = SECONDS[name]
            plain, compressed = (
                answer(cable.ranks(1, str(ACROSS), name, str(2 * seconds), *hook))["ms"]["step"]
                for hook in ((), ("fp16",))
            )
            found[name, "sorix_dist"].append(plain)
            found[name, "sorix_dist, fp16 hook"].append(compressed)
            if TORCH.exists():
                found[name, "torch DDP, gloo"].append(torch_step(name, seconds, 29500 + number))
            else:
                print(f"no torch beside it: there is no {TORCH}; make parity makes it")
    print(f"ms a step, 2 hosts with 1 rank of 1 thread each, 1 Gbit/s, best of {ROUNDS} rounds")
    print(f"load of this machine: {os.getloadavg()[0]:.1f}")
    for (name, who), times in found.items():
        p10, median = (min(each[word] for each in times) for word in ("p10", "median"))
        print(f"  {name}  {who:22}  p10 {p10:8.1f}  median {median:8.1f}")


if __name__ == "__main__":
    sys.exit(main(check))
