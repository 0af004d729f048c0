"""Rows of a table by their number, and their transpose: sums of rows that have the same number."""

from __future__ import annotations

from typing import Any

import numpy as np

from sorix_dist.core import rules
from sorix_dist.core.op import in_kind, op
from sorix_dist.core.tensor import Array, Tensor

_FEW = 16  # numbers that are worth a summation each


@op(rule=rules.gathers)
def table_rows(table: Any, *, index: Array, skip: int | None, blank: bool = False) -> Any:
    """The rows of `table` (count, features) that the integers `index` name.

    Row `skip` (None: no row) gets no gradient; with `blank`, zeros stand where it is named.
    """
    count = len(table)
    value = table[index]
    if blank and skip is not None:
        value[index == skip] = 0

    def to_table(g: Any, out: Any) -> Any:
        if isinstance(g, Tensor):
            return sum_of_rows(g, index=index, count=count, skip=skip)
        return _add_up(g, index, skip, np.empty((count, *g.shape[index.ndim :]), g.dtype) if out is None else out)

    return value, (to_table,)


@op(rule=rules.gathers)
def sum_of_rows(rows: Any, *, index: Array, count: int, skip: int | None) -> Any:
    """A table of `count` rows, each the sum of those `rows` whose `index` names it; row `skip` is 0."""
    table = _add_up(rows, index, skip, np.empty((count, *rows.shape[index.ndim :]), rows.dtype))
    return table, (lambda g, out: in_kind(table_rows, g, index=index, skip=skip, blank=True),)


def _add_up(rows: Array, index: Array, skip: int | None, table: Array) -> Array:
    table[...] = 0
    rows = rows.reshape(index.size, *rows.shape[index.ndim :])
    order = np.argsort(index, axis=None, kind="stable")
    numbers = index.reshape(-1)[order]
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    lengths = np.diff(starts, append=len(numbers))
    # The first row of every number at once, then the second ones, as long as many numbers have another: `+=` is
    # right for numbers that differ, and several times as fast as np.add.at and np.add.reduceat.
    done = 0
    while len(starts) > _FEW:
        table[numbers[starts]] += rows[order[starts + done]]
        done += 1
        starts, lengths = starts[lengths > done], lengths[lengths > done]
    for start, length in zip(starts, lengths, strict=True):
        table[numbers[start]] += rows[order[start + done : start + length]].sum(axis=0)
    if skip is not None:
        table[skip] = 0
    return table
