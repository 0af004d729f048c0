"""Where the rows of a batch are after a reshape."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

from sorix_dist.core.batch_numbers import BatchInt
from sorix_dist.core.placement import Shard
from sorix_dist.core.rules import Answer, Apply, Inputs, Options, bare, linear_place
from sorix_dist.core.tensor import Tensor


def reshape_rule(apply: Apply, inputs: Inputs, options: Options) -> Answer:
    """Another shape: rows stay rows if their axis does, or is merged with others or split off again."""
    x, place = inputs[0], inputs[0].place
    if not isinstance(place, Shard):
        return linear_place(place)
    found = reshaped_rows(place, x.array.shape, options["shape"])
    return apply(mixed(x, options["shape"]), **options) if found is None else found


def mixed(x: Tensor, shape: Sequence[int]) -> Tensor:
    """RuntimeError on several ranks: a reshape mixes rows. On one rank the tensor without its placement."""
    place = x.place
    assert isinstance(place, Shard)
    if not place.group.single:
        raise RuntimeError(
            f"reshape: {tuple(x.array.shape)}, {place.batch.held} of {place.rows.total} rows along axis {place.axis}, "
            f"does not become {tuple(shape)} row by row. Say -1 for the axis of the batch, or take "
            "sx.global_value(x), which has the rows of all ranks"
        )
    return bare(x)  # type: ignore[no-any-return]


def reshaped_rows(
    place: Shard, before: tuple[int, ...], after: Sequence[int], unknown: int | None = None
) -> Shard | None:
    """The placement of rows after a reshape; None if they are mixed, or if it is ambiguous.

    unknown: the axis of -1, whose length in `after` does not matter. A rank with a single row can't distinguish it from
    other dimensions of 1 and has to guess; where the guess would be wrong, ranks with more rows answer None.
    """
    front = prod(before[: place.axis]) * place.outer
    behind = prod(before[place.axis + 1 :]) * place.inner
    after = tuple(after)
    found = _axis_of_rows(front, behind, place.batch.held, after, unknown)
    if found is None:
        return None
    axis, outer, inner = found
    if place.batch.held != 1 and not place.group.single:
        of_one = (*after[:axis], outer * inner, *after[axis + 1 :])
        if _axis_of_rows(front, behind, 1, of_one, unknown) != found:
            return None
    return place.batch.at(axis, outer, inner)


@lru_cache(maxsize=256)
def _axis_of_rows(
    front: int, behind: int, rows: int, after: tuple[int, ...], unknown: int | None
) -> tuple[int, int, int] | None:
    """(axis, outer, inner) of rows after a reshape that have `front` elements in front of them and `behind` behind.

    An axis with A elements in front and B behind can contain them if A divides `front` and B divides `behind`, and its
    length fits (or is -1). Of several such axes, the one that merges the rows with the fewest others.
    """
    found = []
    for axis, length in enumerate(after):
        left, right = prod(after[:axis]), prod(after[axis + 1 :])
        if left and right and not front % left and not behind % right:
            outer, inner = front // left, behind // right
            by_length = length == outer * rows * inner and (unknown is None or outer == inner == 1)
            if axis == unknown or by_length:
                found.append((inner, axis != unknown, outer, axis))
    if not found:
        return None
    inner, _, outer, axis = min(found)
    return axis, outer, inner


def named_by_number(x: Tensor, sizes: tuple[Any, ...]) -> tuple[tuple[int, ...], Shard] | None:
    """The shape and the placement of rows x after a reshape in which a size follows from their number, as in
    `x.view(B * T, C)` with B, T, C = x.shape; None if none does. RuntimeError if that size does not contain rows."""
    place, before = x.place, x.array.shape
    assert isinstance(place, Shard)
    rows = place.batch.known
    if place.group.has_all or rows is None or sizes.count(-1) > 1:
        return None  # one process has all rows
    front = prod(before[: place.axis]) * place.outer
    behind = prod(before[place.axis + 1 :]) * place.inner
    everything = place.batch.held == rows.total
    numbers = [i for i, n in enumerate(sizes) if isinstance(n, BatchInt) and (everything or n.everywhere != n.own)]
    for axis in numbers:
        merged, rest = divmod(sizes[axis].everywhere or 0, rows.total or 1)
        known = prod(n for i, n in enumerate(sizes) if i != axis and n != -1)
        after = [front * behind // (merged * known or 1) if n == -1 else n for n in sizes]
        after[axis] = merged * place.batch.held
        outer, inner = front // (prod(after[:axis]) or 1), behind // (prod(after[axis + 1 :]) or 1)
        fits = prod(after[:axis]) * outer == front and prod(after[axis + 1 :]) * inner == behind
        if fits and outer * inner == merged and not rest:
            return tuple(map(int, after)), place.batch.at(axis, outer, inner)
    if len(numbers) == 1 and sizes[numbers[0]].everywhere != sizes[numbers[0]].own:
        mixed(x, sizes)
    return None
