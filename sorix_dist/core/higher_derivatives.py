"""Higher derivatives: the walk with gradients that are tensors, by rules whose work is recorded in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CellType, FunctionType
from typing import Any

import numpy as np

from sorix_dist.core.capture import RecordedRule
from sorix_dist.core.graph import Leaf, Node, Rule, enable_grad, through
from sorix_dist.core.op import current_shard
from sorix_dist.core.rules import bare
from sorix_dist.core.tensor import Tensor
from sorix_dist.core.walk import gradient_of, walk

THROUGH_CHECKPOINT = "checkpoint: there are no second derivatives through it; call the function without"


@contextmanager
def restoring_shard() -> Iterator[None]:
    """Restores `current_shard` at the end of the block."""
    before = current_shard.set(current_shard.get())
    try:
        yield
    finally:
        current_shard.reset(before)


def backward_on_tensors(tensor: Tensor, seed: Any, keep: bool, strict: bool) -> None:
    """`backward` with create_graph: adds gradients to the leaves as tensors that can be differentiated again."""
    totals: dict[Leaf, Any] = {}

    def add(leaf: Leaf, rule: Rule | None, gradient: Any) -> None:
        part = gradient_of(leaf, rule, gradient)
        totals[leaf] = part if leaf not in totals else totals[leaf] + part

    with enable_grad(), restoring_shard():
        walk([(tensor, Tensor(seed))], add, keep=keep, on_tensors=rules_on_tensors, strict=strict)
        for leaf, total in totals.items():
            part = through(leaf.hooks or [], total)
            before = leaf.view if leaf.view is not None and leaf.view.origin is not None else None
            leaf.deposit(part.array)
            leaf.view = part if before is None else before + part


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
    walk(starts, at_leaf, keep=keep, on_tensors=rules_on_tensors if create else None, at_node=collect, oldest=oldest)
    return [found[id(tensor.origin)] for tensor in ins]


def rules_on_tensors(node: Node, gradient: Tensor) -> list[Rule | None]:
    """The rules of a node as functions of tensors, whose work is recorded."""
    # The record belongs to the node's virtual shard. The rules work on this rank's arrays, so they need no placements.
    current_shard.set(None if node.shard is None else (node.shard, False))
    assert node.rules is not None
    if node.op.composite is None:
        return [None if r is None else _rule_on_tensors(node, i, r) for i, r in enumerate(node.rules)]  # type: ignore[misc]
    if node.saved is None:
        raise RuntimeError(THROUGH_CHECKPOINT)
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
