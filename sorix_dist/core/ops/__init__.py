"""The operations, by kind; importing them registers them."""

from sorix_dist.core.ops import activation, elementwise, loss, matrix, reduce, shape

__all__ = ["activation", "elementwise", "loss", "matrix", "reduce", "shape"]
