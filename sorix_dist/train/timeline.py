"""A timeline of one rank's steps: when the package's functions began and ended, as `instrument` records it.

Taking a span costs about a microsecond. Where that is much beside a step, some steps in a row are taken of many, and
the timeline pauses meanwhile. The number of a step decides, so all ranks take the same steps.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from threading import get_ident
from time import perf_counter_ns as clock
from typing import NamedTuple

from sorix_dist.core.op import marker
from sorix_dist.nn import Module
from sorix_dist.train import instrument
from sorix_dist.watchdog.watch import listeners

MOST = 50_000  # spans that a timeline takes; with the step that reaches it, it ends

REST = "all else"
"""The kind of what no other span covers: the script's own Python, and functions of tensors outside of modules."""

PAUSE = "not measured"  # the kind of the time in which the timeline paused
OUTSIDE = "outside of modules"  # the layer of operations that no module has called

BURST, MOST_BURSTS = 16, 64
"""Steps in a burst, which is recorded as a whole or not at all; and the longest cycle: one burst of 64 is recorded."""

LARGEST_SHARE = 0.025  # the share of a step's time that taking its spans may cost

SPAN_COST, NODE_COST, PAUSE_COST = 2_000, 300, 300_000
"""Nanoseconds that taking a span, taking an operation of a walk, and a pause cost, about: Python's caches of the
attributes of the classes whose functions are replaced are filled again in some 100 steps."""

LAYERED = ("forward", "evaluation", "backward")  # the kinds whose spans are named by layer


class Span(NamedTuple):
    """Something that took from `start` to `end`, in nanoseconds. kind: what its time counts as; name: what it was."""

    kind: str
    name: str
    start: int
    end: int


Wait = tuple[int, int, int, int]  # the number of the step, start and end in nanoseconds, and the rank waited for


@dataclass
class RankTimes:
    """Where the time of one rank went, in seconds, and what a step is.

    products: of matrices; kinds: by kind what no span inside of another one covers, so that they sum to `wall`; layers:
    by module its own forward, its backward, and its calls; waited_for: by rank; passed: steps between those that were
    measured, which `wall` does not contain; rows: of the last global batch; nbytes: of the gradients; operations: that
    a backward goes through.
    """

    wall: float
    steps: int
    products: float
    kinds: dict[str, float]
    layers: dict[str, list[float]]
    waited_for: dict[int, float]
    passed: int = 0
    rows: int = 0
    nbytes: int = 0
    operations: int = 0


@dataclass
class Timeline:
    """What this thread does from `start()` to `stop()`.

    model: its layers are named as in it; warmup: steps that are forgotten; most_steps: it takes these, in a row, and
    ends. A step ends with `Optimizer.step`, or with a call of a captured step.
    """

    model: Module | None = None
    warmup: int = 0
    most_steps: int | None = None
    began: int = 0
    ended: int = 0
    spans: list[tuple[str, str, int, int]] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    pauses: list[tuple[int, int, int]] = field(default_factory=list)  # start, end, and steps
    number: int = 0  # of the step
    steps: int = 0  # that were taken
    taken: int = 0  # the cost of what was taken before this burst, in nanoseconds
    since: int = 0  # when this step began, or this pause
    fastest: int = 0  # the time of the fastest step of this burst
    paused: int = 0  # the steps of this pause, 0 where there is none
    left: int = 0  # how many of them are still to come
    products: int = 0
    rows: int = 0  # of the last global batch
    nbytes: int = 0  # of the gradients that it gave
    layer: str = ""
    layers: list[tuple[int, str]] = field(default_factory=list)  # the layer of operations from a number on
    nodes: list[tuple[int, int]] = field(default_factory=list)  # the number of each operation a walk comes to, and when
    names: dict[int, tuple[str, Module]] = field(default_factory=dict)
    optimized: bool = False  # whether an optimizer has stepped since the last captured step began

    def start(self) -> None:
        """Begins to listen in this thread."""
        if self.model is not None:
            self._register(self.model)
        if not instrument.begin(self):
            raise RuntimeError(
                "profile: this rank is being profiled already: end the first profile before the next, or run the "
                "script without `sorix-dist profile` and `run --profile`, which measure all of it"
            )
        self._resume()
        self.began = self.since = clock()

    def stop(self) -> None:
        """Ends; may be called twice."""
        if instrument.started.get(get_ident()) is not self:
            return
        if self.paused:
            self._end_pause(self.paused - self.left)
        else:
            del listeners[get_ident()]
        self.ended = clock()
        instrument.end()

    def end_step(self) -> None:
        """A step has ended."""
        if self.left > 1:
            self.left -= 1
            return
        if self.warmup:
            self.warmup -= 1
            for forgotten in (self.spans, self.waits, self.nodes):
                forgotten.clear()
            self.layers[:] = [(marker(), self.layer)]
            self.products, self.began = 0, clock()
            self.since = self.began
            return
        if self.paused:
            self._end_pause(self.paused)
            self._resume()
            return
        self.number, self.steps = self.number + 1, self.steps + 1
        now = clock()
        self.fastest, self.since = min(self.fastest or now, now - self.since), now
        if self.steps == self.most_steps or len(self.spans) + len(self.nodes) > MOST:
            self.stop()
        elif self.most_steps is None and self.number % BURST == 0:
            self._end_burst()

    def _end_burst(self) -> None:
        """Pauses for some bursts if taking the spans of this one took too large a share of its time."""
        taken = (len(self.spans) + len(self.waits)) * SPAN_COST + len(self.nodes) * NODE_COST
        cost, time = taken - self.taken, BURST * self.fastest  # the fastest: others may have been interrupted
        self.taken, self.fastest, every = taken, 0, 1
        if cost > LARGEST_SHARE * time:
            while cost + PAUSE_COST > LARGEST_SHARE / 2 * every * time and every < MOST_BURSTS:
                every *= 2  # powers of two: ranks that measure other shares still take steps that all take
        if to_go := -self.number % (BURST * every):
            self._pause(to_go)

    def _resume(self) -> None:
        instrument.resume()
        listeners[get_ident()] = lambda *wait: self.waits.append((self.number, *wait))
        self.layers.append((marker(), self.layer))
        self.since = clock()

    def _pause(self, steps: int) -> None:
        del listeners[get_ident()]
        instrument.pause()
        self.paused = self.left = steps

    def _end_pause(self, steps: int) -> None:
        self.pauses.append((self.since, clock(), steps))
        self.number, self.paused, self.left = self.number + steps, 0, 0

    def name_of(self, module: Module) -> str:
        """The name of a module: in the model that it was called in, or its class."""
        if id(module) not in self.names:
            self._register(module)
        return self.names[id(module)][0]

    def _register(self, root: Module) -> None:
        prefix = f"{type(root).__name__}." if any(" " in name for name, _ in self.names.values()) else ""
        for dotted, module in root.named_modules():
            dotted = dotted.removeprefix("module").removeprefix(".")  # of a wrapped model
            name = f"{prefix}{dotted} {type(module).__name__}" if dotted else type(module).__name__
            self.names.setdefault(id(module), (name, module))  # the module stays alive, so that its id stays its own

    # -- what was found

    def all_spans(self) -> list[Span]:
        """The whole and the spans inside of it: each lies within an earlier one, and overlaps no other."""
        found = [Span(PAUSE, f"{steps} steps", start, end) for start, end, steps in self.pauses]
        for _, start, end, rank in self.waits:
            found.append(Span("waiting", f"for rank {rank}" if rank >= 0 else "in a message", start, end))
        found += [*self._walks(), *(Span(*span) for span in self.spans)]
        whole = Span(REST, "profile", self.began, self.ended)
        inside = [span for span in found if span.start >= self.began and span.end <= self.ended]
        order = sorted(range(len(inside)), key=lambda i: (inside[i].start, -inside[i].end, -i))
        return [whole, *(inside[i] for i in order)]

    def _walks(self) -> Iterator[Span]:
        """Backwards by layer: operations of one layer that follow each other are one span."""
        numbers = [number for number, _ in self.layers]
        span = None
        for (number, at), (_, then) in pairwise(self.nodes):
            if number == instrument.END:
                continue
            index = bisect_right(numbers, number) - 1
            name = (self.layers[index][1] if index >= 0 else "") or OUTSIDE
            if span is not None and (span.name, span.end) == (name, at):
                span = span._replace(end=then)
                continue
            if span is not None:
                yield span
            span = Span("backward", name, at, then)
        if span is not None:
            yield span

    def times(self) -> RankTimes:
        """Where the time went; which rank was waited for follows from the waits of all ranks."""
        kinds: dict[str, int] = defaultdict(int)
        layers: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
        around: list[tuple[Span, int]] = []  # the spans that are open, and how much of each is covered

        def close() -> None:
            span, covered = around.pop()
            own = span.end - span.start - covered
            kinds[span.kind] += own
            if span.kind in LAYERED and span.name != span.kind:
                layers[span.name][span.kind == "backward"] += own
                layers[span.name][2] += span.kind != "backward"

        for span in self.all_spans():
            while around and around[-1][0].end < span.end:
                close()
            if around:
                outer, covered = around[-1]
                around[-1] = outer, covered + span.end - span.start
            around.append((span, 0))
        while around:
            close()
        wall = self.ended - self.began - kinds.pop(PAUSE, 0)
        passed = self.number - self.steps
        walks = sum(number == instrument.END for number, _ in self.nodes)
        return RankTimes(
            wall / 1e9,
            self.steps,
            self.products / 1e9,
            {kind: ns / 1e9 for kind, ns in kinds.items()},
            {name: [there / 1e9, back / 1e9, calls] for name, (there, back, calls) in layers.items()},
            {},
            passed,
            self.rows,
            self.nbytes,
            (len(self.nodes) - walks) // max(walks, 1),
        )
