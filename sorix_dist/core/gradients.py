"""Gradients as tensors with placements, for functions of users: `grad`, hooks, and the backward of a `Function`.

The cotangent of a Shard is a Shard, that of a Partial a Replicate, that of a Replicate a Partial. So the norm or the
mean that a hook takes of a gradient is that of the global batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sorix_dist.core.autograd import seed_of
from sorix_dist.core.capture import listening, recorders
from sorix_dist.core.graph import Leaf, Node, enable_grad, is_grad_enabled, joined, no_grad
from sorix_dist.core.higher_derivatives import gradients_to, restoring_shard
from sorix_dist.core.op import Op, current_shard, recorded
from sorix_dist.core.placement import (
    REPLICATE,
    Deferred,
    Group,
    Partial,
    Shard,
    cotangent_of,
    refuse_value,
    shard_of,
    tagged,
)
from sorix_dist.core.rules import bare, beside, collective, on_every_rank, placement_of, whole, whole_sums
from sorix_dist.core.tensor import Tensor, array_of, as_array, ndarray_of


def placed(gradient: Tensor, place: Any, group: Group | None) -> Tensor:
    """The gradient of a tensor of placement `place`, tagged; group: the ranks whose sum a Replicate's gradient is."""
    tagged = Tensor.of(gradient.array, gradient.origin)
    tagged.place = cotangent_of(place, group)
    return tagged


def hook_on_arrays(hook: Callable[[Tensor], Any], place: Any, group: Group | None) -> Callable[[Any], Any]:
    """A user's hook as a function of the gradient that a walk has, an array, or a tensor for higher derivatives."""

    def on_gradient(gradient: Any) -> Any:
        given = placed(gradient if isinstance(gradient, Tensor) else Tensor.of(gradient), place, group)
        part = isinstance(given.place, Partial)
        if part:
            given.array = given.array.copy()  # the hook may write to it, which makes it a sum over the ranks
        answer = hook(given)
        if answer is None:
            if not part:
                return None
            answer = given
        answer = part_of(answer, place, group)
        array = ndarray_of(answer)
        if array.shape != gradient.shape:
            raise ValueError(f"a hook must return a gradient of shape {gradient.shape}, got {array.shape}")
        return answer if isinstance(gradient, Tensor) else array.astype(gradient.dtype, copy=False)

    return on_gradient


def part_of(answer: Any, place: Any, group: Group | None) -> Any:
    """The array, without a placement, that an answer is as the gradient of a tensor of placement `place`."""
    if not isinstance(answer, Tensor):
        return answer
    theirs = placement_of(answer)
    if isinstance(place, Shard):
        if isinstance(theirs, Partial) or (isinstance(theirs, Shard) and not theirs.like(place)):
            answer = whole(answer)
        return bare(beside(answer, place, answer.array.ndim - place.axis))
    if isinstance(place, Partial) or group is None or group.parts == 1:
        return bare(whole(answer) if isinstance(place, Partial) else answer)
    if theirs is None and not group.isolated:
        return bare(collective().as_part(answer, group, answer.array.dtype)) if _alike(answer, group) else answer
    return bare(answer)


def assigned(value: Any, place: Any, group: Group | None) -> Any:
    """The array that a value is which a program assigns to the `grad` of a tensor of placement `place`."""
    value = part_of(value, place, group) if isinstance(place, Shard) or group is not None else whole(value)
    return array_of(value)


def _alike(answer: Tensor, group: Group) -> bool:
    """Whether every rank has the same array: otherwise each has computed a part, without placements."""
    mean = group.reduce(answer.array, "a gradient") / group.parts
    same = np.allclose(answer.array, mean, rtol=1e-6, atol=0, equal_nan=True)
    return bool(group.reduce(np.array([float(same)]), "a gradient")[0] == group.parts)


# -- gradients by request


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    only_inputs: bool = True,
    allow_unused: bool = False,
) -> tuple[Tensor | None, ...]:
    """The gradients of `outputs` to `inputs`, as a tuple; no `grad` is touched.

    If the outputs follow from rows of a batch that several ranks share, or from a wrapped model, every rank must call
    this: gradients to a Replicate are those of the global batch, gradients to rows those of this rank's rows.
    RuntimeError if an input does not require a gradient, was not used (unless `allow_unused`: then None), or is a
    parameter of a wrapped model in reproducible mode. only_inputs: PyTorch's, can only be True.
    """
    if only_inputs is not True:
        raise ValueError(f"grad: only_inputs must be True: call backward() to change `grad`, got {only_inputs!r}")
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
            if isinstance(tensor.place, Deferred):
                refuse_value(tensor.place, tensor.array, "autograd.grad")
    starts = []
    group = _group_of(outs)
    for tensor, g in zip(outs, grad_outputs, strict=True):
        seed = bare(g) if create_graph and isinstance(g, Tensor) else seed_of(tensor, g)
        if group is not None and not isinstance(tensor.place, Shard | Partial):
            seed = seed / group.parts  # every rank computes the same output, and gradients are summed over ranks
            if tensor.array.size == 1:
                group.expect(tensor.array.item())
        starts.append((tensor, seed if isinstance(seed, Tensor) or not create_graph else Tensor(seed)))
    keep = create_graph if retain_graph is None else retain_graph
    with enable_grad() if create_graph else no_grad(), restoring_shard():
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
        elif part is not None and group is not None and not group.isolated:
            part.place = REPLICATE
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

    replicates = [i for i, tensor in enumerate(ins) if not isinstance(tensor.place, Shard | Partial)]
    if group.ordered or group.isolated:
        if any((leaf := ins[i].leaf) is not None and leaf.sync is not None for i in replicates):
            raise RuntimeError(_OF_WEIGHTS)
        return parts
    if not replicates:
        return parts
    used = np.array([parts[i] is not None for i in replicates], np.float64)
    if create:
        used = group.reduce(used, "autograd.grad")
        for i, flag in zip(replicates, used.tolist(), strict=True):
            if flag:
                part = parts[i]
                if part is None:  # other ranks differentiate through theirs: this rank takes part with zeros
                    part = Tensor(np.zeros(ins[i].shape, ins[i].array.dtype), requires_grad=True)
                parts[i] = summed(part, group, "autograd.grad")
        return parts
    for kind in dict.fromkeys(ins[i].array.dtype for i in replicates):  # one message for each dtype
        same = [i for i in replicates if ins[i].array.dtype == kind]
        flags = np.array([parts[i] is not None for i in same], kind)
        flat = [np.zeros(ins[i].array.size, kind) if parts[i] is None else np.ravel(parts[i]) for i in same]
        total = group.reduce(np.concatenate([flags, *flat]), "autograd.grad")
        flags, *sums = np.split(total, np.cumsum([len(same), *(each.size for each in flat[:-1])]))
        for i, flag, total in zip(same, flags.tolist(), sums, strict=True):
            parts[i] = total.reshape(ins[i].array.shape) if flag else None
    return parts


# -- operations whose gradient the user writes


class Context:
    """Passes values from the forward of a `Function` to its backward, as attributes and by `save_for_backward`."""

    def __init__(self, needs: tuple[bool, ...]) -> None:
        self.needs_input_grad = needs
        self._saved: tuple[Any, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        """Keeps tensors for the backward."""
        self._saved = tensors

    @property
    def saved_tensors(self) -> tuple[Any, ...]:
        """The arguments of `save_for_backward`."""
        return self._saved

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        """Declares that these outputs have no gradient."""
        self._constant = {id(x) for x in tensors}

    _constant: set[int] = set()  # noqa: RUF012 (replaced, never changed)


class Function:
    """An operation whose gradient the user writes, as `torch.autograd.Function`. A subclass has the static methods

    forward(ctx, *inputs), which returns a tensor or a tuple of tensors and is not recorded, and
    backward(ctx, *gradients), which maps gradients of the outputs to those of the inputs (None for none).

    `apply(*inputs)` runs it. On several ranks both work on this rank's rows, with placements: the mean of a gradient
    over rows is that of the global batch. RuntimeError unless backward returns one gradient for each input.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        """The outputs."""
        raise NotImplementedError("a Function needs a static method forward(ctx, *inputs)")

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """The gradients of the inputs, a tensor or None each."""
        raise NotImplementedError("a Function needs a static method backward(ctx, *gradients)")

    @classmethod
    def apply(cls, *inputs: Any) -> Any:
        """Runs the forward, and records that its gradient is the backward's."""
        inputs = tuple(whole_sums(inputs, cls.__name__))
        edges = [x.origin if isinstance(x, Tensor) else None for x in inputs]
        ctx = Context(tuple(edge is not None for edge in edges))
        if any(ctx.needs_input_grad) and current_shard.get() is None and is_grad_enabled():
            cls._refuse_sums_in_order(inputs)
        with no_grad():
            value = cls.forward(ctx, *inputs)
            cls._tag(value if isinstance(value, tuple) else (value,), inputs)
        if not is_grad_enabled() or not any(ctx.needs_input_grad):
            return value
        outputs = value if isinstance(value, tuple) else (value,)
        found = tuple(cls._recorded(ctx, i, outputs, inputs, edges) for i in range(len(outputs)))
        return found if isinstance(value, tuple) else found[0]

    @classmethod
    def _refuse_sums_in_order(cls, inputs: tuple[Any, ...]) -> None:
        """RuntimeError where rows of all ranks meet weights whose gradient reproducible mode adds up in one order."""
        places = [shard_of(x) for x in inputs]
        ordered = any(place is not None and place.group.ordered for place in places)
        pairs = zip(inputs, places, strict=True)
        if ordered and any(isinstance(x, Tensor) and x.requires_grad and place is None for x, place in pairs):
            raise RuntimeError(
                f"reproducible mode: {cls.__name__} gets rows of the batch and a tensor that every rank holds alike "
                "and that requires a gradient: apply it inside of the model's forward"
            )

    @classmethod
    def _tag(cls, outputs: tuple[Any, ...], inputs: tuple[Any, ...]) -> None:
        """Tags outputs that came by NumPy as rows where they have as many as the inputs. A call of all ranks."""
        rows = next((place for x in inputs if (place := shard_of(x)) is not None), None)
        if rows is None or rows.group.has_all:
            return
        for output in outputs:
            if isinstance(output, Tensor) and output.place is None:
                own = output.array.ndim > rows.axis and output.array.shape[rows.axis] == rows.held
                output.place = rows if on_every_rank(rows, own) else None

    @classmethod
    def _recorded(
        cls,
        ctx: Context,
        index: int,
        outputs: tuple[Any, ...],
        inputs: tuple[Any, ...],
        edges: list[Node | Leaf | None],
    ) -> Any:
        """The output `index` with its node. A backward is linear, so the gradients of several outputs add up."""
        output = outputs[index]
        if not isinstance(output, Tensor) or output.array.dtype.kind != "f" or id(output) in ctx._constant:
            return output
        answers: list[Any] = []  # the last incoming gradient, and what the backward returned for it

        def of_input(i: int) -> Callable[[Any, Any], Any]:
            def rule(g: Any, out: Any) -> Any:
                if not answers or answers[0] is not g:
                    answers[:] = [g, cls._gradients(ctx, index, outputs, g, places, group)]
                part = answers[1][i]
                if part is None:
                    edge = edges[i]
                    assert edge is not None
                    part = Tensor(np.zeros(edge.shape, edge.dtype))
                return part if isinstance(g, Tensor) else as_array(part)

            return rule

        rules = [None if edge is None else of_input(i) for i, edge in enumerate(edges)]
        sync = None
        for edge in edges:
            if edge is not None and edge.sync is not None and edge.sync is not sync:
                sync = edge.sync if sync is None else joined(sync, edge.sync)
        places = [x.place if isinstance(x, Tensor) else None for x in inputs]
        found = [p.group for p in (output.place, *places) if isinstance(p, Shard | Partial)]
        group = found[0] if found else None if sync is None else sync.group
        operation = Op(cls.__name__, (), None, True, cls.forward, cls.apply)
        result = Tensor.of(output.array)
        result.place = output.place
        result.origin = recorded(operation, rules, edges, sync, output.array)
        return result

    @classmethod
    def _gradients(
        cls, ctx: Context, index: int, outputs: tuple[Any, ...], g: Any, places: list[Any], group: Group | None
    ) -> tuple[Any, ...]:
        gradient = g if isinstance(g, Tensor) else Tensor.of(g)
        given = [gradient if i == index else Tensor(np.zeros(x.shape, x.array.dtype)) for i, x in enumerate(outputs)]
        answer = cls.backward(ctx, *(placed(x, out.place, group) for x, out in zip(given, outputs, strict=True)))
        parts = answer if isinstance(answer, tuple) else (answer,)
        if len(parts) != len(places):
            raise RuntimeError(
                f"{cls.__name__}.backward must return {len(places)} gradients, one for each input, got {len(parts)}"
            )
        return tuple(part_of(part, place, group) for part, place in zip(parts, places, strict=True))
