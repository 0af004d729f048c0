"""Operations between placements, on rows that one process holds of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sorix_dist.core.ops import collective
from sorix_dist.core.placement import SINGLE, Batch, Group, Rows, Shard
from tests.support.core.opcheck import ELEMENTWISE, Row
from tests.support.core.sharded import OneOfTwo

Array = np.ndarray[Any, Any]


class InPieces(Group):
    """A process that adds up rows in two pieces, as it does those of virtual shards."""

    ordered = True

    def add_up(self, sums: Callable[[Rows], Array], rows: Rows) -> Array:
        middle = (rows.start + rows.stop) // 2
        return sums(Rows(rows.start, middle, rows.total)) + sums(Rows(middle, rows.stop, rows.total))


def rows_at(axis: int, outer: int = 1, inner: int = 1) -> Shard:
    """Rows 1 and 2 of 4."""
    return Batch(Rows(1, 3, 4), SINGLE).at(axis, outer, inner)


NONE = Batch(Rows(2, 2, 4), SINGLE).at(0)
ALL = Batch(Rows(0, 4, 4), InPieces()).at(0)
NO_BATCH = Batch(Rows(0, 0, 0), InPieces()).at(0)
LACKS = {"0-d": "there must be an axis of rows"}


def indices(shard: Shard, start: int, stop: int, rows: int) -> Array:
    """Where along the shard's axis the rows start to stop - 1 of so many are."""
    places = np.arange(shard.outer * rows * shard.inner).reshape(shard.outer, rows, shard.inner)
    return places[:, start:stop].ravel()


def cut(x: Array, shard: Shard) -> Array:
    return np.take(x, indices(shard, *shard.rows[:3]), shard.axis)


def among_zeros(x: Array, shard: Shard, start: int, stop: int, rows: int) -> Array:
    full = np.zeros((*x.shape[: shard.axis], shard.outer * rows * shard.inner, *x.shape[shard.axis + 1 :]))
    np.moveaxis(full, shard.axis, 0)[indices(shard, start, stop, rows)] = np.moveaxis(x, shard.axis, 0)
    return full


def among_all(x: Array, shard: Shard) -> Array:
    return among_zeros(x, shard, *shard.rows[:3])


def taken(x: Array, shard: Shard, start: int, stop: int) -> Array:
    return np.take(x, indices(shard, start, stop, shard.batch.held), shard.axis)


def put(x: Array, shard: Shard, start: int, stop: int) -> Array:
    return among_zeros(x, shard, start, stop, shard.batch.held)


def spread(x: Array, shard: Shard, shape: tuple[int, ...], over: float) -> Array:
    return np.broadcast_to(x / over, shape)


def summed(x: Array, shard: Shard, shape: tuple[int, ...], over: float) -> Array:
    extra = x.ndim - len(shape)
    axes = tuple(i for i in range(x.ndim) if i < extra or shape[i - extra] == 1)
    return np.sum(x, axes).reshape(shape) / over


def of_the_same(x: Any) -> Any:
    return collective.first_of(x, x, x, count=3)


PLACES = [
    ((2, 3), (4, 3), rows_at(0)),
    ((3, 2), (3, 4), rows_at(1)),
    ((3, 12), (3, 24), rows_at(1, outer=2, inner=3)),
    ((0, 3), (4, 3), NONE),
]
ROWS = [
    Row(collective.all_reduced, lambda x, group, what: x, ELEMENTWISE, options={"group": SINGLE, "what": "a test"}),
    Row(collective.all_reduced, lambda x, group, what: 2 * x, ELEMENTWISE,
        options={"group": OneOfTwo(lambda part: 2 * part), "what": "a test"}),
    Row(collective.shared_out, lambda x, parts: x / 3, ELEMENTWISE, options={"parts": 3}),
    *(Row(collective.among_all, among_all, [(own,)], options={"shard": shard}, lacks=LACKS)
      for own, _, shard in PLACES),
    *(Row(collective.cut_rows, cut, [(everywhere,)], options={"shard": shard},
          lacks={**LACKS, "empty": "see the case of no rows"}) for _, everywhere, shard in PLACES),
    *(Row(collective.take_rows, taken, [(own,)], options={"shard": shard, "start": 0, "stop": min(1, own[0])},
          lacks=LACKS) for own, _, shard in PLACES),
    *(Row(collective.put_rows, put, [(own,)], options={"shard": shard, "start": start, "stop": stop}, lacks=LACKS)
      for own, start, stop, shard in [
          ((1, 3), 1, 2, rows_at(0)), ((3, 6), 0, 1, rows_at(1, outer=2, inner=3)), ((0, 3), 1, 1, rows_at(0)),
          ((0, 3), 0, 0, NONE)]),
    Row(collective.spread_rows, spread, [((1, 3),), ((3,),), ((1, 1),), ((),)],
        options={"shard": ALL, "shape": (4, 3), "over": 2.0}),
    Row(collective.spread_rows, spread, [((1, 3),), ((),)], options={"shard": NO_BATCH, "shape": (0, 3), "over": 1},
        lacks={"empty": "one row, or none, is spread to none"}),
    Row(collective.sum_in_order, summed, [((4, 3),)], options={"shard": ALL, "shape": (1, 3), "over": 1}, lacks=LACKS),
    Row(collective.sum_in_order, summed, [((4, 3),)], options={"shard": ALL, "shape": (1, 1), "over": 12.0}),
    Row(collective.sum_in_order, summed, [((4, 3),)], options={"shard": ALL, "shape": (3,), "over": 1}),
    Row(collective.sum_in_order, summed, [((3, 8),)],
        options={"shard": ALL.batch.at(1, inner=2), "shape": (3, 1), "over": 1}),
    Row(collective.sum_in_order, summed, [((0, 3),)], options={"shard": NO_BATCH, "shape": (1, 3), "over": 1}),
    Row(collective.summed_parts, lambda x, y, batch, bounds: x + y, [((3,), (3,)), ((), ()), ((0, 2), (0, 2))],
        options={"batch": ALL.batch, "bounds": ((0, 2), (2, 4))}),
    Row(collective.for_each_shard, lambda x, batch, bounds: np.stack([x, x]), [((3,),), ((),), ((0, 2),)],
        options={"batch": ALL.batch, "bounds": ((0, 2), (2, 4))}),
    Row(collective.in_row_order, lambda x: x, [((2, 3),), ((0, 3),), ((2, 3, 4),)], lacks=LACKS),
    Row(of_the_same, lambda x: x, ELEMENTWISE, covers="first_of"),
]  # fmt: skip
