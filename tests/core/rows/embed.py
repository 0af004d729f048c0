"""Rows of a table, and sums of rows."""

from __future__ import annotations

import numpy as np

from sorix_dist.core.ops import indexing
from tests.support.core.opcheck import Row

TABLE = {"0-d": "a table has rows"}
MANY = np.random.default_rng(0).integers(0, 23, (3, 40))


def summed(rows, index, count, skip):
    table = np.zeros((count, *rows.shape[index.ndim :]))
    np.add.at(table, index, rows)
    if skip is not None:
        table[skip] = 0
    return table


ROWS = [
    *(
        Row(
            indexing.table_rows,
            lambda table, index, skip: table[index],
            [((5, 3),)],
            {"index": np.array(index, int), "skip": None},
            lacks=TABLE,
        )
        for index in ([4, 1, 1, 0], [[1, 2], [1, 1]], [], 3)
    ),
    Row(indexing.table_rows, lambda table, index, skip: table[index], [((23, 2),)], {"index": MANY, "skip": None}),
    Row(
        indexing.table_rows,
        lambda table, index, skip, blank: np.where((index == skip)[:, None], 0, table[index]),
        [((5, 3),), ((5, 0),)],
        {"index": np.array([4, 1, 1, 0]), "skip": 1, "blank": True},
        lacks=TABLE,
    ),
    Row(indexing.sum_of_rows, summed, [((3, 40, 2),)], {"index": MANY, "count": 23, "skip": None}, lacks=TABLE),
    *(
        Row(
            indexing.sum_of_rows,
            summed,
            [((len(index), 2),)],
            {"index": np.array(index, int), "count": 4, "skip": skip},
            lacks=TABLE,
        )
        for index in ([3, 0, 3, 3, 1], [])
        for skip in (None, 3)
    ),
]
