"""The mark of a batch's rows stays on what still has one row for each of them, however many rows there are."""

from __future__ import annotations

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist.core.tensor import Rows
from sorix_dist.nn import functional as F

FEATURES = 4
W = np.random.default_rng(0).standard_normal((FEATURES, FEATURES))

KEPT = {
    "arithmetic": lambda x: (x / 16 - 1).abs() ** 2,
    "dtype": lambda x: x.float(),
    "detach": lambda x: x.detach(),
    "clone": lambda x: x.clone(),
    "reshape": lambda x: x.reshape(-1, 1, 2, 2),
    "reshape with the number of rows": lambda x: x.reshape(len(x), -1),
    "reshape and back": lambda x: x.reshape(-1, 2, 2).reshape(-1, 4),
    "flatten": lambda x: x.reshape(-1, 2, 2).flatten(1),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "unsqueeze at the end": lambda x: x.unsqueeze(-1),
    "squeeze": lambda x: x.unsqueeze(1).squeeze(1),
    "permute": lambda x: x.reshape(-1, 2, 2).permute(0, 2, 1),
    "transpose": lambda x: x.reshape(-1, 2, 2).transpose(1, 2),
    "expand": lambda x: x.unsqueeze(1).expand(-1, 3, -1),
    "columns": lambda x: x[:, :-1],
    "columns backwards": lambda x: x[:, ::-1],
    "one column": lambda x: x[:, 0],
    "columns by number": lambda x: x[:, [0, 2, 2]],
    "columns by mask": lambda x: x[:, np.array([True, False, True, True])],
    "last column": lambda x: x[..., -1],
    "new dimension": lambda x: x[:, None],
    "everything": lambda x: x[:],
    "nothing named": lambda x: x[...],
    "flip of columns": lambda x: x.flip(1),
    "roll of columns": lambda x: x.roll(1, 1),
    "sum of a row": lambda x: x.sum(axis=1),
    "mean of a row": lambda x: x.mean(axis=-1, keepdims=True),
    "largest of a row": lambda x: x.argmax(dim=1),
    "softmax": lambda x: F.softmax(x, 1),
    "side by side": lambda x: sx.cat([x, x], dim=1),
    "border": lambda x: sx.pad(x, (1, 1)),
    "matrix": lambda x: x @ W[:, :3],
    "square matrix": lambda x: x @ W,
}

LOST = {
    "transposed": lambda x: x.T,
    "permuted": lambda x: x.permute(1, 0),
    "unsqueeze in front": lambda x: x.unsqueeze(0),
    "new dimension in front": lambda x: x[None],
    "some rows": lambda x: x[: max(1, len(x) - 1)],
    "rows backwards": lambda x: x[::-1],
    "rows by number": lambda x: x[np.arange(len(x))],
    "rows by mask": lambda x: x[np.ones(len(x), bool)],
    "elements by mask": lambda x: x[np.ones(x.shape, bool)],
    "columns by two arrays": lambda x: x.reshape(-1, 2, 2)[:, [0, 1], [0, 1]],
    "flip": lambda x: x.flip(0),
    "roll": lambda x: x.roll(1, 0),
    "roll of all": lambda x: x.roll(1),
    "sum": lambda x: x.sum(),
    "sum over rows": lambda x: x.sum(axis=0),
    "mean over rows": lambda x: x.sum(axis=0, keepdims=True),
    "cumsum": lambda x: x.cumsum(0),
    "below each other": lambda x: sx.cat([x, x]),
    "below nothing": lambda x: sx.cat([x, x[:0]]),
    "repeated": lambda x: x.unsqueeze(0).expand(2, -1, -1),
    "elements": lambda x: x.reshape(-1),
    "two rows of one": lambda x: x.reshape(-1, 2),
}


@pytest.mark.parametrize("rows", [0, 1, 2, FEATURES, 7])
@pytest.mark.parametrize(("name", "kept"), [*((n, True) for n in KEPT), *((n, False) for n in LOST)])
def test_all_numbers_of_rows_decide_alike(name, kept, rows):
    for trained in (False, True):
        x = sx.tensor(np.random.default_rng(rows).standard_normal((rows, FEATURES)), requires_grad=trained)
        x.rows = Rows(3, 3 + rows, 30, 1, 2)
        result = (KEPT if kept else LOST)[name](x)
        assert result.rows == (x.rows if kept else None)


def test_matrices_that_rows_are_multiplied_with_have_no_mark():
    for rows in (0, 1, FEATURES, 7):
        x = sx.tensor(np.ones((rows, FEATURES)))
        x.rows = Rows(0, rows, 30)
        assert (x @ x.T).rows == x.rows
        assert (x.T @ x).rows is None
