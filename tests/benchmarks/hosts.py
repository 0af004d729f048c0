"""Training steps over links of 1 Gbit/s between hosts of this machine, exact and compressed, beside PyTorch's DDP with
its own hooks: `make hosts-bench`. All on the same hosts take turns, with the same weights and batches."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sorix_dist.cli.plan import figures
from sorix_dist.launch.command import Command
from sorix_dist.train.cost_model import METHODS as PLANNED
from sorix_dist.train.cost_model import Layout, Link, predict
from tests.benchmarks.compare.arena import Arena
from tests.benchmarks.compare.contest import SAME
from tests.benchmarks.compare.contestants import OURS, SCRIPT, THREAD_VARIABLES, Contestant, Interpreters
from tests.benchmarks.measure import summary
from tests.benchmarks.workloads import WORKLOADS, store
from tests.clusters.hosts import PACKAGES, Network
from tests.clusters.service import PYTHON, ROOT, Machine, expect, need_packages, need_root
from tests.clusters.service import main as run

TORCH = ROOT / ".venv-parity" / "bin" / "python"
LAYOUTS = {"2x1": (1, 1), "2x2": (2, 2), "4x1": (1, 1, 1, 1), "2+1+1": (2, 1, 1)}
"""How many ranks the hosts have: hosts x ranks, or the ranks of each."""
TURN, ROUNDS = 0.4, 3
BIT = 1e-9
"""Seconds of a bit on a link."""


@dataclass(frozen=True)
class Method:
    """A sum of gradients.

    hook: of this package, None for the exact sum; in_torch: whether DDP has it; sent: the share of the bytes that
    travels, None if it hardly matters.
    """

    name: str
    hook: str | None
    in_torch: bool = True
    sent: float | None = 1.0


METHODS = (
    Method("exact", None),
    Method("fp16", "fp16_compress", sent=0.5),
    # DDP's hook of torch 2.13 waits for a sum inside of the callback of another one: under gloo, ranks mix up their
    # messages or wait for ever. Its batched variant fails in an assertion.
    Method("PowerSGD, rank 4", "PowerSGD", in_torch=False, sent=None),
    Method("top 1 %", "TopK", in_torch=False, sent=None),
)


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
        environ = os.environ | dict.fromkeys(THREAD_VARIABLES, "1")
        return [
            Command(
                ("ip", "netns", "exec", host, interpreter, *words, json.dumps({**options, "rank": rank})),
                environ | {"GLOO_SOCKET_IFNAME": host},
            )
            for rank, host in enumerate(host for host, n in zip(self.network.hosts, self.each) for _ in range(n))
        ]


def contestants(network: Network, each: tuple[int, ...], methods: Sequence[Method]) -> list[OnHosts]:
    """Ours and, where torch is installed, DDP's."""
    some: dict[str, Any] = {"ranks": sum(each), "network": network, "each": each}
    found = []
    for method in methods:
        peers = (OURS, "torch") if method.in_torch and TORCH.exists() else (OURS,)
        found += [OnHosts(f"{peer} {method.name}", peer, options=(("hook", method.hook),), **some) for peer in peers]
    return found


def measure(network: Network, each: tuple[int, ...], workload: str, path: Path, seconds: float) -> dict[str, Any]:
    """Times of a step in ms by contestant, on hosts that have so many ranks each."""
    load = os.getloadavg()[0]
    with Arena(contestants(network, each, METHODS), Interpreters(str(TORCH))) as arena:
        for name, why in arena.failed.items():
            print(f"left out: {name} ({why})")
        losses = {}
        for name in arena.seats:
            arena.prepare(name, "step", workload=workload, path=str(path))
            losses[name] = arena.losses(name, "step", 3)
        exact = [np.array(found) for name, found in losses.items() if name.endswith(" exact")]
        expect(np.allclose(exact, exact[0], rtol=SAME, atol=0), f"{workload} on {each}: all train alike", losses)
        times = arena.interleaved([(name, "step") for name in arena.seats], TURN, seconds, ROUNDS)
    return {"load": load, "ms": {name: _milliseconds(found) for (name, _), found in times.items()}}


def _milliseconds(times: Sequence[float]) -> dict[str, float]:
    found = summary(times)
    return {"p10": 1e3 * found["p10"], "median": 1e3 * found["median"], "count": found["count"]}


def wire(workload: str, hosts: int, method: Method) -> float | None:
    """Milliseconds that the gradients of a step take on each link, in both directions at once; None if that is not
    the limit."""
    if method.sent is None:
        return None
    numbers = sum(parameter.numel for parameter in WORKLOADS[workload].model().parameters())
    return 2 * (hosts - 1) / hosts * 32 * numbers * method.sent * BIT * 1e3


def rows(workload: str, layout: str, found: dict[str, Any]) -> Iterator[str]:
    """The rows of Markdown of one layout: p10 (median), and p10 by the wire."""
    for method in METHODS:
        limit = wire(workload, len(LAYOUTS[layout]), method)
        cells = [f"{workload} {layout}", method.name, "–" if limit is None else f"{limit:.1f}"]
        times = [found["ms"].get(f"{library} {method.name}") for library in (OURS, "torch")]
        for ms in times:
            if ms is None:
                cells.append("–")
                continue
            ratio = "" if limit is None else f", {ms['p10'] / limit:.2f}x"
            cells.append(f"{ms['p10']:.1f} ({ms['median']:.1f}){ratio}")
        ours, theirs = times
        p10, median = ("" if theirs is None else f"{ours[word] / theirs[word]:.2f}" for word in ("p10", "median"))
        cells.append(f"{p10} ({median})" if p10 else "–")
        yield f"| {' | '.join(cells)} |"


def plan(machine: Machine, workload: str) -> Any:
    """What `sorix-dist plan` measures of a workload."""
    path = machine.folder / f"plan-{workload}.json"
    words = "plan", "-m", "tests.benchmarks.training", "--link", "1gbit", "--json", str(path), "--", workload
    machine.run(PYTHON, "-m", "sorix_dist", *words, limit=120)
    return figures(json.loads(path.read_text()))


def predictions(workload: str, layout: str, found: dict[str, Any], planned: Any) -> Iterator[str]:
    """The rows of Markdown of one layout: measured p10, what the plan predicts, and the ratio. Each rank computes on
    its share of this machine's cores. Hosts with other numbers of ranks are not planned."""
    each, (step, machine) = LAYOUTS[layout], planned
    for method in METHODS:
        name = method.name.partition(",")[0]
        if len({*each}) > 1 or name not in PLANNED:
            continue
        crowded = replace(machine, crowding=max(1.0, sum(each) / (os.cpu_count() or 1)))
        ms = 1e3 * predict(step, Layout(len(each), each[0]), Link(50e-6, 8 * BIT), crowded, name)
        measured = found["ms"][f"{OURS} {method.name}"]["p10"]
        yield f"| {workload} {layout} | {method.name} | {measured:.2f} | {ms:.2f} | {ms / measured:.2f} |"


HEAD = """\
| hosts x ranks | sum | wire | sorix_dist, p10 (median), p10 by the wire | torch DDP (gloo) | ours by theirs |
|---|---|---|---|---|---|"""


def check(options: argparse.Namespace) -> None:
    """Measures, and prints the table of the documentation."""
    need_root("a host that is a network namespace")
    need_packages(PACKAGES)
    if not TORCH.exists():
        print(f"no torch beside it: there is no {TORCH}; make parity makes it")
    results: dict[str, Any] = {}
    planned: dict[str, Any] = {}
    with Machine() as machine, Network(machine, 4) as network, tempfile.TemporaryDirectory() as folder:
        network.wait()
        network.limit()
        for workload in options.workloads:
            path = Path(folder, f"{workload}.npz")
            store(WORKLOADS[workload], path)
            planned[workload] = plan(machine, workload)
            for layout in options.layouts:
                found = measure(network, LAYOUTS[layout], workload, path, options.seconds)
                results.setdefault(workload, {})[layout] = found
                print(
                    f"{workload} {layout}: load {found['load']:.1f}",
                    *rows(workload, layout, found),
                    sep="\n",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    print("\nMilliseconds a step, one BLAS thread a rank, 1 Gbit/s, all hosts on the same", os.cpu_count(), "cores:\n")
    print(HEAD)
    for workload, layouts in results.items():
        for layout, found in layouts.items():
            print(*rows(workload, layout, found), sep="\n")
    print("\nThe plan of the same steps:\n\n| hosts x ranks | sum | p10 | predicted | ratio |\n|---|---|---|---|---|")
    for workload, layouts in results.items():
        for layout, found in layouts.items():
            for row in predictions(workload, layout, found, planned[workload]):
                print(row)


def main(options: argparse.Namespace) -> int:
    """`check` as a program; the exit code, 0 where there can be no such hosts."""
    return run(partial(check, options))
