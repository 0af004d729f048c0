"""Matrix products, and sums of products by subscripts."""

from __future__ import annotations

from functools import lru_cache
from string import ascii_letters
from typing import Any

import numpy as np

from sorix_dist.core import rules
from sorix_dist.core.capture import of_shapes
from sorix_dist.core.expected import beside_rows
from sorix_dist.core.memory import read_only
from sorix_dist.core.op import as_operand, op
from sorix_dist.core.ops.blocks import CACHED, FLAT, SMALL, TURNED, multiply_transposed, one_thread, without_copies
from sorix_dist.core.ops.elementwise import add, mul
from sorix_dist.core.ops.indexing import take
from sorix_dist.core.ops.reduce import sum_over
from sorix_dist.core.ops.shape import (
    clone,
    expand_to,
    extents,
    flatten,
    permute_to,
    reshape,
    squeeze,
    unsqueeze,
    with_rows,
)
from sorix_dist.core.placement import SUM, Shard, shard_of
from sorix_dist.core.rules import Answer, Apply, Inputs, Options, gathers_and_cuts, in_order, whole
from sorix_dist.core.tensor import Array, Tensor, shape_of


def matmul_rule(apply: Apply, inputs: Inputs, options: Options) -> Answer:
    """The product of stacks of matrices: contracted over rows it is a Partial."""
    if rules.has_partial(inputs):
        return rules.partial_product(apply, inputs, options)
    (x, y), (a, b) = inputs, map(rules.placement_of, inputs)
    lead = a or b
    dims_x, dims_y = len(shape_of(x)), len(shape_of(y))
    x_contracted, y_contracted = a and a.axis == dims_x - 1, b and b.axis == dims_y - 2
    at = (dims_x if lead is a else dims_y) - lead.axis  # from the right; a leading dimension, if more than 2
    if at <= 2 and not (x_contracted or y_contracted):
        beside_rows(lead, y if lead is a else x)
    if in_order(lead):
        each_row = not ((a and b) or x_contracted or y_contracted)
        return gathers_and_cuts(apply, inputs, options, lead.moved(max(dims_x, dims_y) - at) if each_row else None)
    if x_contracted and not b:
        return rules.applied(apply, (x, rules.rows_beside(y, a, 2)), inputs, options, a.batch.partial(SUM))
    if y_contracted and not a:
        return rules.applied(apply, (rules.rows_beside(x, b, 1), y), inputs, options, b.batch.partial(SUM))
    if x_contracted and y_contracted and a.like(b):
        return a.batch.partial(SUM)  # type: ignore[no-any-return]
    if x_contracted and not y_contracted:
        return apply(whole(x, apply.__name__), y, **options)
    if a and b and not (a.axis - dims_x == b.axis - dims_y < -2 and a.like(b)):
        return _paired(apply(x, whole(y, apply.__name__), **options), a, b)
    if (
        at > 2
        and rules.one_row(lead)
        and not {shape[-at] for x in inputs if len(shape := shape_of(x)) >= at} <= {1, lead.held}
    ):
        return rules.gathers(apply, inputs, options)
    operands = [rules.beside(each, lead, at) if at > 2 else each for each in inputs]
    return rules.applied(apply, operands, inputs, options, lead.moved(max(dims_x, dims_y) - at))


def _paired(product: Tensor, a: Shard, b: Shard) -> Tensor:
    """Marks the product of each row with the rows of all ranks as pairs."""
    place = shard_of(product)
    if place is not None and place.outer == place.inner == 1 and a.batch.like(b.batch):
        product.place = place.batch.at(place.axis, pairs=True)
    return product


_of_features = rules.rows_at()


def linear_rule(apply: Apply, inputs: Inputs, options: Options) -> Answer:
    """x @ w + b: rows of x stay rows, soon known where w and b have no placements."""
    x, w, b = inputs
    place: Any = getattr(x, "place", None)
    kept = place.__class__ is Shard and place.axis < x.array.ndim - 1 and not in_order(place)
    if not (kept and getattr(w, "place", None) is getattr(b, "place", None) is None):
        return _of_features(apply, inputs, options)
    for other in () if place.group.single else (w, b):
        if getattr(other, "leaf", None) is None or other.origin is not other.leaf:  # no parameter, or a frozen one
            beside_rows(place, other)
    return place  # type: ignore[no-any-return]


dot = np.ndarray.dot
"""The product of two matrices: for small ones faster than np.matmul, and than np.dot, which dispatches to other types.
It has a name here so that profilers can time products."""


@op(promote="common", rule=matmul_rule, called="@")
def matrix_product(x: Any, y: Any) -> Any:
    """The product of two stacks of matrices, whose leading dimensions broadcast."""
    plain = x.ndim == y.ndim == 2

    def to_x(g: Any, out: Any) -> Any:
        return np.matmul(g, np.swapaxes(y, -1, -2), out=out if plain else None)

    def to_y(g: Any, out: Any) -> Any:
        return np.matmul(np.swapaxes(x, -1, -2), g, out=out if plain else None)

    return np.matmul(x, y), (to_x, to_y)


def matmul(x: Any, y: Any) -> Any:
    """The matrix product x @ y as NumPy defines it: vectors, matrices, and stacks of matrices that broadcast."""
    x, y = (a if isinstance(a, Tensor | np.ndarray) else Tensor(as_operand(a)) for a in (x, y))
    for name, operand in (("x", x), ("y", y)):
        if not operand.ndim:
            raise ValueError(f"matmul: {name} must have at least one dimension, got a 0-d operand")
    inner = -2 if y.ndim > 1 else 0
    if x.shape[-1] != y.shape[inner] and extents(x)[-1] != extents(y)[inner]:
        raise ValueError(
            f"matmul: the last dimension of x must be as long as the {'second last' if y.ndim > 1 else 'only'} "
            f"dimension of y, got shapes {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if x.ndim == 1:
        rows = matmul(unsqueeze(x, 0), y)
        return squeeze(rows, -2) if y.ndim > 1 else reshape(rows, ())
    if y.ndim == 1:
        return squeeze(matmul(x, unsqueeze(y, 1)), -1)
    if y.ndim == 2 and x.ndim > 2:
        # One large product is faster than many small ones, and the gradient to y is one product too.
        product = matrix_product(flatten(x, 0, -2), y)
        rows = shard_of(product)
        if rows is None:
            return reshape(product, (*extents(x)[:-1], product.shape[-1]))
        rows = shard_of(x) if rows.axis == 0 else rows.moved(x.ndim - 1)
        return with_rows(product, (*x.shape[:-1], product.shape[-1]), rows)
    return matrix_product(x, y)


def outer(input: Any, vec2: Any) -> Any:
    """The products of each element of one vector with each of another: (n,), (m,) -> (n, m)."""
    for name, vector in (("input", input), ("vec2", vec2)):
        if np.ndim(vector) != 1:
            raise ValueError(f"outer: {name} must be a vector, got shape {tuple(shape_of(vector))}")
    return mul(unsqueeze(input, 1), vec2)


def _linear(x: Any, w: Any, b: Any) -> Any:
    return matmul(x, w) if b is None else add(matmul(x, w), b)


@op(composite=_linear, promote="common", rule=linear_rule)
def linear(x: Any, w: Any, b: Any) -> Any:
    """x @ w + b for x of shape (..., in), w of shape (in, out), and b of shape (1, out), (out,) or None."""
    inputs, outputs = w.shape
    if x.ndim == 0 or x.shape[-1] != inputs:
        raise ValueError(f"linear: x must have {inputs} features in its last dimension, got shape {x.shape}")
    shape_x, shape_b = x.shape, None if b is None else b.shape
    flat = x.ndim == 2
    rows = x if flat else x.reshape(-1, inputs)
    y = dot(rows, w)
    if b is not None:
        y += b

    def to_x(g: Any, out: Any) -> Any:
        return times_transposed(g, w) if flat else times_transposed(g.reshape(-1, outputs), w).reshape(shape_x)

    def to_w(g: Any, out: Any) -> Any:
        g = g if flat else g.reshape(-1, outputs)
        if out is not None and out.dtype == g.dtype:
            return dot(rows.T, g, out)
        return np.matmul(rows.T, g, out=out)

    def to_b(g: Any, out: Any) -> Any:
        sums = column_sums(g if flat else g.reshape(-1, outputs), out)
        return sums if sums is out else sums.reshape(shape_b)

    return y if flat else y.reshape(*shape_x[:-1], outputs), (to_x, to_w, to_b)


_LONG, _STRIP = 512, 32  # numbers
_TINY = 1 << 16  # multiplications, that are as fast in any way


def times_transposed(g: Array, w: Array) -> Array:
    """g @ w.T for g of shape (rows, out) and w of shape (in, out).

    BLAS copies both factors first, which takes long where g has few rows. A small product needs no other copy than one
    of w.T (15 % faster), and blocks of larger ones none (5 to 20 %). With other kernels of OpenBLAS than those for
    AVX-512, or a larger w, w @ g.T is several per cent faster, and a copy of the transposed result, in strips that stay
    in the cache.
    """
    size, inputs = g.size * len(w), len(w)
    if size <= _TINY:
        return dot(g, w.T)  # type: ignore[no-any-return]
    rows, outputs = g.shape
    if w.size <= TURNED and rows * inputs > FLAT and size <= SMALL and without_copies():
        return dot(g, np.ascontiguousarray(w.T))  # type: ignore[no-any-return]
    fits = rows <= _LONG <= 2 * outputs < 4 * _LONG and w.size <= CACHED and size > SMALL
    if fits and rows % 16 == inputs % 16 == 0 and w.itemsize == 4 and w.flags.c_contiguous and one_thread():
        return multiply_transposed(g[None, None], w[None, None])[0]  # type: ignore[no-any-return]
    if 4 * rows > inputs or outputs < _LONG:
        return dot(g, w.T)  # type: ignore[no-any-return]
    turned = dot(w, g.T)
    product: Array = np.empty((rows, inputs), turned.dtype)
    for start in range(0, inputs, _STRIP):
        product[:, start : start + _STRIP] = turned[start : start + _STRIP].T
    return product


def column_sums(rows: Array, out: Array | None = None) -> Array:
    """The sum over the rows of a matrix, for each column, in `out` if given (of that number of elements).

    BLAS computes it, as a product with ones, several times as fast as NumPy sums over rows, and more exactly. Its bits
    depend on the number of rows, as those of every product do.
    """
    if rows.dtype.itemsize < 4:  # BLAS has no float16
        return np.add.reduce(rows, axis=0)  # type: ignore[no-any-return]
    ones = _ones(len(rows), rows.dtype)
    if out is not None and out.dtype == rows.dtype:
        ones.dot(rows, out.ravel())
        return out
    return ones.dot(rows)  # type: ignore[no-any-return]


def row_sums(rows: Array) -> Array:
    """The sum of each row of a matrix, computed in the same way."""
    sums: Array = rows.sum(axis=1) if rows.dtype.itemsize < 4 else rows.dot(_ones(rows.shape[1], rows.dtype))
    return sums


@lru_cache(maxsize=16)
def _ones(count: int, dtype: np.dtype[Any]) -> Array:
    return read_only(np.ones(count, dtype))


def einsum(equation: str, *operands: Any) -> Any:
    """Sums of products: "ij,jk->ik" is the matrix product, "ii->i" the diagonal, "...ij->...ji" the transpose.

    Without "->" the result has the letters that occur once, in alphabetical order, after those of "...".
    Operands are multiplied from left to right. ValueError names what does not fit.
    """
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = tuple(operands[0])
    tensors = [x if isinstance(x, Tensor) else Tensor(as_operand(x)) for x in operands]
    terms, result = _parsed(equation, [x.ndim for x in tensors])
    tensors, cut = _align_rows(terms, tensors, result)
    sizes: dict[str, int] = {}
    for term, tensor in zip(terms, tensors, strict=True):
        for letter, n in zip(term, tensor.shape, strict=True):
            if sizes.setdefault(letter, n) != n and 1 not in (n, sizes[letter]):
                raise ValueError(f"einsum: '{letter}' in {equation!r} must have one size, got {sizes[letter]} and {n}")
            sizes[letter] = n if sizes[letter] == 1 else sizes[letter]
    work = [_plain(term, tensor, sizes) for term, tensor in zip(terms, tensors, strict=True)]
    term, value = _summed(*work[0], "".join(t for t, _ in work[1:]) + result)
    for i, (other, tensor) in enumerate(work[1:], 1):
        later = "".join(t for t, _ in work[i + 1 :]) + result
        other, tensor = _summed(other, tensor, term + later)
        term, value = _summed(term, value, other + later)
        term, value = _product(term, value, other, tensor, later)
    order = tuple(term.index(letter) for letter in result)
    value = permute_to(value, axes=order) if len(operands) > 1 or order != tuple(range(len(order))) else clone(value)
    return value if cut is None else rules.collective().rows_of(value, cut)


def _parsed(equation: str, dims: list[int]) -> tuple[list[str], str]:
    """The letters of each operand and of the result; "..." is replaced by letters that are free."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(dims):
        raise ValueError(f"einsum: {equation!r} has {len(terms)} operands, got {len(dims)}")
    free = [letter for letter in ascii_letters if letter not in equation]
    most = 0
    for i, (term, count) in enumerate(zip(terms, dims, strict=True)):
        extra = count - len(term.replace("...", ""))
        if extra < 0 or (extra and "..." not in term):
            raise ValueError(f"einsum: '{term}' in {equation!r} must name {count} dimensions")
        most = max(most, extra)
        terms[i] = term.replace("...", "".join(free[:extra][::-1]))
    dots = "".join(free[:most][::-1])
    letters = "".join(terms)
    if not arrow:
        named = sorted(letter for letter in set(letters) if letters.count(letter) == 1 and letter not in dots)
        return terms, dots + "".join(named)
    right = right.replace("...", dots)
    if (letters and not letters.isalpha()) or len(set(right)) < len(right) or not set(right) <= set(letters):
        raise ValueError(f"einsum: the result of {equation!r} must name letters of the operands, each once")
    return terms, right


def _align_rows(terms: list[str], tensors: list[Tensor], result: str) -> tuple[list[Tensor], Shard | None]:
    """The operands with rows along one letter only: that of the first operand that has rows. Rows along other letters
    are gathered; along that letter, each operand is cut to this rank's rows. And the rows to cut the result to: in
    reproducible mode all operands are gathered."""
    found = next(((term, rows) for term, x in zip(terms, tensors, strict=True) if (rows := shard_of(x))), None)
    if found is None:
        return tensors, None
    first, lead = found
    letter = first[lead.axis]
    for term, x in zip(terms, tensors, strict=True):
        if letter not in term:
            beside_rows(lead, x)
    if in_order(lead) or first.count(letter) > 1 or rules.one_row(lead):
        cut = in_order(lead) and first.count(letter) == 1 and letter in result
        return [whole(x, "einsum") for x in tensors], lead.moved(result.index(letter)) if cut else None
    aligned = []
    for term, x in zip(terms, tensors, strict=True):
        place = shard_of(x)
        if place is None or term[place.axis] != letter or term.count(letter) > 1 or not lead.like(place):
            x = whole(x, "einsum")
            if letter in term:
                x = rules.beside(x, lead, x.ndim - term.index(letter))
        aligned.append(x)
    return aligned, None


def _plain(term: str, tensor: Tensor, sizes: dict[str, int]) -> tuple[str, Tensor]:
    """An operand with each letter once (a repeated one is a diagonal) and without dimensions to be broadcast."""
    full = tuple(sizes[letter] for letter in term)
    if full != tuple(tensor.shape):
        tensor = expand_to(tensor, shape=full)
    for letter in dict.fromkeys(term):
        places = [i for i, other in enumerate(term) if other == letter]
        if len(places) > 1:
            rest = [i for i in range(len(term)) if i not in places]
            diagonal = (of_shapes(np.arange(sizes[letter])),) * len(places)
            tensor = take(permute_to(tensor, axes=(*places, *rest)), index=diagonal)
            term = letter + "".join(term[i] for i in rest)
    return term, tensor


def _summed(term: str, tensor: Tensor, needed: str) -> tuple[str, Tensor]:
    """Summed over the letters that are not needed any more."""
    over = tuple(i for i, letter in enumerate(term) if letter not in needed)
    if not over:
        return term, tensor
    return "".join(letter for letter in term if letter in needed), sum_over(tensor, axis=over, keepdims=False)


def _product(x_term: str, x: Tensor, y_term: str, y: Tensor, later: str) -> tuple[str, Tensor]:
    """The product of two operands, summed over the letters that both have and `later` has not."""
    sizes = dict(zip(x_term + y_term, (*x.shape, *y.shape), strict=True))
    placed = next(((term, p) for term, v in ((x_term, x), (y_term, y)) if (p := shard_of(v)) is not None), None)
    common = [letter for letter in x_term if letter in y_term and letter in later]
    inner = [letter for letter in x_term if letter in y_term and letter not in later]
    rows = [letter for letter in x_term if letter not in y_term]
    columns = [letter for letter in y_term if letter not in x_term]

    def as_groups(term: str, tensor: Tensor, *groups: list[str]) -> Tensor:
        tensor = permute_to(tensor, axes=tuple(term.index(letter) for group in groups for letter in group))
        for at, group in enumerate(groups):
            tensor = flatten(tensor, at, at + len(group) - 1) if group else unsqueeze(tensor, at)
        return tensor

    if inner:
        left, right = as_groups(x_term, x, common, rows, inner), as_groups(y_term, y, common, inner, columns)
        value = matrix_product(left, right)
    else:
        value = mul(as_groups(x_term, x, common, rows, []), as_groups(y_term, y, common, [], columns))
    term = "".join(common + rows + columns)
    place = shard_of(value)
    if place is not None and placed is not None:
        named, before = placed
        place = before.moved(term.index(named[before.axis]))
    return term, with_rows(value, tuple(sizes[letter] for letter in term), place)
