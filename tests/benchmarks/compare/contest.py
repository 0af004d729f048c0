"""What is compared: training steps, sums over ranks, memory, and what it takes to be there at all."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from sorix_dist._version import __version__
from sorix_dist.launch import LaunchError
from sorix_dist.launch.command import command
from tests.benchmarks.compare.arena import Arena, Turn, measures_memory
from tests.benchmarks.compare.contestants import OURS, Contestant, Interpreters, crowd, field, importing
from tests.benchmarks.compare.installed import installed
from tests.benchmarks.measure import summaries, summary
from tests.benchmarks.workloads import WORKLOADS, store

LIBRARIES = ("torch", "sorix", "jax")
SIZES = tuple(1 << power for power in range(12, 27, 2))
STEPS, SAME = 5, 2e-5
"""Losses of so many steps, of which the last has the batch of the first, may differ relatively by so much between
libraries: less than what a step changes."""


@dataclass(frozen=True)
class Plan:
    """What to compare and how thoroughly.

    ranks: as many as there are cores to compare on, a divisor of every batch.
    turn: seconds of a turn; seconds: of all turns of a workload, but there are `rounds` of them at least.
    sizes: bytes that are summed over ranks; crowded: whether to start more ranks than cores; memory: workloads of
    which it is measured; imports: how often each library is imported.
    """

    ranks: int = 2
    workloads: tuple[str, ...] = tuple(WORKLOADS)
    turn: float = 0.15
    seconds: float = 25.0
    rounds: int = 5
    sizes: tuple[int, ...] = SIZES
    crowded: bool = True
    memory: tuple[str, ...] = ("W1", "W2")
    imports: int = 3
    libraries: tuple[str, ...] = LIBRARIES
    interpreters: Interpreters = dataclasses.field(default_factory=Interpreters)

    def quick(self) -> Plan:
        """The same with hardly any repetition."""
        return replace(self, turn=0.01, seconds=0.1, rounds=2, sizes=self.sizes[:2], memory=("W1",), imports=1)


def measure(plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    """All results, times in seconds and memory in bytes; `say` is told what comes next.

    LaunchError if ranks can't be started, fail or take too long, or if a library computes something else. A library
    that is not there, or does not start, is left out.
    """
    command(["python"], plan.ranks)  # raises now, not after a minute, if ranks can't be started
    with tempfile.TemporaryDirectory(prefix="sorix_dist-bench-") as folder:
        return _Contest(plan, say, Path(folder)).run()


class _Contest:
    def __init__(self, plan: Plan, say: Callable[[str], None], folder: Path) -> None:
        self.plan, self.say, self.folder = plan, say, folder
        self.field = field(plan.ranks)
        self.teams = [each for each in self.field if each.ranks > 1 and not each.options]
        self.left_out = plan.interpreters.missing(plan.libraries)
        self.libraries = [OURS, *(library for library in plan.libraries if library not in self.left_out)]
        self.versions: dict[str, str] = {}
        self.machine: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        load, began = os.getloadavg()[0], monotonic()
        training = {name: self._training(name) for name in self.plan.workloads}
        crowded = self._crowded() if self.plan.crowded else {}
        sums = self._sums() if self.plan.sizes else {}
        memory = {name: self._memory(name) for name in self.plan.memory} if measures_memory() else {}
        imports = self._imports()
        return {
            "version": __version__,
            "ranks": self.plan.ranks,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": {**self.machine, "load": load},
            "libraries": self.versions,
            "left out": self.left_out,
            "workloads": {name: WORKLOADS[name].words for name in self.plan.workloads},
            "training": training,
            "crowded": crowded,
            "sums": sums,
            "memory": memory,
            "imports": imports,
            "installed": installed(self.machine["mpi"]),
            "seconds": round(monotonic() - began),
        }

    def _arena(self, contestants: Sequence[Contestant]) -> Arena:
        return Arena([each for each in contestants if each.peer in self.libraries], self.plan.interpreters)

    def _stored(self, name: str, times: int = 1) -> dict[str, str]:
        """The options of a step on so many times the rows of a workload."""
        path = self.folder / f"{name}-{times}.npz"
        if not path.exists():
            store(replace(WORKLOADS[name], rows=times * WORKLOADS[name].rows), path)
        return {"workload": name, "path": str(path)}

    def _training(self, name: str) -> dict[str, Any]:
        """Steps of all that train a workload, products of ours, and steps with as many rows on each rank as on one."""
        self.say(f"training steps of {name}")
        with self._arena([each for each in self.field if each.trains(name)]) as arena:
            self._enter(arena)
            turns = self._steps(arena, name)
            for contestant in arena.contestants:
                if contestant.peer == OURS and contestant.threads == 1 and not contestant.options:
                    arena.prepare(contestant.name, "products", **self._stored(name))
                    turns.append((contestant.name, "products"))
                if contestant in self.teams:
                    weak = self._stored(name, contestant.ranks)
                    arena.prepare(contestant.name, "step", "weak step", **weak)
                    turns.append((contestant.name, "weak step"))
            times = arena.interleaved(turns, self.plan.turn, self.plan.seconds, self.plan.rounds)
        return _by_act(times)

    def _crowded(self) -> dict[str, Any]:
        """Steps of W1 by more ranks than cores, pinned by hand and not, beside as many as cores."""
        self.say("more ranks than cores")
        with self._arena(crowd(self.plan.ranks)) as arena:
            self._enter(arena)
            turns = self._steps(arena, "W1")
            times = arena.interleaved(turns, self.plan.turn, self.plan.seconds / 2, self.plan.rounds)
        steps: dict[str, Any] = _by_act(times)["step"]
        return steps

    def _steps(self, arena: Arena, workload: str) -> list[Turn]:
        """Prepares training steps of all, and makes sure that they are the same ones."""
        wanted: Any = None
        for name in arena.seats:
            arena.prepare(name, "step", **self._stored(workload))
            losses = np.array(arena.losses(name, "step", STEPS))
            wanted = losses if wanted is None else wanted
            if not np.allclose(losses, wanted, rtol=SAME, atol=0):
                raise LaunchError(
                    f"{name} computes something else: its losses of {workload} are {losses}, not {wanted}"
                )
        return [(name, "step") for name in arena.seats]

    def _sums(self) -> dict[str, Any]:
        """Sums over the ranks, by bytes."""
        self.say("sums over ranks")
        results = {}
        with self._arena(self.teams) as arena:
            self._enter(arena)
            turns = [
                (contestant.name, act)
                for contestant in arena.contestants
                for act in (("backward", "all_reduce", "memcpy") if contestant.peer == OURS else ("all_reduce",))
            ]
            for size in self.plan.sizes:
                for name, act in turns:
                    arena.prepare(name, act, numbers=size // 4)
                times = arena.interleaved(turns, self.plan.turn / 4, self.plan.seconds / 20, self.plan.rounds)
                results[str(size)] = _by_act(times)
        return results

    def _memory(self, workload: str) -> dict[str, int]:
        """The most bytes of a rank, with nobody else there to share libraries with."""
        self.say(f"memory of {workload}")
        results = {}
        for contestant in self.teams:
            with self._arena([contestant]) as arena:
                self._enter(arena)
                for name in arena.seats:
                    arena.prepare(name, "step", **self._stored(workload))
                    results[name] = arena.memory(name, "step", STEPS)
        return results

    def _imports(self) -> dict[str, dict[str, float]]:
        """Seconds of importing each library, in new processes."""
        self.say("imports")
        times: dict[str, list[float]] = {library: [] for library in ("numpy", *self.libraries)}
        for _ in range(self.plan.imports):
            for library, values in times.items():
                values.append(importing(self.plan.interpreters.of(library), library)[0])
        return {library: summary(values) for library, values in times.items()}

    def _enter(self, arena: Arena) -> None:
        """Notes who is there, and who is not although its library is."""
        self.left_out |= arena.failed
        self.versions |= {seat.contestant.peer: seat.version for seat in arena.seats.values()}
        if not self.machine:
            self.machine = arena.describe(self.field[0].name)


def _by_act(times: dict[Turn, list[float]]) -> dict[str, Any]:
    return summaries({(act, name): values for (name, act), values in times.items()})
