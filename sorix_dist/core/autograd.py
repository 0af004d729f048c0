"""Backward: the walk from a result back to the leaves, newest operation first."""

from __future__ import annotations

from typing import Any

import numpy as np

from sorix_dist.core.capture import listening, outside, recorders
from sorix_dist.core.graph import Leaf, Rule, Sync, Visitor, editing, fit, recording, through
from sorix_dist.core.higher_derivatives import backward_on_tensors
from sorix_dist.core.op import marker, terms_of
from sorix_dist.core.placement import Partial, Shard
from sorix_dist.core.tensor import Array, Tensor, ndarray_of
from sorix_dist.core.walk import gradient_of, walk


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
    if (edit := editing.get()) is not None:
        with edit.settled():
            return backward(tensor, gradient, retain_graph, create_graph)
    sync = origin.sync
    recorder = listening() if recorders else None
    if recorder is None:
        seed, visitor = _before_backward(sync, tensor, gradient)
    else:
        if create_graph or retain_graph:
            recorder.refuse("backward with create_graph or retain_graph")
        seed, visitor = recorder.host(_before_backward, (sync, tensor, gradient), {})
    if sync is None:
        place = tensor.place
        # On several ranks this loss is Partial: a leaf whose gradient would not be summed over the ranks is an error.
        strict = isinstance(place, Shard | Partial) and not place.group.single
        keep = bool(create_graph if retain_graph is None else retain_graph)
        if create_graph:
            backward_on_tensors(tensor, seed, keep, strict)
        else:
            _backward(tensor, seed, keep, None, strict)
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
    terms = terms_of(tensor) if origin.terms else []
    if recorder is None:
        sync.after_backward(tensor, terms)
    else:
        recorder.bare(f"except BaseException: {recorder.constant(sync, 'coordinator')}.backward_failed(); raise")
        recorder.host(type(sync).after_backward, (sync, tensor, terms), {})


def _before_backward(sync: Sync | None, tensor: Tensor, gradient: Any) -> tuple[Array, Visitor | None]:
    """The seed of the walk, and the function to call at each node."""
    seed = seed_of(tensor, gradient)
    if sync is None:
        return seed, None
    scale, visitor = sync.before_backward(tensor.place)
    return seed if scale == 1 else seed * seed.dtype.type(scale), visitor


def _backward(tensor: Tensor, seed: Any, keep: bool, at_node: Visitor | None, strict: bool) -> None:
    """Adds gradients to the leaves; strict: every leaf must be synchronised, or belong to this rank's rows."""
    hooked: dict[Leaf, Any] = {}  # sums for the hooks of leaves

    def add(leaf: Leaf, rule: Rule | None, gradient: Any) -> None:
        if leaf.hooks and not leaf.local.written:
            leaf.turn = marker()
        # If other ranks add to the gradient, the reducer calls the hooks with the total, in the same order.
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
    array = local.array if local.array is not None else local.allocated(leaf)
    part = rule(gradient, array)
    if part is not array:
        np.copyto(array, fit(part, leaf))
    local.written = True


def seed_of(tensor: Tensor, gradient: Any) -> Any:
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
    given = ndarray_of(gradient)
    if given.shape != array.shape:
        raise ValueError(f"gradient must have the shape {array.shape} of its tensor, got shape {given.shape}")
    return given.astype(array.dtype, copy=False)
