"""`profile`: where the time of training steps goes on every rank, as a table and as a trace that Perfetto shows."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter_ns as clock
from types import TracebackType
from typing import Any, Self

import numpy as np

from sorix_dist.comm import Comm
from sorix_dist.comm.waiting import UNKNOWN, comparison
from sorix_dist.core.arguments import as_int
from sorix_dist.nn import Module
from sorix_dist.parallel.consistency import on_first_rank
from sorix_dist.parallel.world import world
from sorix_dist.train.timeline import REST, Span, Summary, Timeline

ROUNDS = 21
"""Messages by which the clocks of several hosts are compared."""
LAYERS = 20
"""The layers that the table shows."""
KINDS = (
    *("loader", "forward", "evaluation", "backward", "agreement", "reduce", "waiting", "messages", "update"),
    *("zero_grad", "captured step", "checkpoint", REST),
)
"""What time counts as, in the order of the table."""


def profile(
    model: Module | None = None,
    path: str | os.PathLike[str] | None = None,
    *,
    warmup: int = 0,
    steps: int | None = None,
) -> Profile:
    """Measures the training steps of a `with` block on every rank, layer by layer. A call of all ranks.

        with sx.profile(model, "trace.json", warmup=3) as p:
            train_one_epoch()
        sx.print(p.table())

    model: gives layers their names; without, the models that are called do. path: a file that rank 0 writes, a timeline
    of all ranks for https://ui.perfetto.dev; `sorix-dist profile trace.json` prints its table. warmup: steps that are
    left out; steps: how many are measured (None: all of the block). After 50,000 spans it stops too.

    A step ends with `optimizer.step()`, or with a call of a captured step. Spans cost about a microsecond each.
    """
    if model is not None and not isinstance(model, Module):
        raise TypeError(f"profile: model must be a Module or None, got {type(model).__name__}")
    warmup = as_int("profile: warmup", warmup, 0)
    return Profile(Timeline(model, warmup, None if steps is None else as_int("profile: steps", steps, 1)), path)


@dataclass
class RankTimes:
    """Where the time of one rank went, in seconds, and what a step is; see `Summary`. waited_for: by rank."""

    wall: float
    steps: int
    products: float
    kinds: dict[str, float]
    layers: dict[str, list[float]]
    waited_for: dict[int, float]
    rows: int = 0
    nbytes: int = 0
    operations: int = 0


class Profile:
    """What `profile` measures; complete when its block has ended.

    ranks: the times of each rank. If the block ended by an exception, only those of this one.
    """

    def __init__(self, timeline: Timeline, path: str | os.PathLike[str] | None) -> None:
        self.ranks: list[RankTimes] = []
        self._timeline = timeline
        self._path = None if path is None else Path(path).absolute()
        if self._path is not None and (self._path.is_dir() or not self._path.parent.is_dir()):
            raise ValueError(f"profile: path must be a file in a folder that exists, got {os.fspath(self._path)!r}")

    def table(self) -> str:
        """Time by kind and by layer, the share of products, and the rank that the others waited for."""
        if not self.ranks:
            raise RuntimeError("profile: the table is complete when the with block has ended; call table() after it")
        return table(self.ranks)

    def __enter__(self) -> Self:
        self._timeline.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(alone=kind is not None)

    def finish(self, alone: bool) -> None:
        """Ends the measurement. alone: the other ranks may not come here, so that only this one's times are kept."""
        self._timeline.stop()
        summary = self._timeline.summary()
        if alone:
            self.ranks = _times([summary], [0])
            return
        comm = world()
        answers = comm.gather_objects((summary, _offset(comm)), "profile")
        summaries, offsets = zip(*answers, strict=True)
        self.ranks = _times(summaries, offsets)
        if self._path is not None:
            self._write(comm, self._path, offsets)

    def _write(self, comm: Comm, path: Path, offsets: Sequence[int]) -> None:
        """Writes the trace. One rank after the other sends its spans, so that no rank keeps those of all."""
        own, events = self._timeline.all_spans(), []
        for rank, offset in enumerate(offsets):
            spans = comm.broadcast_object(own if rank == comm.rank else None, rank)
            if comm.rank == 0:
                events += _events(rank, spans, offset)
        trace = {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"ranks": list(map(asdict, self.ranks))}}
        on_first_rank(comm, lambda: path.write_text(json.dumps(trace) + "\n", encoding="utf-8"))


def _offset(comm: Comm) -> int:
    """This rank's clock minus rank 0's, in nanoseconds: 0 on one host, where they have the same."""
    if comm.hosts == 1:
        return 0
    differences = []
    for _ in range(ROUNDS):
        comm.barrier()
        clocks = comm.all_gather(np.array([clock()]))[:, 0]
        differences.append(clocks[comm.rank] - clocks[0])
    return int(np.median(differences))


def _times(summaries: Sequence[Summary], offsets: Sequence[int]) -> list[RankTimes]:
    """The times of all ranks, with the waiting in messages: until the last rank's clock says that it came."""
    waited: list[dict[int, int]] = [defaultdict(int) for _ in summaries]
    messages = []
    for summary, offset, found in zip(summaries, offsets, waited, strict=True):
        messages.append([(start - offset, end - offset) for start, end, rank in summary.waits if rank == UNKNOWN])
        for start, end, rank in summary.waits:
            if rank != UNKNOWN:
                found[rank] += end - start
    if len(messages) > 1 and len({*map(len, messages)}) == 1:  # else they are not the same messages
        for together in zip(*messages, strict=True):
            late = max(range(len(together)), key=lambda rank: together[rank][0])
            for (start, end), found, summary in zip(together, waited, summaries, strict=True):
                until = min(max(start, together[late][0]), end)
                found[late] += until - start
                summary.kinds["waiting"] -= end - until
                summary.kinds["messages"] = summary.kinds.get("messages", 0) + end - until
    return [
        RankTimes(
            summary.wall / 1e9,
            summary.steps,
            summary.products / 1e9,
            {kind: ns / 1e9 for kind, ns in summary.kinds.items()},
            {name: [there / 1e9, back / 1e9, calls] for name, (there, back, calls) in summary.layers.items()},
            {late: ns / 1e9 for late, ns in found.items() if ns},
            summary.rows,
            summary.nbytes,
            summary.operations,
        )
        for summary, found in zip(summaries, waited, strict=True)
    ]


def _events(rank: int, spans: Sequence[Span], offset: int) -> list[dict[str, Any]]:
    """Spans as complete events of the Trace Event Format, in microseconds; a process stands for a rank."""
    about = [{"ph": "M", "pid": rank, "tid": 0, "name": "process_name", "args": {"name": f"rank {rank}"}}]
    return about + [
        {"ph": "X", "pid": rank, "tid": 0, "cat": kind, "name": name, "ts": (start - offset) / 1e3,
         "dur": (end - start) / 1e3}
        for kind, name, start, end in spans
    ]  # fmt: skip


def table_of_file(path: str | os.PathLike[str]) -> str:
    """The table of a trace that `profile` has written; ValueError for another file."""
    return table(times_of_file(path))


def times_of_file(path: str | os.PathLike[str]) -> list[RankTimes]:
    """The times of each rank in a trace that `profile` has written; ValueError for another file."""
    try:
        ranks = json.loads(Path(path).read_text(encoding="utf-8"))["otherData"]["ranks"]
        times = [RankTimes(**rank) for rank in ranks]
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError):
        raise ValueError(f"{os.fspath(path)!r} is no trace that sx.profile has written") from None
    for rank in times:
        rank.waited_for = {int(late): seconds for late, seconds in rank.waited_for.items()}
    return times


def table(ranks: Sequence[RankTimes]) -> str:
    """The times of ranks as text."""
    steps = ranks[0].steps
    if not steps:
        return "profile: no step was measured; a step ends with optimizer.step(), and the first ones may be left out"
    count, wall = len(ranks) * steps, sum(rank.wall for rank in ranks)
    products = sum(rank.products for rank in ranks)
    of = f"{len(ranks)} ranks" if len(ranks) > 1 else "1 rank"
    lines = [f"{steps} steps of {of}: {wall / count * 1e3:.3f} ms a step, products of matrices {products / wall:.0%}"]
    lines += ["", f"  {'':14} {'ms a step':>10} {'share':>6}" + ("   most" if len(ranks) > 1 else "")]
    for kind in KINDS:
        own = [rank.kinds.get(kind, 0.0) for rank in ranks]
        if total := sum(own):
            most = f"   rank {own.index(max(own))}: {max(own) / steps * 1e3:.3f}" if len(ranks) > 1 else ""
            lines.append(f"  {kind:14} {total / count * 1e3:10.3f} {total / wall:6.1%}{most}")
    return "\n".join([*lines, *_layers(ranks, count), *_waits(ranks, steps)])


def _layers(ranks: Sequence[RankTimes], count: int) -> list[str]:
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for rank in ranks:
        for name, times in rank.layers.items():
            sums[name] = [a + b for a, b in zip(sums[name], times, strict=True)]
    slowest = sorted(sums.items(), key=lambda item: -item[1][0] - item[1][1])
    width = max([14, *(len(name) for name, _ in slowest[:LAYERS])])
    lines = ["", f"  {'layer':{width}} {'forward':>10} {'backward':>10}  ms a step, {'calls':>5}"] if slowest else []
    for name, (there, back, calls) in slowest[:LAYERS]:
        lines.append(
            f"  {name:{width}} {there / count * 1e3:10.3f} {back / count * 1e3:10.3f} {'':10} {calls / count:6.1f}"
        )
    if len(slowest) > LAYERS:
        lines.append(f"  and {len(slowest) - LAYERS} more")
    return lines


def _waits(ranks: Sequence[RankTimes], steps: int) -> list[str]:
    """Which rank the others waited for, the one that waited least, and for how long."""
    caused: dict[int, float] = defaultdict(float)
    for rank in ranks:
        for late, seconds in rank.waited_for.items():
            caused[late] += seconds
    if len(ranks) == 1 or not caused:
        return []
    shares = {number: sum(rank.waited_for.values()) / rank.wall for number, rank in enumerate(ranks)}
    slow = min(shares, key=lambda rank: shares[rank])
    each = caused[slow] / (len(ranks) - 1) / steps * 1e3
    return ["", f"{comparison(shares, slow)}; each of them waited {each:.3f} ms a step for it"]
