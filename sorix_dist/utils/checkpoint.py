"""Gradient checkpointing: a part of a model that keeps nothing for its backward, and is computed again there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import Any

from sorix_dist.core.capture import outside, recorders
from sorix_dist.core.graph import Node, recording
from sorix_dist.core.higher_derivatives import THROUGH_CHECKPOINT
from sorix_dist.core.op import marker
from sorix_dist.core.random import MaskReplay, generator, replayed_masks
from sorix_dist.utils.data.nested import tensors


class _Region:
    """A recorded computation without its rules. It runs once more to make them again."""

    def __init__(self, function: Callable[..., Any], inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._call = function, inputs, options
        self._context = copy_context()
        self._masks = MaskReplay()
        self._stream = generator().bit_generator.state
        self._rules: list[Sequence[Any]] | None = None

    def run(self) -> Any:
        """The first run: its result, with a graph that keeps no arrays."""
        function, inputs, options = self._call
        start, token = marker(), replayed_masks.set(self._masks)
        try:
            result = function(*inputs, **options)
        finally:
            replayed_masks.reset(token)
        if recorders and (self._masks.numbers or str(generator().bit_generator.state) != str(self._stream)):
            outside("random numbers inside of checkpoint, which its backward draws again, can't be captured")
        self._nodes = len(nodes := _nodes_of(result, start))
        for number, node in enumerate(nodes):
            rules = node.rules or ()
            node.rules = [None if rule is None else _Deferred(self, number, i) for i, rule in enumerate(rules)]
            node.saved = None
        return result

    def rule(self, number: int, index: int) -> Any:
        """The rule of an input of the node `number`. The first call runs the computation again."""
        if self._rules is None:
            self._rules = self._context.copy().run(self._again)
        return self._rules[number][index]

    def forget(self) -> None:
        """Drops the rules, once the backward is through."""
        self._rules = None

    def _again(self) -> list[Sequence[Any]]:
        function, inputs, options = self._call
        stream, before = generator().bit_generator, generator().bit_generator.state
        self._masks.again = iter(self._masks.numbers)
        tokens = recording.set(True), replayed_masks.set(self._masks)
        stream.state, start = self._stream, marker()
        try:
            nodes = _nodes_of(function(*inputs, **options), start)
        finally:
            stream.state, self._masks.again = before, None
            recording.reset(tokens[0])
            replayed_masks.reset(tokens[1])
        if len(nodes) != self._nodes:
            raise RuntimeError(
                f"checkpoint: the function recorded {self._nodes} operations, and {len(nodes)} when it was run again "
                "for the backward: it must compute the same each time"
            )
        return [node.rules or () for node in nodes]


class _Deferred:
    """A rule that its region makes when a backward needs it."""

    def __init__(self, region: _Region, number: int, index: int) -> None:
        self._region, self._place = region, (number, index)

    def __call__(self, gradient: Any, out: Any) -> Any:
        part = self._region.rule(*self._place)(gradient, out)
        if self._place[0] == 0:  # a backward reaches the oldest node last
            self._region.forget()
        return part

    @property
    def __code__(self) -> Any:  # higher derivatives read it
        raise RuntimeError(THROUGH_CHECKPOINT)


def checkpoint(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """function(*args, **kwargs) that keeps only its arguments and results for the backward, which runs it again.

    It saves the memory of what is computed inside, for the time of a second forward (Chen et al. 2016). Dropout and
    random numbers come out the same; `use_reentrant=` and `preserve_rng_state=` of PyTorch are ignored.
    RuntimeError in the backward if the function records other operations then.
    """
    options = {key: x for key, x in kwargs.items() if key not in ("use_reentrant", "preserve_rng_state")}
    if not recording.get():
        return function(*args, **options)
    return _Region(function, args, options).run()


def _nodes_of(result: Any, start: int) -> list[Node]:
    """The operations recorded since the marker `start` that the tensors in `result` follow from, oldest first."""
    found: dict[int, Node] = {}
    pending = [x.origin for x in tensors(result)]
    while pending:
        node = pending.pop()
        if isinstance(node, Node) and node.number > start and node.number not in found:
            found[node.number] = node
            pending += node.edges
    return [found[number] for number in sorted(found)]
