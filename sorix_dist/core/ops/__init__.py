"""The operations, by kind; importing them registers them."""

from sorix_dist.core.ops import (
    activation,
    choose,
    compare,
    einsum,
    elementwise,
    indexing,
    join,
    loss,
    matrix,
    order,
    reduce,
    shape,
)

__all__ = [
    "activation",
    "choose",
    "compare",
    "einsum",
    "elementwise",
    "indexing",
    "join",
    "loss",
    "matrix",
    "order",
    "reduce",
    "shape",
]
