"""PyTorch's functions of linear algebra: products of checked shapes, systems of equations, norms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sorix_dist.core import functions as f
from sorix_dist.core import rules
from sorix_dist.core.arguments import named
from sorix_dist.core.arrange import diagonal
from sorix_dist.core.batch_numbers import is_just
from sorix_dist.core.capture import of_shapes
from sorix_dist.core.dtype import DType, common_dtype, name_of
from sorix_dist.core.op import like_input, op
from sorix_dist.core.ops.elementwise import half_in_float32
from sorix_dist.core.ops.shape import extents
from sorix_dist.core.tensor import Tensor, array_of, shape_of

# -- products


def _product(name: str, dims: tuple[int, int], meaning: str) -> Callable[[Any, Any], Any]:
    """The matrix product of operands with these numbers of dimensions, and no other."""

    def product(input: Any, other: Any) -> Any:
        shapes = shape_of(input), shape_of(other)
        if tuple(map(len, shapes)) != dims:
            raise ValueError(
                f"{name}: operands must have {dims[0]} and {dims[1]} dimensions, got shapes {shapes[0]} and "
                f"{shapes[1]}; matmul takes any"
            )
        if dims == (3, 3) and shapes[0][0] != shapes[1][0]:
            raise ValueError(f"{name}: both must have the same length, got shapes {shapes[0]} and {shapes[1]}")
        return f.matmul(input, other)

    return named(product, name, meaning)


mm = _product("mm", (2, 2), "The product of two matrices.")
bmm = _product("bmm", (3, 3), "The products of two batches of matrices, (B, n, k) and (B, k, m).")
mv = _product("mv", (2, 1), "The product of a matrix and a vector.")
dot = _product("dot", (1, 1), "The sum of the products of two vectors.")
vdot = dot


def inner(input: Any, other: Any) -> Any:
    """The sums of products along the last dimension of both."""
    if not shape_of(input) or not shape_of(other):
        return f.mul(input, other)
    return tensordot(input, other, ([-1], [-1]))


def tensordot(a: Any, b: Any, dims: Any = 2) -> Any:
    """The sums of products over dimensions of both: the last `dims` of a and the first of b, or two lists of them."""
    first, second = shape_of(a), shape_of(b)
    if isinstance(dims, int):
        over_a, over_b = list(range(len(first) - dims, len(first))), list(range(dims))
    else:
        over_a, over_b = (
            [int(d) % max(1, len(s)) for d in np.atleast_1d(of)] for of, s in zip(dims, (first, second), strict=True)
        )
    if len(over_a) != len(over_b) or any(first[i] != second[j] for i, j in zip(over_a, over_b, strict=True)):
        raise ValueError(f"tensordot: dims must pair dimensions of equal size, got {dims} for {first} and {second}")
    letters = iter("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    of_a = [next(letters) for _ in first]
    of_b = [of_a[over_a[over_b.index(j)]] if j in over_b else next(letters) for j in range(len(second))]
    kept = [c for i, c in enumerate(of_a) if i not in over_a] + [c for j, c in enumerate(of_b) if j not in over_b]
    return f.einsum(f"{''.join(of_a)},{''.join(of_b)}->{''.join(kept)}", a, b)


def _added(name: str, product: Callable[[Any, Any], Any], meaning: str) -> Callable[..., Any]:
    """beta * input + alpha * product. Integers stay integers, and the factors are cut to integers for them."""

    def added(input: Any, first: Any, second: Any, *, beta: float = 1, alpha: float = 1) -> Any:
        kind = array_of(input).dtype
        beta, alpha = (beta, alpha) if kind.kind == "f" else (int(beta), int(alpha))
        value = product(first, second)
        value = value if is_just(alpha, 1) else f.mul(value, alpha)
        if is_just(beta, 0):  # what is not finite in `input` does not count then
            input, beta = Tensor(np.zeros(shape_of(input), kind)), 1
        value = f.add(input if is_just(beta, 1) else f.mul(input, beta), value)
        return value if kind.kind == "f" else value.astype(kind)

    return half_in_float32(named(added, name, meaning))


addmm = _added("addmm", mm, "beta * input + alpha * mat1 @ mat2.")
addmv = _added("addmv", mv, "beta * input + alpha * mat @ vec.")
baddbmm = _added("baddbmm", bmm, "beta * input + alpha * batch1 @ batch2.")
addbmm = _added("addbmm", lambda x, y: f.sum(bmm(x, y), 0), "beta * input + alpha * the sum of batch1 @ batch2.")
addr = _added(
    "addr", lambda x, y: f.mul(f.unsqueeze(x, 1), y), "beta * input + alpha * the outer product of two vectors."
)


def in_one_dtype(*operands: Any, to_float: bool = False) -> list[Any]:
    """The tensors and arrays in the dtype of all together, so that no part of a composition is computed in another."""
    kind = common_dtype([*map(array_of, operands)])
    kind = np.dtype(np.float32) if kind is None or (to_float and kind.kind != "f") else kind
    numbers = [x if isinstance(x, Tensor) else Tensor(np.asarray(x, kind)) for x in operands]
    return [x if x.array.dtype == kind else x.astype(kind) for x in numbers]


def result_type(tensor1: Any, tensor2: Any) -> DType:
    """The dtype of what is computed of two tensors or numbers."""
    found = common_dtype([array_of(tensor1), array_of(tensor2)])
    return name_of(np.dtype(np.float32) if found is None else found)


def addcmul(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Any:
    """input + value * tensor1 * tensor2."""
    input, tensor1, tensor2 = in_one_dtype(input, tensor1, tensor2)
    return f.add(input, f.mul(f.mul(tensor1, tensor2), value))


def addcdiv(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Any:
    """input + value * tensor1 / tensor2."""
    input, tensor1, tensor2 = in_one_dtype(input, tensor1, tensor2)
    return f.add(input, f.mul(f.div(tensor1, tensor2), value))


def cross(input: Any, other: Any, dim: int = -1) -> Any:
    """The vector products along a dimension of size 3; both broadcast."""
    if {shape_of(x)[dim : dim + 1 or None] for x in (input, other)} != {(3,)}:
        raise ValueError(f"cross: both must have 3 elements along dim {dim}, got {shape_of(input)}, {shape_of(other)}")
    after, before = ([f.roll(x, by, dim) for x in (input, other)] for by in (-1, 1))
    return f.sub(f.mul(after[0], before[1]), f.mul(before[0], after[1]))


def trace(input: Any) -> Any:
    """The sum of the diagonal of a matrix."""
    if len(shape_of(input)) != 2:
        raise ValueError(f"trace: input must be a matrix, got shape {shape_of(input)}")
    return f.sum(diagonal(input))


def kron(input: Any, other: Any) -> Any:
    """The Kronecker product: each element of `input` times all of `other`."""
    dims = max(len(shape_of(input)), len(shape_of(other)))
    a, b = ((1,) * (dims - len(shape_of(x))) + tuple(shape_of(x)) for x in (input, other))
    x = f.reshape(input, *(n for size in a for n in (size, 1)))
    y = f.reshape(other, *(n for size in b for n in (1, size)))
    return f.reshape(f.mul(x, y), *(n * m for n, m in zip(a, b, strict=True)))


def matrix_power(input: Any, n: int) -> Any:
    """The products of `n` of the same square matrices (..., k, k), of their inverses for a negative n."""
    shape = _square("matrix_power", input)
    if n < 0:
        return matrix_power(inv(input), -n)
    if n == 0:
        return f.where(False, input, f.eye(shape[-1], dtype=input.dtype))
    if n == 1:
        return f.clone(input)
    half = matrix_power(input, n // 2)
    squared = f.matmul(half, half)
    return f.matmul(squared, input) if n % 2 else squared


# -- systems of equations


@op(promote="float", rule=rules.gathers)
def solve_systems(a: Any, b: Any) -> Any:
    """x with a @ x = b, for stacks of matrices (..., n, n) and (..., n, m) that broadcast."""
    x = np.linalg.solve(a, b)

    def to_a(g: Any, out: Any) -> Any:
        return -np.matmul(like_input(solve_systems, np.swapaxes(a, -1, -2), g), np.swapaxes(x, -1, -2))

    return x, (to_a, lambda g, out: like_input(solve_systems, np.swapaxes(a, -1, -2), g))


def _square(name: str, a: Any) -> tuple[int, ...]:
    shape = extents(a)
    if len(shape) < 2 or shape[-1] != shape[-2]:
        raise ValueError(f"linalg.{name}: A must be square matrices (..., n, n), got shape {shape}")
    return shape


def solve(A: Any, B: Any, *, left: bool = True) -> Any:
    """X with A @ X = B (X @ A = B if not `left`); A (..., n, n), B (..., n, m), or vectors (..., n).

    numpy.linalg.LinAlgError for a singular matrix. Gradients: Giles, "Collected matrix derivative results" (2008).
    """
    shape, of_b = _square("solve", A), shape_of(B)
    vectors = len(of_b) == 1 or (len(of_b) == len(shape) - 1 and of_b == shape[:-1])
    if not left:
        if vectors:
            return solve(f.transpose(A, -1, -2), B)
        return f.transpose(solve(f.transpose(A, -1, -2), f.transpose(B, -1, -2)), -1, -2)
    x = solve_systems(A, f.unsqueeze(B, -1) if vectors else B)
    return x[..., 0] if vectors else x


def inv(A: Any) -> Any:
    """The inverses of square matrices (..., n, n); numpy.linalg.LinAlgError for a singular one."""
    return solve_systems(A, of_shapes(np.eye(_square("inv", A)[-1], dtype=array_of(A).dtype)))


def _times_inverse(g: Any, a: Any) -> Any:
    """Numbers, one for each matrix of a stack, times the transposed inverses of the matrices."""
    identity = np.broadcast_to(np.eye(a.shape[-1], dtype=a.dtype), a.shape)
    return np.expand_dims(np.expand_dims(g, -1), -1) * like_input(solve_systems, np.swapaxes(a, -1, -2), identity)


@op(promote="float", rule=rules.gathers)
def determinant(a: Any) -> Any:
    """The determinants of square matrices."""
    value = np.asarray(np.linalg.det(a), a.dtype)
    return value, (lambda g, out: _times_inverse(g * value, a),)


def det(A: Any) -> Any:
    """The determinants of square matrices (..., n, n); the gradient needs an inverse."""
    _square("det", A)
    return determinant(A)


@op(promote="float", rule=rules.gathers)
def sign_and_logarithm(a: Any) -> Any:
    """The signs of the determinants of square matrices, and the logarithms of their absolute values, (..., 2)."""
    return np.stack(np.linalg.slogdet(a), -1), (lambda g, out: _times_inverse(g[..., 1], a),)


class SignAndLogarithm(NamedTuple):
    """What slogdet returns."""

    sign: Any
    logabsdet: Any


def slogdet(A: Any) -> SignAndLogarithm:
    """(sign, logabsdet): the signs of the determinants of square matrices (..., n, n), and the logarithms of their
    absolute values, which neither overflow nor underflow."""
    _square("slogdet", A)
    both = sign_and_logarithm(rules.whole(A, "slogdet"))
    return SignAndLogarithm(both[..., 0], both[..., 1])


def logdet(A: Any) -> Any:
    """The logarithms of the determinants of square matrices (..., n, n); NaN for negative ones."""
    sign, logarithm = slogdet(A)
    return f.where(sign < 0, math.nan, logarithm)


@op(promote="float", rule=rules.gathers)
def cholesky_factor(a: Any) -> Any:
    """The lower triangular matrices x with x @ x.T = a, for symmetric positive definite ones."""
    x = np.linalg.cholesky(a)

    def to_a(g: Any, out: Any) -> Any:
        turned, count = np.swapaxes(x, -1, -2), x.shape[-1]
        half = np.matmul(turned, g) * (np.tri(count, dtype=x.dtype) - np.eye(count, dtype=x.dtype) / 2)
        once = like_input(solve_systems, turned, half)
        both = like_input(solve_systems, turned, np.swapaxes(once, -1, -2))
        return (both + np.swapaxes(both, -1, -2)) / 2

    return x, (to_a,)


def cholesky(A: Any) -> Any:
    """The lower triangular L with L @ L.T = A, for symmetric positive definite matrices (..., n, n).

    numpy.linalg.LinAlgError for others. Gradients: Murray, "Differentiation of the Cholesky decomposition" (2016).
    """
    _square("cholesky", A)
    return cholesky_factor(A)


inverse = inv


def vector_norm(x: Any, ord: float = 2, dim: Any = None, keepdim: bool = False) -> Any:
    """The norm (sum |x|^ord)^(1/ord) of all elements, or along `dim`."""
    return f.norm(x, ord, dim, keepdim)


def cdist(x1: Any, x2: Any, p: float = 2.0, compute_mode: Any = None) -> Any:
    """The p-norms of the differences of all pairs of rows: (..., n, d) and (..., m, d) give (..., n, m); compute_mode
    has no meaning here."""
    return f.norm(f.sub(f.unsqueeze(x1, -2), f.unsqueeze(x2, -3)), p, -1)


def matrix_norm(A: Any, ord: Any = "fro", dim: tuple[int, int] = (-2, -1), keepdim: bool = False) -> Any:
    """The norm of matrices in two dimensions: "fro", 1, -1 (of columns' sums), inf or -inf (of rows' sums)."""
    if ord == "fro":
        return f.norm(A, 2, tuple(dim), keepdim)
    if not (isinstance(ord, int | float) and (abs(ord) == 1 or math.isinf(ord))):
        raise ValueError(
            f"linalg.norm: ord must be 'fro', 1, -1, inf or -inf for matrices, got {ord!r}; for others "
            "see numpy.linalg.norm(A.numpy(), ord)"
        )
    count = len(shape_of(A))
    rows, columns = (int(d) % count for d in dim)
    over, then = (rows, columns) if abs(ord) == 1 else (columns, rows)
    sums = f.norm(A, 1, over, True)
    largest = (f.amax if ord > 0 else f.amin)(sums, then, True)
    return largest if keepdim else largest.squeeze((rows, columns))


def linalg_norm(A: Any, ord: Any = None, dim: Any = None, keepdim: bool = False) -> Any:
    """The norm of all elements, of vectors along one dimension, or of matrices in two; ord: 2 or "fro" by default."""
    dims = len(dim) if isinstance(dim, tuple | list) else None if dim is None else 1
    if ord is None:
        return f.norm(A, 2, dim, keepdim)
    if dims == 2 or (dims is None and (len(shape_of(A)) == 2 or ord == "fro")):
        return matrix_norm(A, ord, (0, 1) if dim is None else tuple(dim), keepdim)
    return f.norm(A, ord, dim, keepdim)


__all__ = [
    "addbmm", "addcdiv", "addcmul", "addmm", "addmv", "addr", "baddbmm", "bmm", "cdist", "cross", "det", "dot",
    "inner", "inverse", "kron", "logdet", "matrix_power", "mm", "mv", "result_type", "tensordot", "trace", "vdot",
]  # fmt: skip
_FUNCTIONS = "cdist", "result_type", "tensordot"  # and no methods
METHODS: dict[str, Callable[..., Any]] = {name: globals()[name] for name in __all__ if name not in _FUNCTIONS}
