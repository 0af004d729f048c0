"""Operations whose gradient the user writes, `autograd.Function`, and gradients as tensors, which hooks get too.

The cotangent of a Shard is a Shard, that of a Partial a Replicate, that of a Replicate a Partial. So the norm or the
mean that a hook takes of a gradient is that of the global batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sorix_dist.core.autograd import Edge, is_grad_enabled, no_grad
from sorix_dist.core.graph import joined
from sorix_dist.core.op import Op, current_shard, recorded
from sorix_dist.core.placement import Group, Partial, Shard, cotangent_of, shard_of
from sorix_dist.core.rules import bare, beside, collective, on_every_rank, placement_of, whole, whole_sums
from sorix_dist.core.tensor import Tensor, as_array


def placed(gradient: Tensor, place: Any, group: Group | None) -> Tensor:
    """The gradient of a tensor of placement `place`, tagged; group: the ranks whose sum a Replicate's gradient is."""
    tagged = Tensor.of(gradient.array, gradient.origin)
    tagged.place = cotangent_of(place, group)
    return tagged


def hook_on_arrays(hook: Callable[[Tensor], Any], place: Any, group: Group | None) -> Callable[[Any], Any]:
    """A user's hook as a function of the gradient that a walk has, an array, or a tensor for higher derivatives."""

    def on_gradient(gradient: Any) -> Any:
        answer = hook(placed(gradient if isinstance(gradient, Tensor) else Tensor.of(gradient), place, group))
        if answer is None:
            return None
        answer = part_of(answer, place, group)
        array = answer.array if isinstance(answer, Tensor) else np.asarray(answer)
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


def _alike(answer: Tensor, group: Group) -> bool:
    """Whether every rank has the same array: otherwise each has computed a part, without placements."""
    mean = group.reduce(answer.array, "a gradient") / group.parts
    same = np.allclose(answer.array, mean, rtol=1e-6, atol=0, equal_nan=True)
    return bool(group.reduce(np.array([float(same)]), "a gradient")[0] == group.parts)


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
        if rows is None or (rows.group.single and not rows.group.ordered):
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
        edges: list[Edge | None],
    ) -> Any:
        """The output `index` with its node. A backward is linear, so the gradients of several outputs add up."""
        output = outputs[index]
        if not isinstance(output, Tensor) or output.array.dtype.kind != "f" or id(output) in ctx._constant:
            return output
        answers: list[Any] = []  # the last incoming gradient, and what the backward returned for it

        def of_input(place: int) -> Callable[[Any, Any], Any]:
            def rule(g: Any, out: Any) -> Any:
                if not answers or answers[0] is not g:
                    answers[:] = [g, cls._gradients(ctx, index, outputs, g, places, group)]
                part = answers[1][place]
                if part is None:
                    edge = edges[place]
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
        about = Op(cls.__name__, (), None, True, cls.forward, cls.apply)
        result = Tensor.of(output.array)
        result.place = output.place
        result.origin = recorded(about, rules, edges, sync, output.array)
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
