"""Gradients as tensors with placements, for functions of users: hooks, `grad`, and the backward of a `Function`.

The cotangent of a Shard is a Shard, that of a Partial a Replicate, that of a Replicate a Partial. So the norm or the
mean that a hook takes of a gradient is that of the global batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sorix_dist.core.placement import Group, Partial, Shard, cotangent_of
from sorix_dist.core.rules import bare, beside, collective, placement_of, whole
from sorix_dist.core.tensor import Tensor


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
