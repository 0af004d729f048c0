"""Mathematical functions, under the path that sorix has for them."""

from sorix_dist.core.functions import (
    abs,
    add,
    ceil,
    cos,
    div,
    exp,
    floor,
    log,
    matmul,
    mean,
    mul,
    pow,
    round,
    sign,
    sin,
    sqrt,
    sub,
    sum,
    tanh,
)

__all__ = [
    "abs", "add", "ceil", "cos", "div", "exp", "floor", "log", "matmul", "mean", "mul", "pow", "round", "sign", "sin",
    "sqrt", "sub", "sum", "tanh",
]  # fmt: skip
