"""Where the rows of a batch are after an operation: the same for every number of rows that a rank may hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist.core import Tensor
from sorix_dist.core.placement import Batch, Group, Partial, Shard, tagged
from sorix_dist.core.rules import placement_of
from sorix_dist.nn import functional as F
from tests.support.core.sharded import OneOfTwo, sharded

FEATURES = 4
TOTAL = 30
W = np.random.default_rng(0).standard_normal((FEATURES, FEATURES))
ALL = np.random.default_rng(1).standard_normal((TOTAL, FEATURES))


def rows_of(count: int, trained: bool, group: Group | None = None) -> Tensor:
    """So many rows of a larger batch, from the third on."""
    return sharded(ALL[3 : 3 + count], 3, TOTAL, group, trained=trained)


def zeros_elsewhere() -> OneOfTwo:
    """A rank beside one whose part of every sum is 0."""
    return OneOfTwo(np.array)


# The axis of the result that has the rows, and how many of them lie one after the other there (1 if not said).
KEPT: dict[str, tuple[Callable[[Any], Any], int] | tuple[Callable[[Any], Any], int, int]] = {
    "arithmetic": (lambda x: (x / 16 - 1).abs() ** 2, 0),
    "dtype": (lambda x: x.float(), 0),
    "detach": (lambda x: x.detach(), 0),
    "clone": (lambda x: x.clone(), 0),
    "reshape": (lambda x: x.reshape(-1, 1, 2, 2), 0),
    "reshape with the number of rows": (lambda x: x.reshape(len(x), -1), 0),
    "reshape and back": (lambda x: x.reshape(-1, 2, 2).reshape(-1, 4), 0),
    "flatten": (lambda x: x.reshape(-1, 2, 2).flatten(1), 0),
    "unsqueeze": (lambda x: x.unsqueeze(1), 0),
    "unsqueeze at the end": (lambda x: x.unsqueeze(-1), 0),
    "unsqueeze in front": (lambda x: x.unsqueeze(0), 1),
    "squeeze": (lambda x: x.unsqueeze(1).squeeze(1), 0),
    "permute": (lambda x: x.reshape(-1, 2, 2).permute(0, 2, 1), 0),
    "permuted": (lambda x: x.permute(1, 0), 1),
    "transpose": (lambda x: x.reshape(-1, 2, 2).transpose(1, 2), 0),
    "transposed": (lambda x: x.T, 1),
    "transposed and back": (lambda x: x.T.T, 0),
    "expand": (lambda x: x.unsqueeze(1).expand(-1, 3, -1), 0),
    "repeated": (lambda x: x.unsqueeze(0).expand(2, -1, -1), 1),
    "columns": (lambda x: x[:, :-1], 0),
    "columns backwards": (lambda x: x[:, ::-1], 0),
    "one column": (lambda x: x[:, 0], 0),
    "columns by number": (lambda x: x[:, [0, 2, 2]], 0),
    "columns by mask": (lambda x: x[:, np.array([True, False, True, True])], 0),
    "columns by two arrays": (lambda x: x.reshape(-1, 2, 2)[:, [0, 1], [0, 1]], 0),
    "last column": (lambda x: x[..., -1], 0),
    "new dimension": (lambda x: x[:, None], 0),
    "new dimension in front": (lambda x: x[None], 1),
    "everything": (lambda x: x[:], 0),
    "nothing named": (lambda x: x[...], 0),
    "flip of columns": (lambda x: x.flip(1), 0),
    "roll of columns": (lambda x: x.roll(1, 1), 0),
    "sum of a row": (lambda x: x.sum(axis=1), 0),
    "mean of a row": (lambda x: x.mean(axis=-1, keepdims=True), 0),
    "largest of a row": (lambda x: x.argmax(dim=1), 0),
    "running sum of a row": (lambda x: x.cumsum(1), 0),
    "softmax": (lambda x: F.softmax(x, 1), 0),
    "side by side": (lambda x: sx.cat([x, x], dim=1), 0),
    "below each other": (lambda x: sx.cat([x, x]), 0, 2),
    "stacked": (lambda x: sx.stack([x, x]), 1),
    "one half of what is below each other": (lambda x: sx.cat([x, x]).chunk(2)[1], 0),
    "border": (lambda x: sx.pad(x, (1, 1)), 0),
    "matrix": (lambda x: x @ W[:, :3], 0),
    "square matrix": (lambda x: x @ W, 0),
    "matrix from the left": (lambda x: W @ x.T, 1),
}

# What becomes of rows that are added up.
SUMS: dict[str, Callable[[Any], Any]] = {
    "sum": lambda x: x.sum(),
    "mean": lambda x: x.mean(),
    "sum over rows": lambda x: x.sum(axis=0),
    "sum over rows that leaves an axis": lambda x: x.sum(axis=0, keepdims=True),
    "product over rows": lambda x: x.T @ x,
}

# What names rows by their places, which are other rows on every split.
REFUSED: dict[str, Callable[[Any], Any]] = {
    "some rows": lambda x: x[: max(1, len(x) - 1)],
    "rows backwards": lambda x: x[::-1],
    "one row": lambda x: x[0],
    "rows by number": lambda x: x[np.arange(len(x))],
    "flip": lambda x: x.flip(0),
    "roll": lambda x: x.roll(1, 0),
}

# What needs the rows of all ranks, and its result.
GATHERED: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "running sum": (lambda x: x.cumsum(0), lambda x: np.cumsum(x, 0)),
    "largest": (lambda x: x.max(), lambda x: x.max()),
    "largest of a column": (lambda x: x.amax(0), lambda x: x.max(0)),
    "order": (lambda x: x.argsort(0), lambda x: np.argsort(x, 0, kind="stable")),
    "below something else": (lambda x: sx.cat([x, sx.replicated(ALL[:2])]), lambda x: np.concatenate([x, ALL[:2]])),
}

COUNTS = pytest.mark.parametrize("count", [0, 1, 2, FEATURES, 7])
TRAINED = pytest.mark.parametrize("trained", [False, True], ids=["constant", "trained"])


@COUNTS
@TRAINED
@pytest.mark.parametrize("name", KEPT)
def test_rows_stay_rows(name: str, trained: bool, count: int) -> None:
    function, axis, outer = (*KEPT[name], 1)[:3]
    x = rows_of(count, trained)
    result = function(x)
    place = result.place
    assert isinstance(place, Shard)
    assert (place.axis, place.outer, place.inner) == (axis, outer, 1)
    assert result.rows == x.rows
    assert result.shape[axis] == place.held == outer * count
    np.testing.assert_array_equal(result.array, function(Tensor(x.array)).array)


@COUNTS
@TRAINED
@pytest.mark.parametrize("name", SUMS)
def test_sums_over_rows_are_parts_of_a_sum(name: str, trained: bool, count: int) -> None:
    x = rows_of(count, trained)
    result = SUMS[name](x)
    assert isinstance(result.place, Partial)
    assert result.place.group is x.place.group
    assert result.rows is None
    if name != "mean":
        np.testing.assert_array_equal(result.array, SUMS[name](Tensor(x.array)).array)


@COUNTS
@TRAINED
@pytest.mark.parametrize("name", REFUSED)
def test_places_of_rows_are_refused(name: str, trained: bool, count: int) -> None:
    with pytest.raises(RuntimeError, match=rf"axis 0 lie the rows of this rank only, {count} of 30 .*sx.all_gather"):
        REFUSED[name](rows_of(count, trained))


@pytest.mark.parametrize("name", REFUSED)
def test_one_process_is_refused_nothing(name: str) -> None:
    x = Tensor(ALL)
    result = REFUSED[name](tagged(Tensor(ALL), Batch(TOTAL).at(0)))
    np.testing.assert_array_equal(result.array, REFUSED[name](x).array)


@COUNTS
@TRAINED
@pytest.mark.parametrize("name", GATHERED)
def test_what_needs_all_rows_gathers_them_and_says_so(name: str, trained: bool, count: int) -> None:
    function, reference = GATHERED[name]
    group = zeros_elsewhere()
    result = function(rows_of(count, trained, group))
    assert placement_of(result) is None
    everywhere = np.zeros_like(ALL)
    everywhere[3 : 3 + count] = ALL[3 : 3 + count]
    np.testing.assert_array_equal(result.array, reference(everywhere))
    assert any("which every rank gathers here from the others" in message for message in group.told)


@COUNTS
@TRAINED
def test_masks_select_rows(trained: bool, count: int) -> None:
    for flags in (np.ones(count, bool), np.zeros(count, bool), np.arange(count) % 2 == 0):
        for mask in (flags, Tensor(flags)):
            x = rows_of(count, trained)
            result = x[mask]
            assert isinstance(result.place, Shard)
            assert result.place.batch.whole is x.place.batch
            assert result.place.axis == 0
            assert result.place.held == len(result) == flags.sum()
    x = rows_of(count, trained)
    result = x[np.ones(x.shape, bool)]
    assert isinstance(result.place, Shard)
    assert result.place.held == x.array.size


@COUNTS
@TRAINED
@pytest.mark.parametrize("function", [lambda x: x.reshape(-1), lambda x: x.flatten()], ids=["reshape", "flatten"])
def test_merged_axes_know_their_rows(function: Callable[[Any], Any], trained: bool, count: int) -> None:
    """Each row is several elements then, one after the other or far apart."""
    for x, shape in ((rows_of(count, trained), (1, FEATURES)), (rows_of(count, trained).T, (FEATURES, 1))):
        result = function(x)
        assert isinstance(result.place, Shard)
        assert (result.place.axis, result.place.outer, result.place.inner) == (0, *shape)
        again = result.reshape(x.shape)
        assert (again.place.axis, again.place.outer, again.place.inner) == (x.place.axis, 1, 1)


@COUNTS
def test_one_row_of_several_is_not_squeezed(count: int) -> None:
    for result in (rows_of(count, True).unsqueeze(1).squeeze(), rows_of(count, True).squeeze(0)):
        assert (result.shape, result.place.axis) == ((count, FEATURES), 0)


@COUNTS
def test_rows_that_no_reshape_makes_are_refused(count: int) -> None:
    with pytest.raises(RuntimeError, match="does not become"):
        rows_of(count, True).reshape(-1, 3)


@COUNTS
def test_products_of_rows_with_rows_gather_the_right_factor(count: int) -> None:
    x = rows_of(count, False, zeros_elsewhere())
    product = x @ x.T
    assert (product.shape, product.place.axis, product.rows) == ((count, TOTAL), 0, x.rows)
