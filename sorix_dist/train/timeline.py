"""A timeline of one rank's steps: the package's functions note when they begin and end, while a timeline listens.

The functions are replaced by ones that take the time when the first timeline begins, and put back after the last one:
where no timeline listens, nothing is paid.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import wraps
from itertools import pairwise
from threading import Lock, get_ident
from time import perf_counter_ns as clock
from typing import Any, NamedTuple

import numpy as np

from sorix_dist.comm.waiting import listeners
from sorix_dist.core import Tensor, autograd
from sorix_dist.core.capture import listening
from sorix_dist.core.graph import recording
from sorix_dist.core.op import marker
from sorix_dist.core.ops import matrix
from sorix_dist.nn import Module
from sorix_dist.optim.optimizer import Optimizer
from sorix_dist.parallel.agreement import LocalConsensus, MessageConsensus, SharedMemoryConsensus
from sorix_dist.parallel.coordinator import Coordinator
from sorix_dist.train.checkpoint import Checkpointer
from sorix_dist.train.compile import CompiledStep
from sorix_dist.utils.data import loader

MOST = 50_000
"""Spans that a timeline takes; with the step that reaches it, it ends."""

REST = "all else"
"""The kind of what no other span covers: the script's own Python, and functions of tensors outside of modules."""

OUTSIDE = "outside of modules"
"""The layer of operations that no module has called."""

LAYERED = ("forward", "evaluation", "backward")
"""The kinds whose spans are named by layer."""

_END = -1  # in place of an operation: a walk has ended


class Span(NamedTuple):
    """Something that took from `start` to `end`, in nanoseconds. kind: what its time counts as; name: what it was."""

    kind: str
    name: str
    start: int
    end: int


@dataclass
class Summary:
    """Where one rank's time went, in nanoseconds.

    kinds: by kind what no span inside of another one covers, so that they sum to `wall`; layers: by module its own
    forward, its backward, and its calls; waits: start, end and the rank waited for; products: of matrices; rows: of
    the last global batch; nbytes: of the gradients; operations: that a backward goes through.
    """

    wall: int
    steps: int
    kinds: dict[str, int]
    layers: dict[str, list[int]]
    waits: list[tuple[int, int, int]]
    products: int
    rows: int = 0
    nbytes: int = 0
    operations: int = 0


@dataclass
class Timeline:
    """What this thread does from `start()` to `stop()`.

    model: its layers are named as in it; warmup: steps that are forgotten; most_steps: it ends after them. A step ends
    with `Optimizer.step`, or with a call of a captured step.
    """

    model: Module | None = None
    warmup: int = 0
    most_steps: int | None = None
    began: int = 0
    ended: int = 0
    spans: list[tuple[str, str, int, int]] = field(default_factory=list)
    waits: list[tuple[int, int, int]] = field(default_factory=list)
    step_ends: list[int] = field(default_factory=list)
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
        if get_ident() in _timelines:
            raise RuntimeError(
                "profile: this rank is being profiled already: end the first profile before the next, or run the "
                "script without `sorix-dist profile` and `run --profile`, which measure all of it"
            )
        if self.model is not None:
            self._register(self.model)
        with _lock:
            if not _timelines:
                _install()
            _timelines[get_ident()] = self
        listeners[get_ident()] = lambda *wait: self.waits.append(wait)
        self.began = clock()

    def stop(self) -> None:
        """Ends; may be called twice."""
        if _timelines.get(get_ident()) is not self:
            return
        self.ended = clock()
        del listeners[get_ident()]
        with _lock:
            del _timelines[get_ident()]
            if not _timelines:
                _uninstall()

    def end_step(self) -> None:
        """A step has ended."""
        if self.warmup:
            self.warmup -= 1
            for forgotten in (self.spans, self.waits, self.nodes):
                forgotten.clear()
            self.layers[:] = [(marker(), self.layer)]
            self.products, self.began = 0, clock()
            return
        self.step_ends.append(clock())
        if len(self.step_ends) == self.most_steps or len(self.spans) + len(self.nodes) > MOST:
            self.stop()

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
        found = [Span("waiting", f"for rank {rank}" if rank >= 0 else "in a message", *at) for *at, rank in self.waits]
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
            if number == _END:
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

    def summary(self) -> Summary:
        """Where the time went."""
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
        waits = [wait for wait in self.waits if wait[0] >= self.began]
        walks = sum(number == _END for number, _ in self.nodes)
        operations = (len(self.nodes) - walks) // max(walks, 1)
        counts = self.products, self.rows, self.nbytes, operations
        return Summary(self.ended - self.began, len(self.step_ends), dict(kinds), dict(layers), waits, *counts)


_timelines: dict[int, Timeline] = {}
_lock = Lock()
_originals: list[tuple[Any, str, Any]] = []


def _listener() -> Timeline | None:
    return _timelines.get(get_ident())


def _timed(kind: str) -> Callable[[Any], Any]:
    """Makes a function note its calls as spans of a kind."""

    def decorate(function: Any) -> Any:
        name = kind if function.__name__ == kind else f"{kind}: {function.__name__}"

        return _noted(function, lambda timeline, start, end: timeline.spans.append((kind, name, start, end)))

    return decorate


def _module_call(function: Any) -> Any:
    @wraps(function)
    def call(module: Any, *inputs: Any, **options: Any) -> Any:
        timeline = _timelines.get(get_ident())
        if timeline is None:
            return function(module, *inputs, **options)
        name, before = timeline.name_of(module), timeline.layer
        timeline.layer = name
        timeline.layers.append((marker(), name))
        start = clock()
        try:
            return function(module, *inputs, **options)
        finally:
            timeline.spans.append(("forward" if recording.get() else "evaluation", name, start, clock()))
            timeline.layer = before
            timeline.layers.append((marker(), before))

    return call


def _walk(function: Any) -> Any:
    """Notes when the walk of a backward comes to each operation."""

    @wraps(function)
    def backward(tensor: Tensor, seed: Any, keep: bool, at_node: Any, strict: bool) -> None:
        timeline = _timelines.get(get_ident())
        if timeline is None or listening() is not None:  # a captured step writes down the visitor that it sees
            function(tensor, seed, keep, at_node, strict)
            return
        note = timeline.nodes.append

        def visit(node: Any, gradient: Any) -> None:
            note((node.number, clock()))
            if at_node is not None:
                at_node(node, gradient)

        try:
            function(tensor, seed, keep, visit, strict)
        finally:
            note((_END, clock()))

    return backward


def _synchronise(function: Any) -> Any:
    timed = _timed("reduce")(function)

    @wraps(function)
    def synchronise(coordinator: Coordinator, scale: float) -> None:
        if (timeline := _listener()) is not None:
            timeline.rows = coordinator.rows.total
            timeline.nbytes = sum(bucket.flat.grad.nbytes for bucket in coordinator.buckets)
        timed(coordinator, scale)

    return synchronise


def _optimizer_step(function: Any) -> Any:
    timed = _timed("update")(function)

    @wraps(function)
    def step(*inputs: Any, **options: Any) -> Any:
        if listening() is not None:  # the recorder of a captured step calls this function again
            return function(*inputs, **options)
        result = timed(*inputs, **options)
        if (timeline := _listener()) is not None:
            timeline.optimized = True
            timeline.end_step()
        return result

    return step


def _captured_step(function: Any) -> Any:
    timed = _timed("captured step")(function)

    @wraps(function)
    def call(*inputs: Any, **options: Any) -> Any:
        if (timeline := _listener()) is not None:
            timeline.optimized = False
        result = timed(*inputs, **options)
        if (timeline := _listener()) is not None and not timeline.optimized:
            timeline.end_step()
        return result

    return call


def _batches(function: Any) -> Any:
    @wraps(function)
    def ahead(*inputs: Any) -> Iterator[Any]:
        fetch = _timed("loader")(next)
        with closing(function(*inputs)) as batches:
            while (batch := fetch(batches, _END)) is not _END:
                yield batch

    return ahead


def _product(function: Any) -> Any:
    def add(timeline: Timeline, start: int, end: int) -> None:
        timeline.products += end - start

    return _noted(function, add)


def _noted(function: Any, note: Callable[[Timeline, int, int], None]) -> Any:
    """The function; its begin and end are noted where a timeline runs in this thread."""

    @wraps(function)
    def timed(*inputs: Any, **options: Any) -> Any:
        timeline = _timelines.get(get_ident())
        if timeline is None:
            return function(*inputs, **options)
        start = clock()
        try:
            return function(*inputs, **options)
        finally:
            note(timeline, start, clock())

    return timed


_CONSENSUS = LocalConsensus, SharedMemoryConsensus, MessageConsensus
_REPLACED: list[tuple[Any, str, Callable[[Any], Any]]] = [
    (Module, "__call__", _module_call),
    (Tensor, "backward", _timed("backward")),
    (autograd, "_backward", _walk),
    (Coordinator, "synchronise", _synchronise),
    *((consensus, name, _timed("agreement")) for consensus in _CONSENSUS for name in ("agree", "commit", "fence")),
    (Optimizer, "step", _optimizer_step),
    (Optimizer, "zero_grad", _timed("zero_grad")),
    (CompiledStep, "__call__", _captured_step),
    (loader, "ahead", _batches),
    *((Checkpointer, name, _timed("checkpoint")) for name in ("save", "load_latest", "wait")),
    (np, "matmul", _product),
    (matrix, "dot", _product),
]


def _install() -> None:
    for owner, name, replacement in _REPLACED:
        original = vars(owner)[name]
        _originals.append((owner, name, original))
        setattr(owner, name, replacement(original))


def _uninstall() -> None:
    while _originals:
        setattr(*_originals.pop())
