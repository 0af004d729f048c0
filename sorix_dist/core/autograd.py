"""Backward and grad: the walk from a result back to the leaves, newest operation first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ContextDecorator, contextmanager
from contextvars import Token
from typing import Any

import numpy as np

from sorix_dist.core.capture import listening, outside, recorders
from sorix_dist.core.graph import Leaf, Node, Rule, Sync, Visitor, fit, recording, through
from sorix_dist.core.op import current_shard
from sorix_dist.core.placement import Group, Partial, Shard, tagged
from sorix_dist.core.rules import bare
from sorix_dist.core.tensor import Array, Tensor
from sorix_dist.core.walk import gradient_of, gradients_to, walk

Edge = Node | Leaf


class _Recording(ContextDecorator):
    """Switches recording on or off, for a `with` block or a decorated function."""

    mode: bool

    def __init__(self) -> None:
        self._tokens: list[Token[bool]] = []

    def __enter__(self) -> None:
        self._tokens.append(recording.set(self.mode))

    def __exit__(self, *exception: object) -> None:
        recording.reset(self._tokens.pop())

    def _recreate_cm(self) -> _Recording:
        # A decorated function may run in several threads at once, each in a context of its own.
        return enable_grad() if self.mode else no_grad()


class no_grad(_Recording):  # noqa: N801 (PyTorch's name)
    """A context without recording: results do not require a gradient."""

    mode = False


class inference_mode(_Recording):  # noqa: N801 (PyTorch's name)
    """The same as `no_grad`, for compatibility with PyTorch; with `mode=False` operations are recorded."""

    def __init__(self, mode: bool = True) -> None:
        super().__init__()
        self.mode = not mode


class enable_grad(_Recording):  # noqa: N801 (PyTorch's name)
    """A context with recording, also within `no_grad`."""

    mode = True


class set_grad_enabled(_Recording):  # noqa: N801 (PyTorch's name)
    """Switches recording on or off: from this call on, for a `with` block, or for a decorated function."""

    def __init__(self, mode: bool) -> None:
        super().__init__()
        self.mode = bool(mode)
        super().__enter__()

    def __enter__(self) -> None:
        recording.set(self.mode)

    def __call__(self, function: Any) -> Any:
        recording.reset(self._tokens.pop())
        return super().__call__(function)


@contextmanager
def _restoring_shard() -> Iterator[None]:
    """Restores `current_shard` at the end of the block."""
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
    """Adds the gradient of `tensor` to `grad` of every leaf that it was computed from, as `torch.Tensor.backward` does.

    gradient: the cotangent, of the tensor's shape; 1 by default, for a tensor with a single element.
    retain_graph: keeps what the operations saved, for another backward over the same graph.
    create_graph: records the backward itself, so that gradients can be differentiated again.
    RuntimeError if the tensor does not require a gradient or has several elements without a `gradient`, ValueError if
    shapes differ. Of a loss of a wrapped model it is a call of all ranks.
    """
    origin = tensor.origin
    if origin is None:
        raise RuntimeError("backward() on a tensor that does not require grad")
    sync = origin.sync
    recorder = listening() if recorders else None
    if recorder is not None and (create_graph or retain_graph):
        recorder.refuse("backward with create_graph or retain_graph")
    if recorder is not None:
        seed, visitor = recorder.host(_before_backward, (sync, tensor, gradient), {})
    else:
        seed, visitor = _before_backward(sync, tensor, gradient)
    if sync is None:
        place = tensor.place
        # On several ranks this loss is Partial: a leaf whose gradient would not be summed over the ranks is an error.
        strict = isinstance(place, Shard | Partial) and not place.group.single
        keep = bool(create_graph if retain_graph is None else retain_graph)
        (_backward_on_tensors if create_graph else _backward)(tensor, seed, keep, None, strict)
        return
    if create_graph:
        raise RuntimeError("create_graph=True can't be synchronised between ranks; use autograd.grad for a local graph")
    if recorder is not None:
        recorder.bare("try:")
    try:
        _backward(tensor, seed, bool(retain_graph), visitor, not sync.group.single)
    except BaseException:
        sync.backward_failed()
        raise
    if recorder is None:
        sync.after_backward(tensor)
    else:
        recorder.bare(f"except {recorder.constant(sync, 'coordinator')}")
        recorder.host(_after_backward, (sync, tensor), {})


def _before_backward(sync: Sync | None, tensor: Tensor, gradient: Any) -> tuple[Array, Visitor | None]:
    """The seed of the walk, and the function to call at each node."""
    seed = _seed(tensor, gradient)
    if sync is None:
        return seed, None
    scale, visitor = sync.before_backward(tensor.place)
    return seed if scale == 1 else seed * seed.dtype.type(scale), visitor


def _after_backward(sync: Sync, tensor: Tensor) -> None:
    sync.after_backward(tensor)


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
) -> tuple[Tensor | None, ...]:
    """The gradients of `outputs` to `inputs`, as a tuple; no `grad` is touched.

    If the outputs follow from rows of a batch that several ranks share, or from a wrapped model, every rank must call
    this: gradients to a Replicate are those of the global batch, gradients to rows those of this rank's rows.
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
        seed = bare(g) if create_graph and isinstance(g, Tensor) else _seed(tensor, g)
        if group is not None and not isinstance(tensor.place, Shard | Partial):
            seed = seed / group.parts  # every rank computes the same output, and gradients are summed over ranks
            if tensor.array.size == 1:
                group.expect(tensor.array.item())
        starts.append((tensor, seed if isinstance(seed, Tensor) or not create_graph else Tensor(seed)))
    keep = create_graph if retain_graph is None else retain_graph
    with enable_grad() if create_graph else no_grad(), _restoring_shard():
        found = gradients_to(starts, ins, keep, create_graph)
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
            part = tagged(Tensor.of(part.array, part.origin), tensor.place)
        answers.append(part)
    return tuple(answers)


def _group_of(outs: list[Tensor]) -> Group | None:
    """The group over which the gradients of these outputs are summed; None if there is one rank."""
    for tensor in outs:
        if isinstance(tensor.place, Shard | Partial):
            group: Group = tensor.place.group
            return None if group.single else group
    found = next((tensor.origin.sync for tensor in outs if tensor.origin is not None and tensor.origin.sync), None)
    return None if found is None or found.group.single else found.group


_OF_WEIGHTS = (
    "reproducible mode: autograd.grad gives gradients to rows of a batch and to what is computed outside of the model. "
    "For those to its parameters call backward(), which sums them in a fixed order, and read `grad`"
)


def _over_ranks(ins: list[Tensor], parts: list[Any], group: Group, create: bool) -> list[Any]:
    """The gradients; those of Replicates are summed over the ranks, None if no rank has one. A call of all ranks."""
    from sorix_dist.core.ops.collective import summed

    places = [i for i, tensor in enumerate(ins) if not isinstance(tensor.place, Shard | Partial)]
    if group.ordered or group.isolated:
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
                if part is None:  # other ranks differentiate through theirs: this rank takes part with zeros
                    part = Tensor(np.zeros(ins[i].shape, ins[i].array.dtype), requires_grad=True)
                parts[i] = summed(part, group, "autograd.grad")
        return parts
    for kind in dict.fromkeys(ins[i].array.dtype for i in places):  # one message for each dtype
        same = [i for i in places if ins[i].array.dtype == kind]
        flags = np.array([parts[i] is not None for i in same], kind)
        flat = [np.zeros(ins[i].array.size, kind) if parts[i] is None else np.ravel(parts[i]) for i in same]
        total = group.reduce(np.concatenate([flags, *flat]), "autograd.grad")
        flags, *sums = np.split(total, np.cumsum([len(same), *(each.size for each in flat[:-1])]))
        for i, flag, total in zip(same, flags.tolist(), sums, strict=True):
            parts[i] = total.reshape(ins[i].array.shape) if flag else None
    return parts


def _backward(tensor: Tensor, seed: Any, keep: bool, at_node: Callable[[Edge, Any], None] | None, strict: bool) -> None:
    """Adds gradients to the leaves; strict: every leaf must be synchronised, or belong to this rank's rows."""
    hooked: dict[Leaf, Any] = {}  # sums for the hooks of leaves

    def add(leaf: Leaf, rule: Rule | None, gradient: Any) -> None:
        # If other ranks add to the gradient, the reducer calls the hooks with the total.
        if leaf.hooks and leaf.local is leaf.total:
            if recorders:
                outside("a hook of a parameter can't be captured")
            part = gradient_of(leaf, rule, gradient)
            hooked[leaf] = hooked[leaf] + part if leaf in hooked else part
        elif recorders and (recorder := listening()) is not None:
            recorder.leaf(leaf, rule, gradient, _deposit)
        else:
            _deposit(leaf, rule, gradient)

    token = recording.set(False)  # as no_grad does, in a third of the time
    try:
        walk([(tensor, seed)], add, keep=keep, at_node=at_node, strict=strict)
        for leaf, part in hooked.items():
            leaf.deposit(through(leaf.hooks or [], part))
    finally:
        recording.reset(token)


def _deposit(leaf: Leaf, rule: Rule | None, gradient: Any) -> None:
    """Adds a gradient to a leaf; the rule writes the first one directly into the leaf's array."""
    local = leaf.local
    if rule is None or local.written:
        leaf.deposit(gradient if rule is None else rule(gradient, None))
        return
    array = local.array if local.array is not None else local.place(leaf)
    part = rule(gradient, array)
    if part is not array:
        np.copyto(array, fit(part, leaf))
    local.written = True


def _backward_on_tensors(tensor: Tensor, seed: Any, keep: bool, at_node: None, strict: bool) -> None:
    """The same with create_graph: gradients are tensors that can be differentiated again."""
    totals: dict[Leaf, Any] = {}

    def add(leaf: Leaf, rule: Rule | None, gradient: Any) -> None:
        part = gradient_of(leaf, rule, gradient)
        totals[leaf] = part if leaf not in totals else totals[leaf] + part

    with enable_grad(), _restoring_shard():
        walk([(tensor, Tensor(seed))], add, keep=keep, create=True, strict=strict)
        for leaf, total in totals.items():
            part = through(leaf.hooks or [], total)
            before = leaf.view if leaf.view is not None and leaf.view.origin is not None else None
            leaf.deposit(part.array)
            leaf.view = part if before is None else before + part


def _seed(tensor: Tensor, gradient: Any) -> Any:
    """The checked cotangent with which a walk starts."""
    array = tensor.array
    if gradient is None:
        place = tensor.place
        total = place.total if isinstance(place, Shard) and not place.group.single else 1
        if array.size != 1 or total != 1:
            raise RuntimeError(
                f"grad can be implicitly created only for scalar outputs; this one has shape {array.shape}"
                f"{f', rows of a batch of {total}' if total != 1 else ''}: "
                "reduce it to a scalar by mean() or sum(), or pass `gradient`"
            )
        return np.array(1, array.dtype, ndmin=array.ndim)
    given = gradient.array if isinstance(gradient, Tensor) else np.asarray(gradient)
    if given.shape != array.shape:
        raise ValueError(f"gradient must have the shape {array.shape} of its tensor, got shape {given.shape}")
    return given.astype(array.dtype, copy=False)
