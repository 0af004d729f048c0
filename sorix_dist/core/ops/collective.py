"""Operations between placements. The gradient of each is another of them, so derivatives of any order exist.

    Partial -> Replicate   all_reduced    the sum over all ranks
    Shard -> Partial       among_all      this rank's rows, padded with zeros for the others'
    Replicate -> Shard     cut_rows       this rank's rows
    Replicate -> Partial   shared_out     the value divided by the number of ranks

An all-gather is `among_all`, then `all_reduced`, for any number of rows on each rank. In a group that adds up in order,
Partials are complete already, and `add_up` and `spread` replace sums over rows and broadcasting.
"""

from __future__ import annotations

from math import inf, prod
from typing import Any

import numpy as np

from sorix_dist.core.capture import host
from sorix_dist.core.expected import beside_sum
from sorix_dist.core.graph import Node, Sync
from sorix_dist.core.op import like_input, memoize_last, op
from sorix_dist.core.ops.elementwise import cast_to
from sorix_dist.core.placement import REPLICATE, Batch, Group, Partial, Shard, Tally, shard_of, tagged
from sorix_dist.core.rules import bare, given, whole
from sorix_dist.core.tally import of_everyone
from sorix_dist.core.tensor import Array, Tensor

# -- the operations: placements are given by the functions below


@op(rule=given)
def all_reduced(x: Any, *, group: Group, what: str) -> Any:
    """The sum of a Partial over all ranks, the same on each."""
    return group.reduce(x, what), (lambda g, out: like_input(all_reduced, g, group=group, what=what),)


@op(rule=given)
def among_all(x: Any, *, shard: Shard) -> Any:
    """The rows of all ranks, with zeros for those of other ranks."""
    full = shard.padded(x, *shard.rows[:3])
    return shard.group.assemble(full), (lambda g, out: like_input(cut_rows, g, shard=shard),)


@op(rule=given)
def cut_rows(x: Any, *, shard: Shard) -> Any:
    """This rank's rows of those of all ranks."""
    return shard.part(x, *shard.rows[:3]), (lambda g, out: like_input(among_all, g, shard=shard),)


@op(rule=given)
def shared_out(x: Any, *, parts: int) -> Any:
    """x / parts, so that the sum over the parts is x."""
    return x / parts, (lambda g, out: like_input(shared_out, g, parts=parts),)


@op(rule=given)
def spread_rows(x: Any, *, shard: Shard, shape: tuple[int, ...], over: float) -> Any:
    """x broadcast to the rows of a shard, of `shape`, and divided by `over`: the transpose of `sum_in_order`."""
    before = x.shape
    value = np.broadcast_to(x if over == 1 else x / over, shape)
    return value, (lambda g, out: like_input(sum_in_order, g, shard=shard, shape=before, over=over),)


@op(rule=given)
def sum_in_order(x: Any, *, shard: Shard, shape: tuple[int, ...], over: float) -> Any:
    """The sum over the rows of all ranks, and over other axes that were broadcast from `shape`, divided by `over`, in
    one order for any number of ranks."""
    extra = x.ndim - len(shape)
    stretched = tuple(i for i in range(x.ndim) if i < extra or (shape[i - extra] == 1 != x.shape[i]) or i == shard.axis)

    def of_some(rows: Any) -> Array:
        part = shard.part(x, *shard.batch.local(rows.start, rows.stop), shard.batch.held)
        return np.asarray(part.sum(axis=stretched)).reshape(shape)

    value, whole = shard.group.add_up(of_some, shard.batch.whole.rows), x.shape
    value = value if over == 1 else value / over
    return value, (lambda g, out: like_input(spread_rows, g, shard=shard, shape=whole, over=over),)


@op(rule=given)
def take_rows(x: Any, *, shard: Shard, start: int, stop: int) -> Any:
    """Rows start to stop - 1 of this rank's rows."""
    return shard.part(x, start, stop, shard.batch.held), (
        lambda g, out: like_input(put_rows, g, shard=shard, start=start, stop=stop),
    )


@op(rule=given)
def in_row_order(x: Any) -> Any:
    """x with its rows one after the other in memory, as their gradient will be. NumPy sums in an order that follows
    from the layout, and in another layout from the number of rows."""
    return np.ascontiguousarray(x), (lambda g, out: like_input(in_row_order, g),)


@op(rule=given)
def put_rows(x: Any, *, shard: Shard, start: int, stop: int) -> Any:
    """x as rows start to stop - 1 of this rank's rows, zeros in the others."""
    return shard.padded(x, start, stop, shard.batch.held), (
        lambda g, out: like_input(take_rows, g, shard=shard, start=start, stop=stop),
    )


@op(rule=given)
def summed_parts(*parts: Any, batch: Batch, bounds: tuple[Any, ...]) -> Any:
    """The sum over the virtual shards of all ranks, in one order; `parts` are this rank's, for the rows in `bounds`."""
    of = dict(zip(bounds, parts, strict=True))
    value = batch.group.add_up(lambda rows: np.asarray(of[rows.start, rows.stop]), batch.rows)
    each = memoize_last(lambda g: for_each_shard(g, batch=batch, bounds=bounds))
    rules = (lambda g, out, i=i: each(g)[i] if isinstance(g, Tensor) else g for i in range(len(parts)))
    return value, tuple(rules)


@op(rule=given)
def for_each_shard(x: Any, *, batch: Batch, bounds: tuple[Any, ...]) -> Any:
    """x once for each virtual shard of this rank, along a new first axis: the transpose of `summed_parts`."""
    value = np.broadcast_to(x, (len(bounds), *x.shape))
    return value, (lambda g, out: like_input(summed_parts, *g, batch=batch, bounds=bounds),)


@op(rule=given)
def first_of(*parts: Any, count: int) -> Any:
    """The first of `count` equal values, which share the gradient."""
    return np.array(parts[0]), ((lambda g, out: g / count),) * len(parts)


# -- from one placement to another


def to_replicate(x: Tensor, name: str = "") -> Tensor:
    """Converts to a Replicate: the sum of a Partial over all ranks, or the rows of all ranks."""
    place = x.place
    if place is REPLICATE:
        return x
    if isinstance(place, Shard):
        group = place.group
        if group.has_all:
            return tagged(bare(x), REPLICATE)
        if not place.batch.in_order:
            raise RuntimeError(
                f"{name or 'a gather'}: elements that a mask has selected along an axis other than the first are not "
                "in the order of the ranks: use sx.where or masked_fill, or put the batch axis first"
            )
        if name and not group.single:
            elements = prod(n for i, n in enumerate(x.array.shape) if i != place.axis) * place.total
            group.warn(
                f"{name} works on the rows of the whole batch, which every rank gathers here from the others: "
                f"{x.array.itemsize * elements} bytes"
            )
        x = tagged(among_all(bare(x), shard=place), Partial(group, None, 1.0, 0))
    elif isinstance(place, Partial):
        group = place.group
        if x.origin is not None:
            _expect(place)
    else:
        return of_everyone(x) if isinstance(place, Tally) else bare(x)  # type: ignore[no-any-return]
    return tagged(bare(x) if group.single or group.ordered else summed(x, group, name), REPLICATE)


@host
def _expect(place: Partial) -> None:
    for number in place.constants:
        place.group.expect(number)


def summed(x: Tensor, group: Group, what: str) -> Tensor:
    """The sum over all ranks, the same on each. A backward from it starts with an equal share of the seed on each."""
    total = all_reduced(bare(x), group=group, what=what)
    if isinstance(total.origin, Node) and total.origin.sync is None:
        total.origin.sync = Sync(group)
    return total


def rows_of(x: Any, shard: Shard) -> Any:
    """This rank's rows of a Replicate that has a row for each one of the shard's global batch."""
    return tagged(cut_rows(bare(x) if isinstance(x, Tensor) else Tensor.of(x), shard=shard), shard)


@host
def _number(x: Any, dtype: Any) -> Array:
    return np.asarray(x, dtype)


def as_part(x: Any, group: Group, dtype: Any) -> Tensor:
    """Converts an operand of a sum to a Partial of this dtype. A Replicate is divided by the number of ranks, so that
    it counts once."""
    operand = x if isinstance(x, Tensor) else Tensor(_number(x, dtype))  # a float32 of a number would round it
    if operand.array.dtype != dtype:
        operand = cast_to(operand, dtype=dtype)  # before it is divided, which rounds
    if isinstance(operand.place, Partial):
        return operand
    part = bare(operand) if group.parts == 1 else shared_out(bare(operand), parts=group.parts)
    part = Tensor.of(part.array, part.origin) if part is operand else part
    part = tagged(part, beside_sum(Partial(group, None, float(group.parts), 0), operand))
    part.complete = True  # it shows the Replicate
    return part


def as_data(target: Tensor, value: Tensor) -> Tensor:
    """A value for the `data` of a tensor: a sum over rows is that of the global batch, and rows stay rows, but for a
    parameter, which takes the rows of all ranks."""
    if isinstance(value.place, Shard) and target.leaf is None:
        target.place = value.place
        return value
    found: Tensor = whole(value.detach(), "an assignment to `data`")
    if isinstance(target.place, Partial):
        target.place = REPLICATE
    return found


def spread(x: Tensor, lead: Shard, at: int, ndim: int) -> Tensor:
    """Broadcasts a Replicate to this rank's rows so that its gradient is summed in a fixed order."""
    shape = x.array.shape
    wide = (1,) * (ndim - len(shape)) + shape
    shard = lead.moved(ndim - at)
    full = (*wide[: shard.axis], lead.held, *wide[shard.axis + 1 :])
    return tagged(spread_rows(bare(x), shard=shard, shape=full, over=1), shard)


def add_up(x: Tensor, shape: tuple[int, ...], divisor: float | None) -> Tensor:
    """The sum over rows and all axes of length 1 in `shape`, in a fixed order, divided by `divisor`; 0 if that is 0."""
    shard = shard_of(x)
    assert shard is not None
    return sum_in_order(bare(x), shard=shard, shape=shape, over=1 if divisor is None else divisor or inf)
