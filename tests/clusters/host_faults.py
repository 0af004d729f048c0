"""Faults of hosts and of what is between them, on network namespaces of this machine: `make hosts-faults`."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.clusters.hosts import MEGABIT, PACKAGES, Network
from tests.clusters.service import PYTHON, Machine, expect, main, need_packages, need_root, text, wait_for
from tests.support.commands import MPIRUN

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
    time.sleep(3)  # no fault: one host works on after the others have ended
"""


def blamed(report: str) -> list[str]:
    """The ranks that are said to have died, where their launcher can't have ended them for another host."""
    died = re.finditer(r"rank (\d) \(pid.*?(?:died without a word|was killed)[^\n]*", report)
    return [found[1] for found in died if "for another host" not in found[0]]


def check_faults(network: Network) -> None:
    """A fault on the one host is named on the other, which cannot see it, and to work on at the end is none."""
    script = network.machine.folder / "fault.py"
    for each in (1, 2):
        for fault, says in (
            ("sys.exit(0)", f"rank {2 * each - 1}"),
            ("raise ValueError('a bad row')", "ValueError: a bad row"),
            ("import os; os.kill(os.getpid(), 9)", f"rank {2 * each - 1} (pid"),
            ("pass", ""),
        ):
            script.write_text(FAULT.format(fault=fault))
            began = time.monotonic()
            ended = network.ended(each, str(script))
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


def check_cut_cable(network: Network) -> None:
    """No rank is to blame, and everything ends on both hosts, so that `sorix-dist run` can start the ranks again."""
    folder = network.machine.folder / "cut"
    script = network.machine.folder / "cut.py"
    script.write_text(CUT)
    launchers = {
        "mpirun": [str(MPIRUN), "--host", ",".join(f"{host}:2" for host in network.hosts), "-n", "4", PYTHON],
        "sorix-dist run": [PYTHON, "-m", "sorix_dist", "run", *network.options(2)],
        "sorix-dist run --max-restarts": [
            *(PYTHON, "-m", "sorix_dist", "run", *network.options(2)),
            *("--max-restarts", "1", "--checkpoint", str(folder / "checkpoints")),
        ],
    }
    for name, command in launchers.items():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        restarts = "--max-restarts" in command
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(network.on_the_first, [*command, str(script), str(folder)], 90)
            wait_for("20 steps", 60, (folder / "cut").exists)
            network.cut()
            began = time.monotonic()
            if restarts:
                wait_for("the end of the ranks", 30, lambda: not ranks_of(script))
                network.cut(again=True)
            ended = running.result()
        seconds = time.monotonic() - began
        network.cut(again=True)
        network.wait()
        wait_for("the end on both hosts", 20, lambda: not ranks_of(script))
        expect((ended.returncode == 0) == restarts, f"a cut cable under {name}: code {ended.returncode}", ended.stderr)
        expect(seconds < (60 if restarts else 25), f"{seconds:.1f} s after the cut", ended.stderr)
        right = "has waited 5 s" in ended.stderr and not blamed(ended.stderr)
        expect(right, "the time-out is told, no rank is blamed", ended.stderr)


TRAIN = """
import sys, time
from pathlib import Path
import numpy as np
import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.utils.data import DataLoader, Dataset

folder, width, steps = Path(sys.argv[1]), int(sys.argv[2]), 40
sx.init(timeout=5)
sx.manual_seed(0)
model = sx.DistributedDataParallel(nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10)))
optimizer, criterion = optim.SGD(model.parameters(), lr=0.1, momentum=0.9), nn.CrossEntropyLoss()
x = np.random.default_rng(0).standard_normal((64 * steps, 64)).astype(np.float32)
loader = DataLoader(Dataset(x, np.abs(x[:, :10]).argmax(axis=1)), batch_size=64)
saved = sx.Checkpointer(folder / "checkpoints")
found = saved.load_latest(model=model, optimizer=optimizer, loader=loader)
for step, (xb, yb) in enumerate(loader, found["step"] + 1 if found else 0):
    sx.comm.note(step=step)
    optimizer.zero_grad()
    criterion(model(xb), yb).backward()
    optimizer.step()
    if step == 8 and sx.rank() == 0 and not found:
        (folder / "middle").touch()
    time.sleep(0.1)
    saved.save(step, model=model, optimizer=optimizer, loader=loader)
sx.assert_replicas_equal(model)
if sx.rank() == 0:
    np.savez(folder / "weights.npz", **{name: value.numpy() for name, value in model.state_dict().items()})
"""


@dataclass(frozen=True)
class HostFault:
    """Something that happens to the last host in the middle of a training on three.

    width: of the model; before, after: what is done to the network then, and afterwards; says: what the report must
    have; ends: whether training ends by it.
    """

    name: str
    before: Callable[[Network, str], None]
    after: Callable[[Network, str], None]
    says: str = ""
    width: int = 64

    @property
    def ends(self) -> bool:
        return bool(self.says)


def _nothing(network: Network, host: str) -> None:
    """The host is there."""


FAULTS = (
    HostFault("a host dies", Network.kill, _nothing, "emote"),  # "Remote daemon ... on node", or "Remote host"
    HostFault("a host's cable is cut", Network.cut, lambda network, host: network.cut(host, again=True), "waited 5 s"),
    HostFault(
        "a link drops to 1 Mbit/s, a sum takes 0.5 s",
        lambda network, host: network.limit(host, rate=MEGABIT),
        lambda network, host: network.limit(host),
    ),
    HostFault(
        "a link drops to 1 Mbit/s, a sum takes 20 s",
        lambda network, host: network.limit(host, rate=MEGABIT),
        lambda network, host: network.limit(host),
        "waited 5 s",
        width=24_000,
    ),
)


def check_host_faults(network: Network) -> None:
    """Training goes on, or ends with a report and goes on after another start. Its weights have the bits of a training
    without a fault."""
    script, folder = network.machine.folder / "train.py", network.machine.folder / "fault"
    script.write_text(TRAIN)
    *_, last = network.hosts
    weights = folder / "weights.npz"
    undisturbed: dict[int, bytes] = {}
    for fault in FAULTS:
        command = [PYTHON, "-m", "sorix_dist", "run", *network.options(1), str(script), str(folder), str(fault.width)]
        started = partial(network.on_the_first, command, 120)
        if fault.width not in undisturbed:
            ended = _afresh(folder) or started()
            expect(ended.returncode == 0, f"no fault, width {fault.width}", ended.stderr)
            undisturbed[fault.width] = weights.read_bytes()
        _afresh(folder)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(started)
            wait_for("8 steps", 60, (folder / "middle").exists)
            fault.before(network, last)
            began = time.monotonic()
            ended = running.result()
        seconds = time.monotonic() - began
        fault.after(network, last)
        network.wait()
        if fault.ends:
            said = ended.stdout + ended.stderr
            right = ended.returncode != 0 and fault.says in said and seconds < 25
            expect(right, f"{fault.name}: code {ended.returncode} after {seconds:.1f} s", said)
            print("\n".join(f"    {line}" for line in said.splitlines()[:4]))
            wait_for("the end on all hosts", 20, lambda: not ranks_of(script))
            expect(not weights.exists(), f"{fault.name}: no weights are written")
            ended = started()
        expect(
            ended.returncode == 0,
            f"{fault.name}: training ends well, {'again' if fault.ends else f'{seconds:.1f} s'}",
            ended.stderr,
        )
        expect(
            weights.read_bytes() == undisturbed[fault.width],
            f"{fault.name}: the weights have the bits of an undisturbed run",
        )


def _afresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def check() -> None:
    """Faults of ranks, of cables and of hosts."""
    need_root("a host that is a network namespace")
    need_packages(PACKAGES)
    with Machine() as machine:
        with Network(machine, 3) as network:
            network.wait()
            network.limit()
            check_host_faults(network)
        with Network(machine, 2) as network:
            network.wait()
            check_faults(network)
            check_cut_cable(network)


if __name__ == "__main__":
    sys.exit(main(check))
