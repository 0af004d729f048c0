"""Who takes part in the comparison, and how it is started."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sorix_dist.launch import ask
from sorix_dist.launch.command import Command, command
from tests.benchmarks import peers

OURS = "sorix_dist"
SCRIPT = Path(peers.__file__).with_name("turns.py")
PERCEPTRONS = ("W1", "W2", "W3")
OF_JAX = (*PERCEPTRONS, "W6", "W9")
OF_DDP = ("W1", "W2", "W3", "W4", "W5", "W6", "W8", "W9")
"""W7 normalises over the whole batch, which DDP can do on GPUs only (SyncBatchNorm)."""
COMPILED = ("W3", "W6", "W7", "W9")
"""torch.compile takes up to 20 s for each, and is slower than torch itself on the others."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")


@dataclass(frozen=True)
class Contestant:
    """Processes of a library that train one model together.

    peer: which `peers.with_PEER` it runs; threads: of each rank, None for a start without a word about them;
    workloads: which it can train, all if empty; options: of its `Peer`.
    """

    name: str
    peer: str
    ranks: int = 1
    threads: int | None = 1
    workloads: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    def trains(self, workload: str) -> bool:
        """Whether it can."""
        return not self.workloads or workload in self.workloads

    def commands(self, interpreter: str, socket: Path, meeting: Path) -> list[Command]:
        """What starts its processes: by mpirun, or each on its own and told where to meet the others."""
        threads = {name: str(self.threads) for name in THREAD_VARIABLES} if self.threads else {}
        environ = {name: value for name, value in os.environ.items() if name not in THREAD_VARIABLES} | threads
        options = {"threads": self.threads, "ranks": self.ranks, "meeting": str(meeting), **dict(self.options)}

        def program(rank: int) -> list[str]:
            return [interpreter, str(SCRIPT), self.peer, str(socket), json.dumps({**options, "rank": rank})]

        if self.peer == OURS:
            start = command(program(0), self.ranks, environ=environ)
            return [Command(start.argv, environ | start.env)]
        # Gloo would ask for the host's name, which need not lead anywhere.
        environ |= {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
        return [Command(tuple(program(rank)), environ) for rank in range(self.ranks)]


def field(ranks: int) -> tuple[Contestant, ...]:
    """All that are compared on so many cores; the first one is what the others are compared with."""
    captured: dict[str, Any] = {"options": (("captured", True),)}
    plain: dict[str, Any] = {"workloads": ("W4",), "options": (("channels_last", False),)}
    small: dict[str, Any] = {"workloads": ("W3", "W9"), "options": (("fused", False),)}
    return (
        Contestant(f"{OURS}, {ranks} ranks", OURS, ranks=ranks),
        Contestant(f"{OURS}, 1 rank", OURS),
        Contestant(f"{OURS}, 1 rank, {ranks} threads", OURS, threads=ranks),
        Contestant(f"{OURS}, {ranks} ranks, captured", OURS, ranks=ranks, **captured),
        Contestant(f"{OURS}, 1 rank, captured", OURS, **captured),
        Contestant(f"torch DDP (gloo), {ranks} ranks", "torch", ranks=ranks, workloads=OF_DDP),
        Contestant("torch, 1 thread", "torch"),
        Contestant(f"torch, {ranks} threads", "torch", threads=ranks),
        Contestant(f"torch DDP (gloo), {ranks} ranks, default layout", "torch", ranks=ranks, **plain),
        Contestant(f"torch, {ranks} threads, default layout", "torch", threads=ranks, **plain),
        Contestant(f"torch DDP (gloo), {ranks} ranks, default optimizer", "torch", ranks=ranks, **small),
        Contestant("torch, 1 thread, default optimizer", "torch", **small),
        Contestant("torch, 1 thread, torch.compile", "torch", workloads=COMPILED, options=(("compiled", True),)),
        Contestant("sorix, 1 thread", "sorix", workloads=PERCEPTRONS),
        Contestant(f"sorix, {ranks} threads", "sorix", threads=ranks, workloads=PERCEPTRONS),
        Contestant("jax, 1 thread", "jax", workloads=OF_JAX),
        Contestant(f"jax, {ranks} threads", "jax", threads=ranks, workloads=PERCEPTRONS),
    )


def crowd(ranks: int) -> tuple[Contestant, ...]:
    """The first of `field`, and more ranks: with threads pinned by hand, without a word about them, and torch's."""
    return (
        field(ranks)[0],
        Contestant(f"{OURS}, {2 * ranks} ranks", OURS, ranks=2 * ranks),
        Contestant(f"{OURS}, {2 * ranks} ranks, default start", OURS, ranks=2 * ranks, threads=None),
        Contestant(f"torch DDP (gloo), {2 * ranks} ranks", "torch", ranks=2 * ranks),
    )


@dataclass(frozen=True)
class Interpreters:
    """Which Python has the other libraries; sorix may need another one than torch and jax."""

    peers: str = sys.executable
    sorix: str | None = None

    def of(self, library: str) -> str:
        """The interpreter that runs a library."""
        if library == OURS:
            return sys.executable
        return self.sorix if library == "sorix" and self.sorix is not None else self.peers

    def missing(self, libraries: Sequence[str]) -> dict[str, str]:
        """Those that can't be imported, and why: a line each; LaunchError if there is no such interpreter."""
        return {library: why for library in libraries if (why := importing(self.of(library), library)[1])}


def importing(interpreter: str, library: str) -> tuple[float, str]:
    """Seconds that a new process takes to import a library, and an error of one line, empty if there is none.

    From the second time on the library's bytecode is cached, as it is for its users.
    """
    code = f"from time import perf_counter as now; t = now(); import {library}; print(now() - t)"
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environ["PYTHONSAFEPATH"] = "1"  # -P, which an older interpreter would refuse
    answer = ask([interpreter, "-c", code], environ, 100.0)
    return (float(answer.out.splitlines()[-1]), "") if answer.code == 0 else (0.0, answer.why)
