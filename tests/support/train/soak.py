"""`make soak`: training runs that random faults meet at random moments; each ends with the bits of an undisturbed one.

python -m tests.support.train.soak SECONDS [SEED]

SEED is that of the first run; each run prints its own, with which it can be made again. Exit code 1 after a
difference, a hang or a process that was left behind.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sorix_dist import EXIT_PREEMPTED
from tests.support.launching import Ended, run_command
from tests.support.train import resuming
from tests.support.train.soaked import CHECKPOINTS, FAULTS, NOTES

LIMIT = 150.0
"""Seconds for one launch, restarts included."""


@dataclass
class Totals:
    """What the runs have met."""

    runs: int = 0
    launches: int = 0
    attempts: int = 0
    sizes: Counter[int] = field(default_factory=Counter)
    planned: Counter[str] = field(default_factory=Counter)
    struck: Counter[str] = field(default_factory=Counter)
    restarts: Counter[str] = field(default_factory=Counter)

    def table(self) -> str:
        rows = [f"{'fault':20}{'planned':>9}{'struck':>9}{'started again':>15}"]
        rows += [f"{k:20}{self.planned[k]:9}{self.struck[k]:9}{self.restarts[k]:15}" for k in FAULTS]
        sizes = ", ".join(f"{count} on {size} ranks" for size, count in sorted(self.sizes.items()))
        rows.append(f"{self.runs} runs, {self.launches} launches, {self.attempts} attempts ({sizes})")
        return "\n".join(rows)


def prepared(folder: Path) -> Path:
    for name in (CHECKPOINTS, NOTES):
        (folder / name).mkdir(parents=True)
    return folder


def trained(folder: Path, plan: str, before: list[str]) -> Ended:
    return run_command([*before, "tests.support.train.soaked", str(folder), plan], limit=LIMIT)


def run(seed: int, root: Path, totals: Totals) -> None:
    """One run from its beginning to its end, through as many launches as it takes; AssertionError if it went wrong."""
    chosen = random.Random(seed)
    optimizer = chosen.choice(list(resuming.OPTIMIZERS))
    faults = [
        [chosen.choice(FAULTS), chosen.randrange(resuming.STEPS), chosen.randrange(12), chosen.uniform(0, 0.05)]
        for _ in range(chosen.randint(1, 5))
    ]
    alone = prepared(root / "alone")
    ended = trained(alone, json.dumps([optimizer, seed, []]), [sys.executable, "-m"])
    assert ended.code == 0, ended
    folder, plan = prepared(root / "ranks"), json.dumps([optimizer, seed, faults])
    said = []
    while True:
        options = ["-n", str(chosen.randint(2, 4)), "--max-restarts", str(chosen.randint(1, 3))]
        argv = [*options, "--checkpoint", str(folder / CHECKPOINTS), "-m"]
        ended = trained(folder, plan, [sys.executable, "-m", "sorix_dist", "run", *argv])
        said.append(f"{' '.join(options)}: exit code {ended.code} after {ended.seconds:.1f} s\n{ended.out}{ended.err}")
        totals.launches += 1
        assert not ended.left, f"left behind: {ended.left}\n{''.join(said)}"
        attempts = sorted((folder / NOTES).glob("attempt-*"), key=lambda path: int(path.name.split("-")[1]))
        if ended.code == 0:
            break
        # Only a fault may end it, and each attempt has one at most.
        assert len(attempts) <= len(faults), "".join(said)
        assert ended.code == EXIT_PREEMPTED or "not started again" in ended.err, "".join(said)
    digests = [(place / NOTES / "digest").read_text() for place in (alone, folder)]
    assert digests[0] == digests[1], f"other bits than without faults\n{''.join(said)}"
    totals.runs += 1
    totals.attempts += len(attempts)
    totals.sizes.update(int(path.read_text().split()[0]) for path in attempts)
    for number, (kind, *_) in enumerate(faults[: len(attempts)]):
        totals.planned[kind] += 1
        totals.struck[kind] += (folder / NOTES / f"struck-{number}").exists()
        totals.restarts[kind] += number + 1 < len(attempts)


def soak(seconds: float, seed: int) -> tuple[Totals, int]:
    """Makes runs for so many seconds, one at least; the totals, and how many runs went wrong."""
    totals, wrong, end = Totals(), 0, time.monotonic() + seconds
    while True:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            try:
                run(seed, Path(folder), totals)
                outcome = "the same bits"
            except (AssertionError, pytest.fail.Exception) as problem:
                wrong += 1
                outcome = f"WRONG: {problem}"
        print(f"seed {seed}: {outcome} after {time.monotonic() - began:.1f} s", flush=True)
        seed += 1
        if time.monotonic() > end:
            return totals, wrong


def main() -> int:
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # and end what it has started
    seconds, seed = float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    totals, wrong = soak(seconds, seed)
    print(totals.table())
    print(f"{wrong} runs went wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
