"""Linear algebra: norms, systems of equations, inverses."""

from sorix_dist.core.algebra import det, inv, matrix_norm, solve, vector_norm
from sorix_dist.core.algebra import linalg_norm as norm
from sorix_dist.core.arrange import diagonal
from sorix_dist.core.functions import matmul

__all__ = ["det", "diagonal", "inv", "matmul", "matrix_norm", "norm", "solve", "vector_norm"]
