"""`profile`: where the time of training steps goes on every rank, as a table and as a trace that Perfetto shows."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter_ns as clock
from types import TracebackType
from typing import Any, Self

import numpy as np

from sorix_dist.comm import Comm, is_initialized
from sorix_dist.comm.waiting import comparison
from sorix_dist.core.arguments import as_int, as_path
from sorix_dist.nn import Module
from sorix_dist.parallel.consistency import on_first_rank
from sorix_dist.parallel.world import world
from sorix_dist.train.timeline import REST, RankTimes, Span, Timeline, Wait
from sorix_dist.watchdog.watch import UNKNOWN

ROUNDS = 30  # messages there and back by which the clocks of two hosts are compared
SHOWN = 50_000  # nanoseconds from which on a wait gets an arrow in the trace
LAYERS = 20  # the layers that the table shows
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

    A step ends with `optimizer.step()`, or with a call of a captured step. A span costs about a microsecond. Where that
    would be much of a step's time, and `steps` is None, 16 steps in a row are measured of 32 to 1,024.
    """
    if model is not None and not isinstance(model, Module):
        raise TypeError(f"profile: model must be a Module or None, got {type(model).__name__}")
    warmup = as_int("profile: warmup", warmup, 0)
    return Profile(Timeline(model, warmup, None if steps is None else as_int("profile: steps", steps, 1)), path)


class Profile:
    """What `profile` measures; complete when its block has ended.

    ranks: the times of each rank. If the block ended by an exception, only those of this one.
    """

    def __init__(self, timeline: Timeline, path: str | os.PathLike[str] | None) -> None:
        self.ranks: list[RankTimes] = []
        self._timeline = timeline
        self._clocks: list[tuple[int, int]] = []
        self._path = None if path is None else as_path("profile: path", path)
        if self._path is not None and (self._path.is_dir() or not self._path.parent.is_dir()):
            raise ValueError(f"profile: path must be a file in a folder that exists, got {os.fspath(self._path)!r}")

    def table(self) -> str:
        """Time by kind and by layer, the share of products, and the rank that the others waited for."""
        if not self.ranks:
            raise RuntimeError("profile: the table is complete when the with block has ended; call table() after it")
        return table(self.ranks)

    def __enter__(self) -> Self:
        if is_initialized():  # a script that is profiled from its start may choose options first
            self._clocks.append(_compared(world()))
        self._timeline.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(alone=kind is not None)

    def finish(self, alone: bool) -> None:
        """Ends the measurement. alone: the other ranks may not come here, so that only this one's times are kept."""
        self._timeline.stop()
        times, began = self._timeline.times(), self._timeline.began
        waits = [wait for wait in self._timeline.waits if wait[1] >= began]
        if alone:
            self.ranks = [times]
            _add_waits(self.ranks, [waits], [RankClock((0, 0))])
            return
        comm = world()
        self._clocks.append(_compared(comm))
        answers = comm.gather_objects((times, waits, RankClock(*self._clocks)), "profile")
        ranks, waits_of_ranks, clocks = zip(*answers, strict=True)
        self.ranks = list(ranks)
        _add_waits(self.ranks, waits_of_ranks, clocks)
        if self._path is not None:
            self._write(comm, self._path, clocks)

    def _write(self, comm: Comm, path: Path, clocks: Sequence[RankClock]) -> None:
        """Writes the trace. One rank after the other sends its spans, so that no rank keeps those of all."""
        own, events, flows = (self._timeline.all_spans(), self._timeline.waits), [], []
        for rank, shared in enumerate(clocks):
            spans, waits = comm.broadcast_object(own if rank == comm.rank else None, rank)
            if comm.rank == 0:
                events += _events(rank, spans, shared)
                flows.append((spans[0], waits, shared))
        events += _flows(flows)
        trace = {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"ranks": list(map(asdict, self.ranks))}}
        on_first_rank(comm, lambda: path.write_text(json.dumps(trace) + "\n", encoding="utf-8"))


class RankClock:
    """A rank's clock beside rank 0's: their difference at the begin and at the end, in between a straight line."""

    def __init__(self, *seen: tuple[int, int]) -> None:
        (self.first, self.offset), (last, offset) = seen[0], seen[-1]
        self.drift = (offset - self.offset) / (last - self.first) if last > self.first else 0.0

    def __call__(self, time: int) -> int:
        """The time on rank 0's clock."""
        return time - self.offset - round(self.drift * (time - self.first))


def _compared(comm: Comm) -> tuple[int, int]:
    """This rank's time, and by how much its clock is ahead of rank 0's, in nanoseconds: 0 on one host, where they have
    the same.

    What a rank sends before a message and gets back after it bounds the difference from both sides (Cristian 1989). The
    ranks of a host have one clock, so the narrowest of their bounds count.
    """
    if comm.hosts == 1:
        return clock(), 0
    least, most, before_end, after = -(1 << 62), 1 << 62, 0, 0
    for _ in range(ROUNDS):
        before = clock()
        times = comm.all_gather(np.array([before, after]))
        if after:  # rank 0 had this rank's last time before it read its clock
            least = max(least, before_end - int(times[0, 1]))
        before_end, after = before, clock()
        most = min(most, after - int(times[0, 0]))
    bounds = comm.all_gather(np.array([comm.host, least, most]))
    own = bounds[bounds[:, 0] == comm.host]
    return clock(), (int(own[:, 1].max()) + int(own[:, 2].min())) // 2 if comm.host else 0


def _add_waits(times: Sequence[RankTimes], waits: Sequence[list[Wait]], clocks: Sequence[RankClock]) -> None:
    """Adds to the times of all ranks which ones they waited for. In a message a rank waits until the last one has
    entered it, by the clocks of both; the rest of the message is no waiting."""
    waited: list[dict[int, int]] = [defaultdict(int) for _ in times]
    messages: list[dict[int, list[tuple[int, int]]]] = [defaultdict(list) for _ in times]  # by step
    for of_rank, shared, found, sent in zip(waits, clocks, waited, messages, strict=True):
        for step, start, end, rank in of_rank:
            if rank == UNKNOWN:
                sent[step].append((shared(start), shared(end)))
            else:
                found[rank] += end - start
    for step in set.intersection(*map(set, messages)) if len(messages) > 1 else ():
        in_step = [sent[step] for sent in messages]
        if len({*map(len, in_step)}) > 1:  # they are not the same messages
            continue
        for together in zip(*in_step, strict=True):
            late = max(range(len(together)), key=lambda rank: together[rank][0])
            for (start, end), found, own in zip(together, waited, times, strict=True):
                until = min(max(start, together[late][0]), end)
                found[late] += until - start
                own.kinds["waiting"] -= (end - until) / 1e9
                own.kinds["messages"] = own.kinds.get("messages", 0.0) + (end - until) / 1e9
    for own, found in zip(times, waited, strict=True):
        own.waited_for = {late: ns / 1e9 for late, ns in found.items() if ns}


def _events(rank: int, spans: Sequence[Span], shared: RankClock) -> list[dict[str, Any]]:
    """Spans as complete events of the Trace Event Format, in microseconds; a process stands for a rank."""
    named = {"process_name": {"name": f"rank {rank}"}, "process_sort_index": {"sort_index": rank}}
    named["thread_name"] = {"name": "training"}
    return [{"ph": "M", "pid": rank, "tid": 0, "name": name, "args": about} for name, about in named.items()] + [
        {"ph": "X", "pid": rank, "tid": 0, "cat": kind, "name": name, "ts": shared(start) / 1e3,
         "dur": (shared(end) - shared(start)) / 1e3}
        for kind, name, start, end in spans
    ]  # fmt: skip


def _flows(ranks: Sequence[tuple[Span, list[Wait], RankClock]]) -> list[dict[str, Any]]:
    """Flow events of the Trace Event Format: an arrow from the rank that came last to each longer wait for it.

    ranks: of each its whole, its waits and its clock. What came before the late rank's whole began gets no arrow.
    """
    events: list[dict[str, Any]] = []
    for rank, (whole, waits, shared) in enumerate(ranks):
        for _, start, end, late in waits:
            if late in (UNKNOWN, rank) or end - start < SHOWN or not whole.start <= start <= end <= whole.end:
                continue
            then, (its, _, its_clock) = shared(end - 1000), ranks[late]  # a microsecond before, inside of the wait
            if its_clock(its.start) <= then <= its_clock(its.end):
                flow = {
                    "name": "waited for",
                    "cat": "waiting",
                    "id": f"{rank}.{len(events)}",
                    "tid": 0,
                    "ts": then / 1e3,
                }
                events += {"ph": "s", "pid": late, **flow}, {"ph": "f", "bp": "e", "pid": rank, **flow}
    return events


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
    count, wall = sum(rank.steps for rank in ranks), sum(rank.wall for rank in ranks)
    if not all(rank.steps for rank in ranks):
        return "profile: no step was measured; a step ends with optimizer.step(), and the first ones may be left out"
    products = sum(rank.products for rank in ranks)
    of = f"{len(ranks)} ranks" if len(ranks) > 1 else "1 rank"
    first = ranks[0]
    steps = f"{first.steps} of {first.steps + first.passed} steps," if first.passed else f"{first.steps} steps of"
    lines = [f"{steps} {of}: {wall / count * 1e3:.3f} ms a step, products of matrices {products / wall:.0%}"]
    lines += ["", f"  {'':14} {'ms a step':>10} {'share':>6}" + ("   most" if len(ranks) > 1 else "")]
    for kind in KINDS:
        own = [rank.kinds.get(kind, 0.0) / rank.steps for rank in ranks]
        if any(own):
            total = sum(rank.kinds.get(kind, 0.0) for rank in ranks)
            most = f"   rank {own.index(max(own))}: {max(own) * 1e3:.3f}" if len(ranks) > 1 else ""
            lines.append(f"  {kind:14} {total / count * 1e3:10.3f} {total / wall:6.1%}{most}")
    return "\n".join([*lines, *_layers(ranks, count), *_waits(ranks)])


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


def _waits(ranks: Sequence[RankTimes]) -> list[str]:
    """Which rank the others waited for, the one that waited least, and for how long."""
    caused: dict[int, float] = defaultdict(float)
    for rank in ranks:
        for late, seconds in rank.waited_for.items():
            caused[late] += seconds
    if len(ranks) == 1 or not caused:
        return []
    shares = {number: sum(rank.waited_for.values()) / rank.wall for number, rank in enumerate(ranks)}
    slow = min(shares, key=lambda rank: shares[rank])
    each = caused[slow] / (len(ranks) - 1) / ranks[slow].steps * 1e3
    return ["", f"{comparison(shares, slow)}; each of them waited {each:.3f} ms a step for it"]
