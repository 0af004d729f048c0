"""The walk over recorded operations, newest first, that computes the gradients of the leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from types import CellType, FunctionType
from typing import Any

import numpy as np

from sorix_dist.core.capture import RecordedRule, listening, recorders
from sorix_dist.core.graph import Leaf, Node, Rule, fit, through
from sorix_dist.core.op import current_shard
from sorix_dist.core.rules import bare
from sorix_dist.core.tensor import Tensor


def walk(
    starts: Sequence[tuple[Tensor, Any]],
    at_leaf: Callable[[Leaf, Rule | None, Any], None],
    *,
    keep: bool = False,
    create: bool = False,
    at_node: Callable[[Node | Leaf, Any], None] | None = None,
    oldest: int = -1,
    strict: bool = False,
) -> None:
    """Propagates gradients from `starts` to the leaves.

    A node is visited after all newer ones, so its gradient is complete. There is no recursion. A visited node frees
    what it saved, unless `keep`. With `create`, gradients are tensors and the rules run on tensors. `at_node` is called
    with the complete gradient of every node. Nodes older than `oldest` are not visited.
    strict: a leaf that is neither synchronised between ranks nor rows of a batch is an error.
    """
    heap: list[tuple[int, Node]] = []
    pending: dict[Node, Any] = {}
    ours: set[Node] = set()  # whose pending gradient is an array of this walk

    def add_again(node: Node, part: Any) -> None:
        before = pending[node]
        if node in ours:
            pending[node] += part
        else:
            pending[node] = before + part
            if not create:
                ours.add(node)
        if recorders and (recorder := listening()) is not None:
            recorder.added(before, part, pending[node])

    for tensor, seed in starts:
        origin = tensor.origin
        if isinstance(origin, Leaf):
            at_leaf(origin, None, seed)
        elif origin in pending:
            add_again(origin, seed)
        elif origin is not None:
            pending[origin] = seed
            heappush(heap, (-origin.number, origin))
    while heap:
        node = heappop(heap)[1]
        gradient = pending.pop(node)
        if node.hooks:
            gradient = through(node.hooks, gradient)
        if recorders and (recorder := listening()) is not None:
            recorder.visited(node, at_node)
        if at_node is not None:
            at_node(node, gradient)
        if node.number <= oldest:
            break
        rules = node.rules
        if rules is None:
            raise RuntimeError(
                f"the graph was freed by an earlier backward (at '{node.op.apply.__name__}'): "
                "give that one retain_graph=True to go through it a second time"
            )
        if create:
            # What is recorded now belongs to the virtual shard of the node. It works on this rank's arrays, so it needs
            # no placements.
            current_shard.set(None if node.shard is None else (node.shard, False))
            rules = _rules_on_tensors(node, gradient)
        edges = node.edges
        if not keep:
            node.rules = node.saved = None
            node.edges = []
        # Parameters are the last inputs of an operation: their gradients can be sent while the others are computed.
        for i in range(len(edges) - 1, -1, -1):
            rule, edge = rules[i], edges[i]
            if rule is None or edge is None:
                continue
            if isinstance(edge, Leaf):
                if strict and edge.sync is None and not edge.sharded:
                    name = edge.name or f"an input of '{node.op.apply.__name__}'"
                    raise RuntimeError(_UNSYNCHRONISED.format(name=name, shape=edge.shape))
                at_leaf(edge, rule, gradient)
                continue
            part = rule(gradient, None)
            if part.shape != edge.shape or part.dtype != edge.dtype:
                part = fit(part, edge)
            if edge in pending:
                add_again(edge, part)
            else:
                pending[edge] = part
                heappush(heap, (-edge.number, edge))


_UNSYNCHRONISED = (
    "the backward reaches {name} of shape {shape}, which requires a gradient and is synchronised by "
    "no wrapper: each rank would get a part of it. Wrap the module that it belongs to in DistributedDataParallel (a "
    "criterion with parameters too; after layers of a wrapped model were replaced, wrap what its unwrap() gives), or "
    "let every rank compute all rows (sx.replicated(x)); autograd.grad sums over the ranks by itself "
    "[docs: unsynchronised]"
)


def gradient_of(leaf: Leaf, rule: Rule | None, gradient: Any) -> Any:
    """The gradient of a leaf by the rule of its operation (None: the walk starts at this leaf)."""
    return fit(gradient if rule is None else rule(gradient, None), leaf)


def gradients_to(starts: list[tuple[Tensor, Any]], ins: list[Tensor], keep: bool, create: bool) -> list[Any]:
    """The gradients of each of `ins` on this rank, None where the walk from `starts` does not reach it."""
    found: dict[int, Any] = {id(tensor.origin): None for tensor in ins}

    def collect(edge: Node | Leaf, part: Any) -> None:
        if id(edge) in found:
            known = found[id(edge)]
            found[id(edge)] = part if known is None else known + part

    def at_leaf(leaf: Leaf, rule: Rule | None, gradient: Any) -> None:
        if id(leaf) in found:
            collect(leaf, gradient_of(leaf, rule, gradient))

    oldest = min(tensor.origin.number if isinstance(tensor.origin, Node) else -1 for tensor in ins)
    walk(starts, at_leaf, keep=keep, create=create, at_node=collect, oldest=oldest)
    return [found[id(tensor.origin)] for tensor in ins]


def _rules_on_tensors(node: Node, gradient: Tensor) -> list[Rule | None]:
    assert node.rules is not None
    if node.op.composite is None:
        return [None if r is None else _rule_on_tensors(node, i, r) for i, r in enumerate(node.rules)]  # type: ignore[misc]
    assert node.saved is not None
    # Fresh nodes in front of the inputs: the inner walk ends there, and its results are recorded onto the inputs.
    from sorix_dist.core.ops.shape import alias

    saved, options = node.saved
    inputs = [bare(x) if edge is None else alias(bare(x)) for x, edge in zip(saved, node.edges, strict=True)]
    value = node.op.composite(*inputs, **options)
    wanted = [x for x, edge in zip(inputs, node.edges, strict=True) if edge is not None]
    constants = getattr(value, "origin", None) is None or not wanted  # of no elements, say
    parts = iter([None] * len(wanted) if constants else gradients_to([(value, gradient)], wanted, True, True))

    def constant(part: Tensor | None, edge: Node | Leaf) -> Rule:
        answer = Tensor(np.zeros(edge.shape, edge.dtype)) if part is None else part
        return lambda g, out: answer

    return [None if edge is None else constant(next(parts), edge) for edge in node.edges]


def _rule_on_tensors(node: Node, index: int, rule: Any) -> Callable[[Tensor, None], Tensor]:
    """The rule of input `index`, closed over tensors instead of arrays, so that its work is recorded."""

    def as_tensor(name: str, value: Any) -> Any:
        if name in node.op.inputs:
            edge = node.edges[node.op.inputs.index(name)]
            return Tensor.of(value, edge) if isinstance(value, np.ndarray) else value
        if id(value) == node.result:
            return Tensor.of(np.asarray(value), node)
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind == "f":
            raise RuntimeError(
                f"the operation '{node.op.name}' can't be differentiated twice: the rule of its input {index} "
                f"needs '{name}', which is neither an input nor the result, and it names no composite"
            )
        return value

    rule = rule.rule if isinstance(rule, RecordedRule) else rule  # of a step that turned out not to be captured
    cells = tuple(
        CellType(as_tensor(name, cell.cell_contents))
        for name, cell in zip(rule.__code__.co_freevars, rule.__closure__ or (), strict=True)
    )
    return FunctionType(rule.__code__, rule.__globals__, rule.__name__, rule.__defaults__, cells)
