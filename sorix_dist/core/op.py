"""The decorator that makes a differentiable operation of one NumPy function.

    @op(numpy=np.multiply)
    def mul(x, y):
        return x * y, (lambda g, out: g * y, lambda g, out: g * x)

The function gets arrays (positional) and options (by keyword), and returns its value and one rule per input.
A rule takes the gradient of the value to the gradient of its input, in the shape that broadcasting gave it.
What a backward needs is what the rules close over: the rule of an input that needs no gradient is dropped
at once, and the arrays that only it refers to go with it.

For higher derivatives the same rules run on tensors: `rule_on_tensors` puts tensors in the place of the
arrays that a rule closed over, which works if those are inputs or the result. An operation that saves other
numbers names a `composite`, a function of tensors that computes the same by plain operations.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import update_wrapper
from inspect import signature
from typing import Any, Literal

import numpy as np

from sorix_dist.core.batch_numbers import BatchNumber, here, of_all
from sorix_dist.core.capture import listening, recorders
from sorix_dist.core.dtype import promoted
from sorix_dist.core.expected import beside_rows
from sorix_dist.core.graph import Leaf, Node, Sync, joined, recording
from sorix_dist.core.placement import REPLICATE, Partial, Shard
from sorix_dist.core.rules import Rule, elementwise, first_shard
from sorix_dist.core.tally import is_counted, tallied
from sorix_dist.core.tensor import Array, Tensor, as_array

REGISTRY: dict[str, Op] = {}
OF_NUMPY: dict[Callable[..., Any], Callable[..., Any]] = {}  # the operations that implement NumPy functions for tensors

_count = itertools.count()
_new = object.__new__
FEW = 16  # elements of what is a loss, or several losses in one tensor
MOST_TERMS = 32  # of a loss; beyond these no further ones are looked for
_NUMBERS = frozenset((float, int, bool, type(None)))


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """The properties of an operation, which itself is a function of tensors (`Op.apply`)."""

    name: str
    inputs: tuple[str, ...]
    composite: Callable[..., Tensor] | None
    differentiable: bool
    function: Callable[..., Any]  # of arrays, with the rules
    apply: Callable[..., Tensor]  # its __name__ is what users call the operation


def op(
    *,
    numpy: Callable[..., Any] | None = None,
    composite: Callable[..., Tensor] | None = None,
    differentiable: bool = True,
    promote: Literal["common", "float"] | None = None,
    rule: Rule = elementwise,
    called: str | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Tensor]]:
    """Makes an operation of a function, and registers it under the function's name.

    numpy: the NumPy function that is this operation when it is applied to tensors.
    composite: a function of the input tensors that computes the same by other operations; higher
        derivatives go through it.
    differentiable: False for an operation whose result has no gradient, such as a comparison; it returns no rules.
    promote: "common" gives the function its inputs in one dtype, by PyTorch's rules; "float" also makes
        float32 of integers. Without it they come as they are.
    rule: which placement the result has, and which operands have to be made whole first; see `core.rules`.
    called: what users write for it, for error messages; by default the function's name.

    The function must not rebind its parameters: a rule that closes over one means the input of that name.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Tensor]:
        operation = _operation(function, composite, differentiable, promote, rule)
        REGISTRY[operation.name] = operation
        operation.apply.__name__ = called or operation.name
        if numpy is not None:
            OF_NUMPY[numpy] = operation.apply
        return operation.apply

    return register


def _operation(
    function: Callable[..., Any],
    composite: Callable[..., Tensor] | None,
    differentiable: bool,
    promote: Literal["common", "float"] | None,
    rule: Rule,
) -> Op:
    """The operation that runs `function` on the arrays of tensors and records it: the hot path of the tape."""
    to_float, by_element = promote == "float", rule is elementwise  # options of others may be a rank's own

    def apply(*inputs: Any, **options: Any) -> Tensor:
        arrays: list[Any] = []
        edges: list[Node | Leaf | None] = []
        needed = mixed = placed = sums = False
        dtype = sync = None
        place: Any = None
        for x in inputs:
            if isinstance(x, Tensor):
                array, edge, its_place = x.array, x.origin, x.place
                its_dtype = array.dtype
                if its_dtype is not dtype:
                    mixed = mixed or dtype is not None or its_dtype.kind != "f"
                    dtype = its_dtype
                arrays.append(array)
                edges.append(edge)
                if its_place is not None:
                    if its_place.__class__ is Shard:
                        placed = True
                    elif its_place is REPLICATE:
                        place = REPLICATE if all(map(_is_alike, inputs)) else None
                    elif its_place.__class__ is Partial:
                        placed = sums = True
                    else:
                        return tallied(apply, inputs, options)
                if edge is not None:
                    needed = True
                    other = edge.sync
                    if other is not sync and other is not None:
                        sync = other if sync is None else joined(sync, other)
            else:
                if x.__class__ not in _NUMBERS:
                    if isinstance(x, BatchNumber):
                        return tallied(apply, inputs, options)
                    # A NumPy scalar is a number to its user: it must not widen a float32 tensor.
                    x = x.item() if isinstance(x, np.generic) else as_operand(x)
                    mixed = True
                arrays.append(x)
                edges.append(None)
        if options:
            for x in options.values():
                if isinstance(x, BatchNumber):
                    number = of_all if isinstance(x, float) or is_counted(inputs) else here  # a length is an integer
                    return apply(*inputs, **{name: number(x) for name, x in options.items()})
                if by_element and placed and isinstance(x, float) and (rows := first_shard(inputs)) is not None:
                    beside_rows(rows, x)
        if placed:
            place = rule(apply, inputs, options)
            if place.__class__ is Tensor:
                return place
        given = arrays
        if mixed and promote is not None:
            arrays = promoted(arrays, to_float)
        value, rules = function(*arrays, **options)
        array = value if type(value) is np.ndarray else np.asarray(value)
        if recorders and (recorder := listening()) is not None:
            rules = recorder.operation(operation.name, function, given, arrays, to_float, options, value, array, rules)
        result = _new(Tensor)  # as Tensor.of does, without the call
        result.array = array
        result.leaf = None
        result.place = place
        if sums and place.__class__ is Partial and (place.factor != place.factor or any(map(_is_shown, inputs))):
            # It shows what follows from the numbers that its operands show.
            shown = [x.shows() if isinstance(x, Tensor) else x for x in inputs]
            shown = promoted(shown, to_float) if mixed and promote is not None else shown
            result.shown = np.asarray(function(*shown, **options)[0])
            if not any(map(_is_part, inputs)):
                result.complete = True
        if not (needed and differentiable and recording.get()):
            result.origin = None
            return result
        if None in edges:
            rules = [None if edge is None else rule for edge, rule in zip(edges, rules, strict=True)]
        saved = None if composite is None else (inputs, options)
        node = result.origin = Node(operation, next(_count), rules, edges, sync, array, id(value), saved)
        if sums and place.__class__ is Partial and array.size <= FEW:
            node.terms = [x for x in inputs if isinstance(x, Tensor) and x.place.__class__ is Partial]
        if sharding:
            in_shard(node)
        return result

    parameters = signature(function).parameters.values()
    inputs = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
    operation = Op(function.__name__, inputs, composite, differentiable, function, update_wrapper(apply, function))
    return operation


def _is_alike(x: Any) -> bool:
    """Whether an operand is known to be the same on every rank."""
    if isinstance(x, Tensor):
        if x.place is None:  # a number or a parameter is no rows
            return (x.array.size == 1 and x.array.ndim < 2) or (x.leaf is not None and x.leaf.sync is not None)
        return x.place is REPLICATE
    return x.__class__ in _NUMBERS


def _is_part(x: Any) -> bool:
    """Whether an operand shows this rank's part of a sum."""
    return isinstance(x, Tensor) and x.place.__class__ is Partial and not hasattr(x, "complete")


def _is_shown(x: Any) -> bool:
    return isinstance(x, Tensor) and x.place.__class__ is Partial and hasattr(x, "shown")


def terms_of(loss: Tensor) -> list[Tensor]:
    """The numbers that a loss was computed from, such as those that it is the sum of, nearest first."""
    found = {id(loss): loss}
    waiting = [loss]
    while waiting and len(found) <= MOST_TERMS:
        origin = waiting.pop(0).origin
        new = {id(x): x for x in (origin and origin.terms) or () if id(x) not in found}
        found |= new
        waiting += new.values()
    return [x for x in found.values() if x is not loss and x.array.size == 1 and not hasattr(x, "complete")]


def marker() -> int:
    """A number between those of the operations that were recorded so far and those to come."""
    return next(_count)


def recorded(
    operation: Op, rules: Sequence[Any], edges: list[Node | Leaf | None], sync: Sync | None, array: Array
) -> Node:
    """The node of an operation that was not made by `op`, whose rules are closures over what they need."""
    node = Node(operation, next(_count), rules, edges, sync, array, id(array), None)
    if sharding:
        in_shard(node)
    return node


sharding = False
"""Whether nodes are to know which virtual shard of a batch they compute; switched on for good by `use_shards`."""
current_shard: ContextVar[tuple[int, bool] | None] = ContextVar("shard", default=None)
"""The virtual shard that is being computed, and whether it is its forward, in which nothing else may come in."""


def use_shards() -> None:
    """Makes every node from now on remember the virtual shard that it was made for."""
    global sharding
    sharding = True


def in_shard(node: Node) -> None:
    """Notes the current shard in a node; RuntimeError if it follows from what was computed outside of the shard."""
    current = current_shard.get()
    if current is None:
        return
    node.shard, inside = current
    if not inside or node.op.name == "take_rows":  # which takes the rows of a shard into its forward
        return
    if any(isinstance(edge, Node) and edge.shard != node.shard for edge in node.edges):
        raise RuntimeError(
            f"reproducible mode: '{node.op.apply.__name__}' joins what the model computes of one virtual shard with a "
            "tensor that was computed outside of its forward and requires a gradient: compute it inside, or detach() it"
        )


def as_operand(x: Any) -> Array:
    """The array of an operand that is no tensor; RuntimeError for a list of tensors that would lose their gradients."""
    if isinstance(x, list | tuple) and recording.get() and _holds_gradient(x):
        raise RuntimeError(
            "a list of tensors would lose their gradients as an operand: join them by sorix_dist.stack or "
            "sorix_dist.cat, or call .detach() or .numpy() on each"
        )
    return as_array(x)


def _holds_gradient(values: Any) -> bool:
    kinds = {*map(type, values)} - _NUMBERS
    return bool(kinds) and any(
        v.origin is not None if isinstance(v, Tensor) else isinstance(v, list | tuple) and _holds_gradient(v)
        for v in values
    )


def like_input(operation: Callable[..., Tensor], *inputs: Any, **options: Any) -> Any:
    """Applies an operation; the result is a tensor if one of the inputs is one, else an array."""
    if any(isinstance(x, Tensor) for x in inputs):
        return operation(*inputs, **options)
    with_rules: Callable[..., Any] = operation.__wrapped__  # type: ignore[attr-defined]
    return with_rules(*inputs, **options)[0]


def memoize_last(compute: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A function of the gradient that several rules of one operation need: computed once for each gradient."""
    seen: Any = None
    made: Any = None

    def of(gradient: Any) -> Any:
        nonlocal seen, made
        if made is None or seen is not gradient:
            seen, made = gradient, compute(gradient)
        return made

    return of
