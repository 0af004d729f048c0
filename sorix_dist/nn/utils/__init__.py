"""Operations on the gradients and values of many parameters: clipping, and conversion to a vector."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf, isfinite
from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.arguments import as_bool, as_list, as_number, in_range
from sorix_dist.core.capture import host
from sorix_dist.core.flat import BLOCK, changing_gradients, gradients
from sorix_dist.core.keywords import missing_from
from sorix_dist.core.memory import refuse_frozen
from sorix_dist.core.ops.join import cat
from sorix_dist.core.ops.shape import reshape
from sorix_dist.core.tensor import Array
from sorix_dist.nn.utils import rnn

__all__ = ["clip_grad_norm_", "clip_grad_value_", "parameters_to_vector", "rnn", "vector_to_parameters"]


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Scales all gradients together, in place, so that their norm is at most `max_norm`; returns their norm
    before, a 0-d tensor.

    The norm is (Σ |g|^norm_type)^(1 / norm_type) over the elements of all gradients, or the largest |g| for
    infinity; the factor is max_norm / (norm + 1e-6), as in PyTorch. Parameters without a gradient do not count.
    RuntimeError, with all gradients as they were, if `error_if_nonfinite` and the norm is NaN or infinite.
    """
    max_norm, norm_type = as_number("max_norm", max_norm), as_number("norm_type", norm_type)
    return _clip_norm(_tensors(parameters), max_norm, norm_type, as_bool("error_if_nonfinite", error_if_nonfinite))


@host
def _clip_norm(given: list[Tensor], max_norm: float, norm_type: float, error_if_nonfinite: bool) -> Tensor:
    in_range("max_norm", max_norm, 0, closed=True)
    in_range("norm_type", norm_type, 0, closed=True, above=True)
    _refuse_pending("clip_grad_norm_", given)
    found = gradients(given)
    total = _norm(found, norm_type)
    if error_if_nonfinite and not isfinite(total):
        raise RuntimeError(f"the norm of the gradients is {total}, so they can't be clipped to {max_norm}")
    factor = max_norm / (total + 1e-6)
    if not factor >= 1:
        # 0 times infinity is invalid.
        with changing_gradients(given, "clip_grad_norm_", max_norm) as own, np.errstate(invalid="ignore"):
            for array in own:
                array *= factor
    return Tensor(np.asarray(total, np.result_type(np.float32, *found)))


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Limits every element of the gradients, in place, to [-clip_value, clip_value]."""
    _clip_value(_tensors(parameters), as_number("clip_value", clip_value))


@host
def _clip_value(given: list[Tensor], limit: float) -> None:
    in_range("clip_value", limit, 0, closed=True)
    _refuse_pending("clip_grad_value_", given)
    with changing_gradients(given, "clip_grad_value_", limit) as own:
        for array in own:
            np.clip(array, -limit, limit, out=array)


def _refuse_pending(name: str, parameters: list[Tensor]) -> None:
    for parameter in parameters:
        if parameter.leaf is not None and parameter.leaf.sync is not None and parameter.leaf.sync.pending:
            raise RuntimeError(
                f"{name}: the gradients are not synchronised between the ranks yet: clip after the loop over "
                "model.accumulate(...), or after a backward outside of model.no_sync()"
            )


def _norm(arrays: list[Array], p: float) -> float:
    blocks = (array[i : i + BLOCK] for array in arrays for i in range(0, array.size, BLOCK))
    if p == inf:
        return float(np.max([0.0, *(float(max(np.max(b), -np.min(b))) for b in blocks)]))
    return sum(_power_sum(block, p) for block in blocks) ** (1 / p)


def _power_sum(block: Array, p: float) -> float:
    """Σ |x|^p over a block: in its own precision if that is enough, which is fast, else in float64."""
    if p == 2 and block.dtype != np.float16:
        with np.errstate(over="ignore"):
            fast = float(np.dot(block, block))
        if isfinite(fast):
            return fast
    return float((np.abs(block.astype(np.float64)) ** p).sum())


def _tensors(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    given = [parameters] if isinstance(parameters, Tensor) else as_list("parameters", parameters, "tensors")
    for i, parameter in enumerate(given):
        if not isinstance(parameter, Tensor):
            raise TypeError(f"parameters must hold tensors, got {type(parameter).__name__} at {i}")
    return given


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """All elements of the parameters, in order, as one vector, which a backward can go through."""
    vectors = [reshape(parameter, -1) for parameter in _tensors(parameters)]
    if not vectors:
        raise ValueError("parameters must hold at least one tensor, got none")
    return cat(vectors)


def vector_to_parameters(vec: Any, parameters: Iterable[Tensor]) -> None:
    """Copies the elements of a vector into the parameters, in order; ValueError unless there are as many."""
    given = _tensors(parameters)
    values = np.asarray(vec)
    count = sum(parameter.array.size for parameter in given)
    if values.shape != (count,):
        raise ValueError(f"vec must have shape ({count},) for these parameters, got {values.shape}")
    for parameter in given:
        refuse_frozen(parameter.array)
    start = 0
    for parameter in given:
        stop = start + parameter.array.size
        np.copyto(parameter.array, values[start:stop].reshape(parameter.array.shape), casting="same_kind")
        start = stop


__getattr__ = missing_from(__name__, globals())
