"""Starts a process for every part of the benchmark, each under a hard limit, and puts their results together."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sorix_dist._version import __version__
from sorix_dist.bench.measure import summary
from sorix_dist.bench.workloads import WORKLOADS
from sorix_dist.launch.command import Command, command
from sorix_dist.launch.errors import LaunchError
from sorix_dist.launch.tree import kill_tree

LIMIT = 100  # seconds that a process may take
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
    times: dict[str, Any] = defaultdict(lambda: defaultdict(dict))
    for number in range(plan.rounds):
        for ranks, mode in itertools.product(plan.ranks, MODES):
            say(f"{mode} on {ranks} rank(s), round {number + 1} of {plan.rounds}")
            answer = _part("steps", ranks, names=plan.workloads, seconds=plan.seconds, virtual_shards=MODES[mode])
            for kind, by_name in answer["result"].items():
                if kind != "steps" and mode != "steps":
                    continue
                kind = mode if kind == "steps" else kind
                for name, competitors in by_name.items():
                    own = times[kind][name].setdefault(str(ranks), defaultdict(list))
                    for competitor, values in competitors.items():
                        own[competitor] += values
    return {
        "version": __version__,
        "machine": {**answer["machine"], "load": load},
        "workloads": {name: WORKLOADS[name].words for name in plan.workloads},
        "tape": tape,
        "convolution": convolution,
        **{
            kind: {
                name: {ranks: {c: summary(v) for c, v in own.items()} for ranks, own in by_ranks.items()}
                for name, by_ranks in by_name.items()
            }
            for kind, by_name in times.items()
        },
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
    program = [sys.executable, "-m", "sorix_dist.bench", part, str(LIMIT), json.dumps(options)]
    return _answer(f"{part} on {ranks} rank(s)", command(program, ranks))


def _memory(interpreter: str, library: str) -> dict[str, Any]:
    script = Path(__file__).with_name("memory.py")
    return _answer(f"the memory of {library}", Command((interpreter, str(script), library, *MEMORY)))


def _answer(what: str, to_run: Command) -> dict[str, Any]:
    """What the last line of a command says in JSON."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environ = os.environ | dict(to_run.env)
    try:
        process = subprocess.Popen(to_run.argv, env=environ, text=True, **pipes)  # type: ignore[call-overload]
    except OSError as error:
        raise LaunchError(f"{to_run.argv[0]} could not be started: {error.strerror}") from error
    with process:
        try:
            out, err = process.communicate(timeout=LIMIT + 10)
        except subprocess.TimeoutExpired as error:
            raise LaunchError(f"measuring {what} took more than {LIMIT} seconds") from error
        finally:  # also if this process is interrupted
            if process.poll() is None:
                kill_tree(process.pid)
    lines = out.splitlines()
    if process.returncode or not lines:
        last = "; ".join([line for line in err.splitlines() if line.strip()][-3:]) or "without a word"
        raise LaunchError(f"measuring {what} failed with exit code {process.returncode}: {last}")
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer
