"""Starts a process for every part of the benchmark, each under a hard limit, and puts their results together."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sorix_dist._version import __version__
from sorix_dist.launch import PYTHON, LaunchError, ask
from sorix_dist.launch.command import Command, command
from tests.benchmarks.measure import summaries
from tests.benchmarks.workloads import WORKLOADS

LIMIT = 100  # seconds that a process may take
SYNCHRONISED = ("W1", "W3")  # workloads of which the synchronisation is measured
MODES = {"steps": None, "reproducible steps": 8}  # virtual shards
MEMORY = ("784-512-512-10", "256")  # the MLP W1 and its batch


@dataclass(frozen=True)
class Plan:
    """What to measure and how thoroughly.

    ranks: numbers of ranks, the first of which scaling is measured from; seconds: for each workload in each
    of the rounds, in which the numbers of ranks take turns; sorix: an interpreter that has sorix, or None.
    """

    workloads: tuple[str, ...] = ("W1", "W3", "W4", "W5")
    ranks: tuple[int, ...] = (1, 2)
    rounds: int = 3
    seconds: float = 2.0
    nodes: int = 1_000
    sorix: str | None = None


def sorix_here() -> str | None:
    """This interpreter, if sorix is installed in its environment."""
    return sys.executable if importlib.util.find_spec("sorix") else None


def measure(plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    """All results, times in seconds and memory in bytes; `say` is told what comes next.

    LaunchError if a process cannot be started, fails, or takes too long.
    """
    command([sys.executable], max(plan.ranks))  # raises now, not after a minute, if ranks can't be started
    load = os.getloadavg()[0]
    say("memory")
    memory = {"sorix_dist": _memory(sys.executable, "sorix_dist")}
    if plan.sorix is not None:
        memory["sorix"] = _memory(plan.sorix, "sorix")
    say("tape")
    tape = _part("tape", 1, seconds=2 * plan.seconds, nodes=plan.nodes)["result"]
    say("convolution")
    convolution = _part("convolution", 1, seconds=2 * plan.seconds)["result"]
    times: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for number in range(plan.rounds):
        for ranks, mode in itertools.product(plan.ranks, MODES):
            say(f"{mode} on {ranks} rank(s), round {number + 1} of {plan.rounds}")
            options = {"synchronised": SYNCHRONISED if mode == "steps" else (), "virtual_shards": MODES[mode]}
            answer = _part("steps", ranks, names=plan.workloads, seconds=plan.seconds, **options)
            for kind, by_name in answer["result"].items():
                for name, competitors in by_name.items():
                    for competitor, values in competitors.items():
                        times[mode if kind == "steps" else kind, name, str(ranks), competitor] += values
    return {
        "version": __version__,
        "machine": {**answer["machine"], "load": load},
        "workloads": {name: WORKLOADS[name].words for name in plan.workloads},
        "tape": tape,
        "convolution": convolution,
        **summaries(times),
        "memory": memory,
    }


def phases(workload: str, ranks: int, seconds: float) -> dict[str, Any]:
    """Where the time of a step of a workload goes, as `phases.measure` finds it, measured for some seconds."""
    answer = _part("phases", ranks, name=workload, seconds=seconds)
    return {
        "version": __version__,
        "machine": {**answer["machine"], "load": os.getloadavg()[0]},
        "workload": f"{workload}: {WORKLOADS[workload].words}",
        "ranks": ranks,
        **answer["result"],
    }


def _part(part: str, ranks: int, **options: Any) -> dict[str, Any]:
    program = [*PYTHON, "-m", "tests.benchmarks.part", part, str(LIMIT), json.dumps(options)]
    return _answer(f"{part} on {ranks} rank(s)", command(program, ranks))


def _memory(interpreter: str, library: str) -> dict[str, Any]:
    script = Path(__file__).with_name("memory.py")
    return _answer(f"the memory of {library}", Command((interpreter, str(script), library, *MEMORY)))


def _answer(what: str, to_run: Command) -> dict[str, Any]:
    """What the last line of a command says in JSON."""
    answer = ask(to_run.argv, os.environ | to_run.env, LIMIT + 10)
    if answer.code is None:
        raise LaunchError(f"measuring {what} took more than {LIMIT} seconds")
    lines = answer.out.splitlines()
    if answer.code or not lines:
        last = "; ".join([line for line in answer.err.splitlines() if line.strip()][-3:]) or "without a word"
        raise LaunchError(f"measuring {what} failed with exit code {answer.code}: {last}")
    said: dict[str, Any] = json.loads(lines[-1])
    return said
