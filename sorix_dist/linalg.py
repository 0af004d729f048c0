"""Linear algebra: norms, systems of equations, inverses, determinants."""

from sorix_dist.core.algebra import cholesky, cross, det, inv, matrix_norm, matrix_power, slogdet, solve, vector_norm
from sorix_dist.core.algebra import linalg_norm as norm
from sorix_dist.core.arrange import diagonal
from sorix_dist.core.functions import matmul
from sorix_dist.core.keywords import missing_from, publish

__all__ = [
    "cholesky", "cross", "det", "diagonal", "inv", "matmul", "matrix_norm", "matrix_power", "norm", "slogdet", "solve",
    "vector_norm",
]  # fmt: skip
publish(globals(), __all__)

__getattr__ = missing_from(__name__, globals())
