"""Mathematical functions, under the path that sorix has for them."""

from sorix_dist.core.functions import *  # noqa: F403

__all__ = [  # noqa: F405
    "abs", "add", "ceil", "cos", "div", "exp", "floor", "log", "matmul", "mean", "mul", "pow", "round", "sign", "sin",
    "sqrt", "sub", "sum", "tanh",
]  # fmt: skip
