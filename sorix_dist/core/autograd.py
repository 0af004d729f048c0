"""The walk from a result back to the leaves, newest operation first."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ContextDecorator, contextmanager
from contextvars import Token
from heapq import heappop, heappush
from typing import Any

import numpy as np

from sorix_dist.core.capture import host, listening, recorders
from sorix_dist.core.graph import Leaf, Node, Rule, Sync, fit, fitted, recording, through
from sorix_dist.core.op import current_shard, rule_on_tensors
from sorix_dist.core.placement import Group, Partial, Shard, tagged
from sorix_dist.core.tensor import Array, Tensor

Edge = Node | Leaf


class _Recording(ContextDecorator):
    """Switches recording on or off, for a `with` block or a decorated function."""

    def __init__(self, mode: bool) -> None:
        self.mode = mode
        self._tokens: list[Token[bool]] = []

    def __enter__(self) -> None:
        self._tokens.append(recording.set(self.mode))

    def __exit__(self, *exception: object) -> None:
        recording.reset(self._tokens.pop())

    def _recreate_cm(self) -> _Recording:
        # A decorated function may run in several threads at once, each in a context of its own.
        return _Recording(self.mode)


class no_grad(_Recording):  # noqa: N801 (PyTorch's name)
    """Nothing is recorded inside: results do not require a gradient."""

    def __init__(self) -> None:
        super().__init__(False)


class inference_mode(_Recording):  # noqa: N801 (PyTorch's name)
    """`no_grad` by another name; with `mode=False` operations are recorded."""

    def __init__(self, mode: bool = True) -> None:
        super().__init__(not mode)


class enable_grad(_Recording):  # noqa: N801 (PyTorch's name)
    """Operations are recorded inside, also within `no_grad`."""

    def __init__(self) -> None:
        super().__init__(True)


class set_grad_enabled(_Recording):  # noqa: N801 (PyTorch's name)
    """Switches recording at once; as a context it is undone on leaving, as a decorator it is for the function."""

    def __init__(self, mode: bool) -> None:
        super().__init__(bool(mode))
        super().__enter__()

    def __enter__(self) -> None:
        recording.set(self.mode)

    def __call__(self, function: Any) -> Any:
        recording.reset(self._tokens.pop())
        return super().__call__(function)


@contextmanager
def _the_shard_as_before() -> Iterator[None]:
    """Leaves `current_shard` as it was."""
    before = current_shard.set(current_shard.get())
    try:
        yield
    finally:
        current_shard.reset(before)


def is_grad_enabled() -> bool:
    """Whether operations are being recorded."""
    return recording.get()


def backward(
    tensor: Tensor, gradient: Any = None, retain_graph: bool | None = None, create_graph: bool = False
) -> None:
    """Adds the gradient of `tensor` to `grad` of every leaf that it was computed from.

    gradient: weights of the tensor's elements, of its shape; may be left out for a single element.
    retain_graph: keep what the operations saved, for another backward over the same graph.
    create_graph: record the backward itself, so that gradients can be differentiated again.
    """
    origin = tensor.origin
    if origin is None:
        raise RuntimeError("backward() on a tensor that does not require grad")
    sync = origin.sync
    recorder = listening() if recorders else None
    if recorder is not None and (create_graph or retain_graph):
        recorder.refuse("backward with create_graph or retain_graph")
    seed = _begin(sync, tensor, gradient)
    if sync is None:
        place = tensor.place
        # On several ranks a loss of shared rows is a part of the whole: whoever is left out of the sum is told.
        strict = isinstance(place, Shard | Partial) and not place.group.alone
        keep = bool(create_graph if retain_graph is None else retain_graph)
        _backward(tensor, seed, keep, create_graph, None, strict)
        return
    if create_graph:
        raise RuntimeError("create_graph=True can't be synchronised between ranks; use autograd.grad for a local graph")
    if recorder is not None:
        recorder.bare("try:")
    try:
        _backward(tensor, seed, bool(retain_graph), False, sync.visitor(), not sync.group.alone)
    except BaseException:
        sync.failed()
        raise
    if recorder is not None:
        recorder.bare(f"except {recorder.constant(sync, 'sync')}")
    _end(sync, tensor)


@host
def _begin(sync: Sync | None, tensor: Tensor, gradient: Any) -> Array:
    """Lets the ranks begin a backward; returns the gradient that its walk starts with."""
    seed = _seed(tensor, gradient)
    scale = 1.0 if sync is None else sync.begin(tensor.place)
    return seed if scale == 1 else seed * seed.dtype.type(scale)


@host
def _end(sync: Sync, tensor: Tensor) -> None:
    """Lets the ranks sum what the backward of a loss has left."""
    sync.end(tensor)


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
) -> tuple[Tensor | None, ...]:
    """The gradients of `outputs` to `inputs`, as a tuple; no `grad` is touched.

    Where the outputs follow from rows of a batch that several ranks share, or from a wrapped model, it is a call of all
    of them: gradients to what every rank has alike are those of the global batch, and gradients to rows are those of
    this rank's rows.
    RuntimeError if an input does not require a gradient, was not used (unless `allow_unused`: then None), or is a
    parameter of a wrapped model in reproducible mode.
    """
    if recorders and (recorder := listening()) is not None:
        recorder.refuse("autograd.grad")
    outs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    ins = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    if grad_outputs is None or isinstance(grad_outputs, Tensor | np.ndarray):
        grad_outputs = [grad_outputs] * len(outs) if len(outs) == 1 or grad_outputs is None else [grad_outputs]
    if len(grad_outputs) != len(outs):
        raise ValueError(f"grad_outputs must have one entry per output, got {len(grad_outputs)} for {len(outs)}")
    for what, tensors in (("outputs", outs), ("inputs", ins)):
        for i, tensor in enumerate(tensors):
            if tensor.origin is None:
                raise RuntimeError(f"{what}[{i}] does not require grad")
    starts = []
    group = _group_of(outs)
    for tensor, g in zip(outs, grad_outputs, strict=True):
        seed = _local(g) if create_graph and isinstance(g, Tensor) else _seed(tensor, g)
        if group is not None and not isinstance(tensor.place, Shard | Partial):
            seed = seed / group.parts  # what every rank computes alike counts once
            if tensor.array.size == 1:
                group.expect(tensor.array.item())
        starts.append((tensor, seed if isinstance(seed, Tensor) or not create_graph else Tensor(seed)))
    keep = create_graph if retain_graph is None else retain_graph
    with _Recording(create_graph), _the_shard_as_before():
        found = _gradients(starts, ins, keep, create_graph)
        if group is not None:
            found = _over_ranks(ins, found, group, create_graph)
    answers: list[Tensor | None] = []
    for i, (tensor, part) in enumerate(zip(ins, found, strict=True)):
        if part is None:
            if not allow_unused:
                raise RuntimeError(f"inputs[{i}] was not used in the graph of outputs (allow_unused=True gives None)")
        elif not isinstance(part, Tensor):
            part = Tensor(np.array(part))
        if part is not None and isinstance(tensor.place, Shard):
            part = tagged(_fresh(part), tensor.place)
        answers.append(part)
    return tuple(answers)


def _gradients(starts: list[tuple[Tensor, Any]], ins: list[Tensor], keep: bool, create: bool) -> list[Any]:
    """What a walk from `starts` brings to each of `ins` on this rank, None where it brings nothing."""
    found: dict[int, Any] = {id(tensor.origin): None for tensor in ins}

    def collect(edge: Edge, part: Any) -> None:
        if id(edge) in found:
            known = found[id(edge)]
            found[id(edge)] = part if known is None else known + part

    def at_leaf(leaf: Leaf, rule: Rule | None, gradient: Any) -> None:
        if id(leaf) in found:
            collect(leaf, _part(leaf, rule, gradient))

    oldest = min(tensor.origin.number if isinstance(tensor.origin, Node) else -1 for tensor in ins)
    walk(starts, at_leaf, keep=keep, create=create, at_node=collect, oldest=oldest)
    return [found[id(tensor.origin)] for tensor in ins]


def _fresh(tensor: Tensor) -> Tensor:
    return Tensor.of(tensor.array, tensor.origin)


def _group_of(outs: list[Tensor]) -> Group | None:
    """The ranks that have parts of the gradients of these outputs, None if no others have."""
    for tensor in outs:
        if isinstance(tensor.place, Shard | Partial):
            group: Group = tensor.place.group
            return None if group.alone else group
    found = next((tensor.origin.sync for tensor in outs if tensor.origin is not None and tensor.origin.sync), None)
    return None if found is None or found.group.alone else found.group


_OF_WEIGHTS = (
    "reproducible mode: autograd.grad gives gradients to rows of a batch and to what is computed outside of the model. "
    "Those to its parameters are summed in one order by backward(), which leaves them in `grad`"
)


def _over_ranks(ins: list[Tensor], parts: list[Any], group: Group, create: bool) -> list[Any]:
    """The gradients with sums over all ranks where an input is the same on every rank: parts of a sum, of which a rank
    may have none. Called by all ranks."""
    from sorix_dist.core.ops.collective import summed

    places = [i for i, tensor in enumerate(ins) if not isinstance(tensor.place, Shard | Partial)]
    if group.ordered or group.apart:
        if any((leaf := ins[i].leaf) is not None and leaf.sync is not None for i in places):
            raise RuntimeError(_OF_WEIGHTS)
        return parts
    if not places:
        return parts
    used = np.array([parts[i] is not None for i in places], np.float64)
    if create:
        used = group.reduce(used, "autograd.grad")
        for i, flag in zip(places, used.tolist(), strict=True):
            if flag:
                part = parts[i]
                if part is None:  # which the others' derivatives of higher order go through
                    part = Tensor(np.zeros(ins[i].shape, ins[i].array.dtype), requires_grad=True)
                parts[i] = summed(part, group, "autograd.grad")
        return parts
    for kind in dict.fromkeys(ins[i].array.dtype for i in places):  # one message for each dtype
        alike = [i for i in places if ins[i].array.dtype == kind]
        flags = np.array([parts[i] is not None for i in alike], kind)
        flat = [np.zeros(ins[i].array.size, kind) if parts[i] is None else np.ravel(parts[i]) for i in alike]
        total = group.reduce(np.concatenate([flags, *flat]), "autograd.grad")
        at = len(alike)
        for i, flag in zip(alike, total[: len(alike)].tolist(), strict=True):
            size = ins[i].array.size
            parts[i] = total[at : at + size].reshape(ins[i].array.shape) if flag else None
            at += size
    return parts


def _backward(
    tensor: Tensor, seed: Any, keep: bool, create: bool, at_node: Callable[[Edge, Any], None] | None, strict: bool
) -> None:
    """strict: whether every leaf must be synchronised between the ranks, or belong to this rank's rows."""
    if not create:
        hooked: dict[Leaf, Any] = {}  # the gradients of leaves whose hooks want to see all of them at once

        def add(leaf: Leaf, rule: Rule | None, gradient: Any) -> None:
            if strict and leaf.sync is None and not leaf.sharded:
                raise _nobodys(leaf)
            # Where others add their part to the gradient, hooks see the sum: that is theirs to call.
            if leaf.hooks and leaf.local is leaf.total:
                part = _part(leaf, rule, gradient)
                hooked[leaf] = hooked[leaf] + part if leaf in hooked else part
                return
            if recorders and (recorder := listening()) is not None:
                rule = recorder.leaf(leaf, rule, gradient, _deposit)
                with recorder.pause():
                    _deposit(leaf, rule, gradient)
                return
            _deposit(leaf, rule, gradient)

        token = recording.set(False)  # as no_grad does, at a third of its price
        try:
            walk([(tensor, seed)], add, keep=keep, at_node=at_node)
            for leaf, part in hooked.items():
                leaf.deposit(through(leaf.hooks or [], part))
        finally:
            recording.reset(token)
        return
    totals: dict[Leaf, Any] = {}

    def add_up(leaf: Leaf, rule: Rule | None, gradient: Any) -> None:
        part = _part(leaf, rule, gradient)
        totals[leaf] = part if leaf not in totals else totals[leaf] + part

    with enable_grad(), _the_shard_as_before():
        walk([(tensor, Tensor(seed))], add_up, keep=keep, create=True)
        for leaf, total in totals.items():
            if strict and not leaf.sharded:
                raise _nobodys(leaf)
            part = through(leaf.hooks or [], total)
            before = leaf.view if leaf.view is not None and leaf.view.origin is not None else None
            leaf.deposit(part.array)
            leaf.view = part if before is None else before + part


def _deposit(leaf: Leaf, rule: Rule | None, gradient: Any) -> None:
    """Adds the gradient that a rule makes at a leaf; the first to come is written straight into its memory."""
    local = leaf.local
    if rule is None or local.written:
        leaf.deposit(gradient if rule is None else rule(gradient, None))
        return
    place = local.array if local.array is not None else local.place(leaf)
    part = rule(gradient, place)
    if part is not place:
        np.copyto(place, fit(part, leaf))
    local.written = True


def _nobodys(leaf: Leaf) -> RuntimeError:
    """The error for a leaf that a backward on several ranks reaches, and that no wrapper synchronises."""
    # Not by all objects there are, among which may be some that another thread is making.
    owners = gc.get_referrers(*(x for x in gc.get_referrers(leaf) if isinstance(x, Tensor)))
    owners += gc.get_referrers(*(x for x in owners if type(x) is dict))
    names = [
        f"'{name}' of a {type(owner).__name__}"
        for owner in owners
        if hasattr(type(owner), "named_parameters") and hasattr(owner, "__dict__")
        for name, value in vars(owner).items()
        if isinstance(value, Tensor) and value.leaf is leaf
    ]
    return RuntimeError(
        f"the backward reaches {names[0] if names else 'a tensor'} of shape {leaf.shape}, which requires a gradient "
        "and is synchronised by no wrapper: each rank would get a part of it. Wrap the module that it belongs to in "
        "DistributedDataParallel (a criterion with parameters too; after layers of a wrapped model were replaced, wrap "
        "what its unwrap() gives), or let every rank compute all rows (sx.replicated(x)); autograd.grad sums over the "
        "ranks by itself"
    )


def walk(
    starts: Sequence[tuple[Tensor, Any]],
    at_leaf: Callable[[Leaf, Rule | None, Any], None],
    *,
    keep: bool = False,
    create: bool = False,
    at_node: Callable[[Edge, Any], None] | None = None,
    oldest: int = -1,
) -> None:
    """Takes gradients from `starts` to the leaves.

    A node is visited when all newer ones are done, so its gradient is complete; there is no recursion, and a
    visited node gives up what it saved, unless `keep`. With `create`, gradients are tensors and the rules run
    on tensors. `at_node` sees the complete gradient of every node. Nodes older than `oldest` are left out.
    """
    heap: list[tuple[int, Node]] = []
    pending: dict[Node, Any] = {}
    ours: set[Node] = set()  # whose pending gradient is an array that nobody else holds

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
            if recorders and (recorder := listening()) is not None:
                recorder.refuse("a hook of a tensor")
            gradient = through(node.hooks, gradient)
        if at_node is not None:
            at_node(node, gradient)
        if create:  # what is recorded now computes the virtual shard that the node does
            current_shard.set(None if node.shard is None else (node.shard, False))
        if node.number <= oldest:
            break
        rules = node.rules
        if rules is None:
            raise RuntimeError(
                f"the graph was used up by an earlier backward (at '{node.op.apply.__name__}'): "
                "say retain_graph=True there to go over it a second time"
            )
        if create:
            # The rules work on this rank's arrays alone, so that their work needs no placements.
            rules = _rules_on_tensors(node, gradient)
        edges = node.edges
        if not keep:
            node.rules = node.saved = None
            node.edges = []
        # Parameters are the last of an operation's inputs: who sends their gradients can do so while the others follow.
        for rule, edge in zip(rules[::-1], edges[::-1], strict=True):
            if rule is None or edge is None:
                continue
            if isinstance(edge, Leaf):
                at_leaf(edge, rule, gradient)
                continue
            part = rule(gradient, None)
            if part.shape != edge.shape or part.dtype != edge.dtype:
                part = fitted(part, edge.shape, edge.dtype)
            if edge in pending:
                add_again(edge, part)
            else:
                pending[edge] = part
                heappush(heap, (-edge.number, edge))


def _part(leaf: Leaf, rule: Rule | None, gradient: Any) -> Any:
    return fit(gradient if rule is None else rule(gradient, None), leaf)


def _rules_on_tensors(node: Node, gradient: Tensor) -> list[Rule | None]:
    assert node.rules is not None
    if node.op.composite is None:
        return [None if r is None else rule_on_tensors(node, i, r) for i, r in enumerate(node.rules)]  # type: ignore[misc]
    assert node.saved is not None
    # Fresh nodes in front of the inputs: the inner walk ends there, and its results are recorded onto the inputs.
    from sorix_dist.core.ops.shape import alias

    saved, options = node.saved
    inputs = [_local(x) if edge is None else alias(_local(x)) for x, edge in zip(saved, node.edges, strict=True)]
    value = node.op.composite(*inputs, **options)
    wanted = [x for x, edge in zip(inputs, node.edges, strict=True) if edge is not None]
    constants = getattr(value, "origin", None) is None or not wanted  # of no elements, say
    parts = iter([None] * len(wanted) if constants else _gradients([(value, gradient)], wanted, True, True))

    def constant(part: Tensor | None, edge: Edge) -> Rule:
        answer = Tensor(np.zeros(edge.shape, edge.dtype)) if part is None else part
        return lambda g, out: answer

    return [None if edge is None else constant(next(parts), edge) for edge in node.edges]


def _local(x: Any) -> Any:
    return Tensor.of(x.array, x.origin) if isinstance(x, Tensor) and x.place is not None else x


def _seed(tensor: Tensor, gradient: Any) -> Any:
    """The weights that a walk starts with, checked."""
    array = tensor.array
    if gradient is None:
        place = tensor.place
        total = place.total if isinstance(place, Shard) and not place.group.alone else 1
        if array.size != 1 or total != 1:
            raise RuntimeError(
                f"grad can be implicitly created only for scalar outputs; this one has shape {array.shape}"
                f"{f', rows of a batch of {total}' if total != 1 else ''}: "
                "reduce it to a scalar by mean() or sum(), or pass `gradient`"
            )
        ones = np.empty(array.shape, array.dtype)
        ones.fill(1)
        return ones
    given = gradient.array if isinstance(gradient, Tensor) else np.asarray(gradient)
    if given.shape != array.shape:
        raise ValueError(f"gradient must have the shape {array.shape} of its tensor, got shape {given.shape}")
    return given.astype(array.dtype, copy=False)
