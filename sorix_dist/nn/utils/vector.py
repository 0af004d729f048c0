"""All parameters as one vector."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.memory import refuse_frozen
from sorix_dist.core.ops.join import cat
from sorix_dist.core.ops.shape import reshape


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """All elements of the parameters, in order, as one vector, which a backward can go through."""
    vectors = [reshape(parameter, -1) for parameter in parameters]
    if not vectors:
        raise ValueError("parameters must hold at least one tensor, got none")
    return cat(vectors)


def vector_to_parameters(vec: Any, parameters: Iterable[Tensor]) -> None:
    """Copies the elements of a vector into the parameters, in order; ValueError unless there are as many."""
    given = list(parameters)
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
