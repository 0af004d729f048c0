"""Instruments the package for timelines: replaces some of its functions by others that time their calls.

The first timeline that begins replaces them, those for spans only while one records spans. Then the plain functions
come back. A run without a timeline pays nothing, and little while it pauses; a hook in each function would cost more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from threading import Lock, get_ident
from time import perf_counter_ns as clock
from typing import TYPE_CHECKING, Any

import numpy as np

from sorix_dist.core import Tensor, autograd
from sorix_dist.core.capture import listening
from sorix_dist.core.graph import recording as tracked
from sorix_dist.core.op import marker
from sorix_dist.core.ops import matrix
from sorix_dist.nn.hooks import Hooked
from sorix_dist.optim.optimizer import Optimizer
from sorix_dist.parallel.agreement import Consensus, SharedMemoryConsensus
from sorix_dist.parallel.coordinator import Coordinator
from sorix_dist.parallel.hosts import MessageConsensus
from sorix_dist.train.checkpoint import Checkpointer
from sorix_dist.train.compile import CompiledStep
from sorix_dist.utils.data import loader

if TYPE_CHECKING:
    from sorix_dist.train.timeline import Timeline

END = -1  # in place of an operation: a walk has ended

started: dict[int, Timeline] = {}
"""By thread, the timelines that have begun; a paused one is notified of the ends of steps only."""

recording: dict[int, Timeline] = {}  # by thread, the timelines that take spans now

_lock = Lock()
_originals: dict[tuple[Any, str], Any] = {}
_replacements: dict[tuple[Any, str], Any] = {}


def _timed(kind: str) -> Callable[[Any], Any]:
    """Makes a function note its calls as spans of a kind."""

    def decorate(function: Any) -> Any:
        name = kind if function.__name__ == kind else f"{kind}: {function.__name__}"

        return _noted(function, lambda timeline, start, end: timeline.spans.append((kind, name, start, end)))

    return decorate


def _module_call(function: Any) -> Any:
    @wraps(function)
    def call(module: Any, *inputs: Any, **options: Any) -> Any:
        timeline = recording.get(get_ident())
        if timeline is None:
            return function(module, *inputs, **options)
        name, before = timeline.name_of(module), timeline.layer
        timeline.layer = name
        timeline.layers.append((marker(), name))
        start = clock()
        try:
            return function(module, *inputs, **options)
        finally:
            timeline.spans.append(("forward" if tracked.get() else "evaluation", name, start, clock()))
            timeline.layer = before
            timeline.layers.append((marker(), before))

    return call


def _walk(function: Any) -> Any:
    """Notes when the walk of a backward comes to each operation."""

    @wraps(function)
    def backward(tensor: Tensor, seed: Any, keep: bool, at_node: Any, strict: bool) -> None:
        timeline = recording.get(get_ident())
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
            note((END, clock()))

    return backward


def _synchronise(function: Any) -> Any:
    timed = _timed("reduce")(function)

    @wraps(function)
    def synchronise(coordinator: Coordinator, scale: float) -> None:
        if (timeline := recording.get(get_ident())) is not None:
            timeline.rows = coordinator.rows.total
            timeline.nbytes = sum(bucket.flat.grad.nbytes for bucket in coordinator.buckets)
        timed(coordinator, scale)

    return synchronise


def _optimizer_step(function: Any) -> Any:
    timed = _timed("update")(function)

    @wraps(function)
    def step(optimizer: Optimizer, *inputs: Any, **options: Any) -> Any:
        result = timed(optimizer, *inputs, **options)
        if (timeline := started.get(get_ident())) is not None:
            timeline.optimized = True
            timeline.end_step()
        return result

    return step


def _captured_step(function: Any) -> Any:
    timed = _timed("captured step")(function)

    @wraps(function)
    def call(*inputs: Any, **options: Any) -> Any:
        if (timeline := started.get(get_ident())) is not None:
            timeline.optimized = False
        result = timed(*inputs, **options)
        timeline = started.get(get_ident())
        if timeline is not None and not timeline.optimized:
            timeline.end_step()
        return result

    return call


def _batches(function: Any) -> Any:
    fetch = _timed("loader")(next)

    @wraps(function)
    def ahead(*inputs: Any) -> Iterator[Any]:
        batches = function(*inputs)
        try:
            while (batch := (fetch if recording else next)(batches, END)) is not END:
                yield batch
        finally:
            batches.close()

    return ahead


def _product(function: Any) -> Any:
    def add(timeline: Timeline, start: int, end: int) -> None:
        timeline.products += end - start

    return _noted(function, add)


def _noted(function: Any, note: Callable[[Timeline, int, int], None]) -> Any:
    """The function; its begin and end are noted where a timeline runs in this thread."""

    @wraps(function)
    def timed(*inputs: Any, **options: Any) -> Any:
        timeline = recording.get(get_ident())
        if timeline is None:
            return function(*inputs, **options)
        start = clock()
        try:
            return function(*inputs, **options)
        finally:
            note(timeline, start, clock())

    return timed


_CONSENSUS = Consensus, SharedMemoryConsensus, MessageConsensus
STEPS: list[tuple[Any, str, Callable[[Any], Any]]] = [
    (Optimizer, "step", _optimizer_step),
    (CompiledStep, "__call__", _captured_step),
    (loader, "ahead", _batches),  # one call is a whole epoch
]
"""What is replaced while a timeline has begun."""

SPANS: list[tuple[Any, str, Callable[[Any], Any]]] = [
    (Hooked, "__call__", _module_call),
    (Tensor, "backward", _timed("backward")),
    (autograd, "_backward", _walk),
    (Coordinator, "synchronise", _synchronise),
    *((consensus, name, _timed("agreement")) for consensus in _CONSENSUS for name in ("agree", "commit", "fence")),
    (Optimizer, "zero_grad", _timed("zero_grad")),
    *((Checkpointer, name, _timed("checkpoint")) for name in ("save", "load_latest", "wait")),
    (np, "matmul", _product),
    (matrix, "dot", _product),
]
"""What is replaced while a timeline takes spans."""


def begin(timeline: Timeline) -> bool:
    """Notifies a timeline of the steps of this thread from now on; False if this thread has another timeline."""
    with _lock:
        free = get_ident() not in started
        if free:
            started[get_ident()] = timeline
            _replace(STEPS, len(started) == 1)
    return free


def end() -> None:
    """Ends the notifications of this thread's timeline."""
    pause()
    with _lock:
        del started[get_ident()]
        _restore(STEPS, not started)


def resume() -> None:
    """Records spans too in this thread's timeline."""
    with _lock:
        recording[get_ident()] = started[get_ident()]
        _replace(SPANS, len(recording) == 1)


def pause() -> None:
    """Notifies this thread's timeline of steps only; may be called twice."""
    with _lock:
        if recording.pop(get_ident(), None) is not None:
            _restore(SPANS, not recording)


def _replace(functions: list[tuple[Any, str, Callable[[Any], Any]]], first: bool) -> None:
    for owner, name, replacement in functions if first else ():
        original = _originals[owner, name] = vars(owner)[name]
        if (owner, name) not in _replacements or _replacements[owner, name].__wrapped__ is not original:
            _replacements[owner, name] = replacement(original)
        setattr(owner, name, _replacements[owner, name])


def _restore(functions: list[tuple[Any, str, Callable[[Any], Any]]], last: bool) -> None:
    for owner, name, _ in functions if last else ():
        setattr(owner, name, _originals.pop((owner, name)))
