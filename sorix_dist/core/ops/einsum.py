"""Sums of products by subscripts, done as matrix products, so that gradients of any order come by themselves."""

from __future__ import annotations

from string import ascii_letters
from typing import Any

import numpy as np

from sorix_dist.core.op import as_operand
from sorix_dist.core.ops.elementwise import mul
from sorix_dist.core.ops.matrix import matrix_product
from sorix_dist.core.ops.reduce import sum_over
from sorix_dist.core.ops.shape import clone, expand_to, flatten, permute_to, take, unsqueeze, with_rows
from sorix_dist.core.placement import shard_of
from sorix_dist.core.rules import in_order, rows_beside, single, whole
from sorix_dist.core.tensor import Tensor


def einsum(equation: str, *operands: Any) -> Any:
    """Sums of products: "ij,jk->ik" is the matrix product, "ii->i" the diagonal, "...ij->...ji" the transpose.

    Without "->" the result has the letters that occur once, in alphabetical order, after those of "...".
    Operands are multiplied from left to right. ValueError names what does not fit.
    """
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = tuple(operands[0])
    tensors = [x if isinstance(x, Tensor) else Tensor(as_operand(x)) for x in operands]
    terms, result = _parsed(equation, [x.ndim for x in tensors])
    tensors = _with_rows_together(terms, tensors)
    sizes: dict[str, int] = {}
    for term, tensor in zip(terms, tensors, strict=True):
        for letter, n in zip(term, tensor.shape, strict=True):
            if sizes.setdefault(letter, n) != n and 1 not in (n, sizes[letter]):
                raise ValueError(
                    f"einsum: the sizes of '{letter}' in {equation!r} must agree, got {sizes[letter]} and {n}"
                )
            sizes[letter] = n if sizes[letter] == 1 else sizes[letter]
    work = [_plain(term, tensor, sizes) for term, tensor in zip(terms, tensors, strict=True)]
    term, value = _summed(*work[0], "".join(t for t, _ in work[1:]) + result)
    for i, (other, tensor) in enumerate(work[1:], 1):
        later = "".join(t for t, _ in work[i + 1 :]) + result
        other, tensor = _summed(other, tensor, term + later)
        term, value = _summed(term, value, other + later)
        term, value = _product(term, value, other, tensor, later)
    order = tuple(term.index(letter) for letter in result)
    return permute_to(value, axes=order) if len(operands) > 1 or order != tuple(range(len(order))) else clone(value)


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


def _with_rows_together(terms: list[str], tensors: list[Tensor]) -> list[Tensor]:
    """The operands with the rows of a batch along one letter only: that of the first operand that has rows. Others have
    the rows of all ranks, of which they take this rank's along that letter."""
    found = next(((term, rows) for term, x in zip(terms, tensors, strict=True) if (rows := shard_of(x))), None)
    if found is None:
        return tensors
    first, lead = found
    letter = first[lead.axis]
    if in_order(lead) or first.count(letter) > 1 or single(lead):
        return [whole(x, "einsum") for x in tensors]
    together = []
    for term, x in zip(terms, tensors, strict=True):
        place = shard_of(x)
        if place is None or term[place.axis] != letter or term.count(letter) > 1 or not lead.like(place):
            x = whole(x, "einsum") if place is not None or letter in term else x
            if letter in term and x.shape[term.index(letter)] != 1:
                x = rows_beside(x, lead, x.ndim - term.index(letter))
        together.append(x)
    return together


def _plain(term: str, tensor: Tensor, sizes: dict[str, int]) -> tuple[str, Tensor]:
    """An operand with each letter once (a repeated one is a diagonal) and without dimensions to be broadcast."""
    full = tuple(sizes[letter] for letter in term)
    if full != tuple(tensor.shape):
        tensor = expand_to(tensor, shape=full)
    for letter in dict.fromkeys(term):
        places = [i for i, other in enumerate(term) if other == letter]
        if len(places) > 1:
            rest = [i for i in range(len(term)) if i not in places]
            diagonal = (np.arange(sizes[letter]),) * len(places)
            tensor = take(permute_to(tensor, axes=(*places, *rest)), index=diagonal)
            term = letter + "".join(term[i] for i in rest)
    return term, tensor


def _summed(term: str, tensor: Tensor, needed: str) -> tuple[str, Tensor]:
    """Summed over the letters that nobody else needs."""
    alone = tuple(i for i, letter in enumerate(term) if letter not in needed)
    if not alone:
        return term, tensor
    return "".join(letter for letter in term if letter in needed), sum_over(tensor, axis=alone, keepdims=False)


def _product(x_term: str, x: Tensor, y_term: str, y: Tensor, later: str) -> tuple[str, Tensor]:
    """The product of two operands, summed over what they share and nobody later needs."""
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
