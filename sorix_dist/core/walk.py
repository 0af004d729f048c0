"""The walk over recorded operations, newest first, that computes the gradients of the leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any

from sorix_dist.core import changes
from sorix_dist.core.capture import listening, recorders
from sorix_dist.core.graph import Leaf, Node, Rule, Visitor, fit, through
from sorix_dist.core.tensor import Tensor


def walk(
    starts: Sequence[tuple[Tensor, Any]],
    at_leaf: Callable[[Leaf, Rule | None, Any], None],
    *,
    keep: bool = False,
    on_tensors: Callable[[Node, Any], list[Rule | None]] | None = None,
    at_node: Visitor | None = None,
    oldest: int = -1,
    strict: bool = False,
) -> None:
    """Propagates gradients from `starts` to the leaves.

    A node is visited after all newer ones, so its gradient is complete. There is no recursion. A visited node frees
    what it saved, unless `keep`. `at_node` is called with the complete gradient of every node. Nodes older than
    `oldest` are not visited.
    on_tensors: makes the rules of a node that take tensors, for higher derivatives; gradients are tensors then.
    strict: a leaf that is neither synchronised between ranks nor rows of a batch is an error.
    """
    heap: list[tuple[int, Node]] = []
    pending: dict[Node, Any] = {}
    watched = max(oldest + 1, changes.last)  # most nodes are newer
    ours: set[Node] = set()  # their pending gradients are arrays of this walk

    def add_again(node: Node, part: Any) -> None:
        before = pending[node]
        if node in ours:
            pending[node] += part
        else:
            pending[node] = before + part
            if on_tensors is None:
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
        if node.number < watched:
            if node.number <= oldest:
                break
            changes.refuse_changed(node)
        rules = node.rules
        if rules is None:
            raise RuntimeError(
                f"the graph was freed by an earlier backward (at '{node.op.apply.__name__}'): "
                "give that one retain_graph=True to go through it a second time"
            )
        if on_tensors is not None:
            rules = on_tensors(node, gradient)
        edges = node.edges
        if not keep:
            node.rules = node.saved = None
            node.edges = []
        # Parameters are the last inputs of an operation: their gradients can be sent while the others are computed.
        for i in range(len(edges) - 1, -1, -1):
            rule, edge = rules[i], edges[i]
            if rule is None or edge is None:
                continue
            if type(edge) is Leaf:
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
    "criterion with parameters too, a tensor of your own as nn.Parameter of a Module; after layers of a wrapped model "
    "were replaced, wrap what its unwrap() gives), or let every rank compute all rows (sx.replicated(x)); "
    "autograd.grad sums over the ranks by itself [docs: unsynchronised]"
)


def gradient_of(leaf: Leaf, rule: Rule | None, gradient: Any) -> Any:
    """The gradient of a leaf by the rule of its operation (None: the walk starts at this leaf)."""
    return fit(gradient if rule is None else rule(gradient, None), leaf)
