"""Every operation on pretended ranks: its value, first and second derivatives are those of one process, or all ranks
refuse. No placement depends on how many rows a rank has, and no rank waits for another in vain."""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import sorix_dist.core.ops
from sorix_dist import nn
from sorix_dist.core import Tensor
from sorix_dist.core import functions as sx
from sorix_dist.core.op import REGISTRY
from sorix_dist.core.ops import collective
from sorix_dist.core.ops.matrix import linear
from sorix_dist.core.placement import Shard, tagged
from sorix_dist.nn import functional as F
from tests.support.core import opcheck, placed
from tests.support.core.composed import COMPOSED
from tests.support.core.opcheck import Row
from tests.support.core.pretended import agreed, run

for module in pkgutil.iter_modules(sorix_dist.core.ops.__path__):
    importlib.import_module(f"sorix_dist.core.ops.{module.name}")

LONG = os.environ.get("SORIX_DIST_LONG") == "1"
MOST = 40 if LONG else 3  # placements for one case of a row

# Operations that public functions call with options of this rank's rows, or that are the collectives themselves: the
# functions are what is tested, in the table of cases below.
BY_FUNCTIONS = {
    "select", "take", "put", "scatter_add_to", "expand_to", "reshape_to", "table_rows", "sum_of_rows", "sum_divided",
    "flip_over", "roll_over", "cross_entropy_of_classes", "cross_entropy_rows", "negative_likelihood_rows",
    "batch_norm_of_rows", "all_reduced", "among_all", "cut_rows", "shared_out", "spread_rows", "sum_in_order",
    "take_rows", "put_rows", "summed_parts", "for_each_shard", "first_of", "in_row_order", "mean_square",
}  # fmt: skip
OF_REPRODUCIBLE_MODE = {
    "spread_rows",
    "sum_in_order",
    "take_rows",
    "put_rows",
    "summed_parts",
    "for_each_shard",
    "first_of",
    "in_row_order",
}
# Rows of weights that are rows of a batch are refused by some checks of their shapes, on some ranks only.
NO_ROWS_OF_WEIGHTS = ("conv1d", "group_norm")
ROWS = [
    row
    for row in opcheck.all_rows()
    if not BY_FUNCTIONS & set(row.names) and row.function.__name__ not in NO_ROWS_OF_WEIGHTS
]


def share(seed: str, rows: int) -> list[int]:
    """One of the ways to share rows out."""
    ways = placed.splits(rows)
    return ways[zlib.crc32(seed.encode()) % len(ways)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.title)
def test_operation(row: Row) -> None:
    """Each axis of each input in turn as rows, each input as a part of a sum, and pairs of them: nothing is refused."""
    for shapes in row.cases:
        arrays = opcheck.inputs_of(row, shapes)
        if sum(a.size for a in arrays if a is not None) > 3000:
            continue
        function = functools.partial(row.function, **row.options)
        expected = placed.on_one_process(function, arrays)
        for placements, rows in placed.placements_of(arrays, MOST, row.title + str(shapes)):
            counts = share(f"{row.title}{shapes}{placements}", rows)
            right = placed.check(function, arrays, placements, counts, expected=expected)
            assert right, f"{shapes} {placements} {counts} is refused"


@dataclass(frozen=True)
class Case:
    """A function of tensors of these shapes, "N" for 11 rows, with these placements; see `Rank.tensor`. Integers below
    `labels` are drawn for the inputs numbered in `integers`.

    refused: what the error of all ranks says, "" where the result is right. covers: the operations that it is for.
    """

    function: Callable[..., Any]
    shapes: Sequence[tuple[Any, ...]]
    placements: Sequence[str]
    refused: str = ""
    integers: tuple[int, ...] = ()
    labels: int = 3
    covers: tuple[str, ...] = ()
    between: tuple[float, float] = (-1.5, 1.5)


N3, TN3 = ("N", 3), (2, "N", 3)
PLACES = "sx.all_gather"
MASK = np.arange(11) % 3 == 0


def cases(kind: str, group: dict[str, list[Any]]) -> list[Any]:
    return [
        pytest.param(Case(*entry[:3], **(entry[3] if len(entry) > 3 else {})), id=f"{kind}: {name}")
        for name, entry in group.items()
    ]


SHAPES = {
    "reshape to features": [lambda x: x.reshape(-1, 6), [("N", 2, 3)], ["0"], {"covers": ("reshape_to",)}],
    "reshape by len": [lambda x: x.reshape(len(x), 6), [("N", 2, 3)], ["0"]],
    "reshape by len and -1": [lambda x: x.reshape(len(x), -1), [("N", 2, 3)], ["0"]],
    "reshape to images": [lambda x: x.reshape(-1, 1, 2, 3), [("N", 6)], ["0"]],
    "reshape to images by len": [lambda x: x.reshape(len(x), 1, 2, 3), [("N", 6)], ["0"]],
    "reshape merges before": [lambda x: x.reshape(-1, 3), [TN3], ["1"]],
    "reshape merges behind": [lambda x: x.reshape(-1), [N3], ["0"]],
    "reshape apart again": [lambda x: sx.sin(x.reshape(-1, 3)).reshape(2, -1, 3), [TN3], ["1"]],
    "reshape with 1 in front": [lambda x: x.reshape(1, -1, 3), [N3], ["0"]],
    "reshape mixes rows": [lambda x: x.reshape(33, -1), [("N", 6)], ["0"], {"refused": "-1 for the axis"}],
    "reshape a sum": [lambda x: x.reshape(3, 2), [(2, 3)], ["partial"]],
    "view": [lambda x: x.view(-1, 2, 3), [("N", 6)], ["0"]],
    "flatten": [lambda x: x.flatten(), [TN3], ["1"]],
    "flatten behind": [lambda x: x.flatten(1), [("N", 2, 3)], ["0"]],
    "flatten merged rows": [lambda x: x.flatten(0, 1), [(2, 22, 3)], ["1 2 1"]],
    "squeeze": [lambda x: x.squeeze(), [("N", 1, 3)], ["0"]],
    "squeeze of a named axis": [lambda x: x.squeeze(1), [("N", 1)], ["0"]],
    "unsqueeze": [lambda x: x.unsqueeze(0), [N3], ["0"]],
    "expand": [lambda x: x.unsqueeze(1).expand(-1, 4, 3), [N3], ["0"], {"covers": ("expand_to",)}],
    "expand to the global batch": [lambda x: x.expand(11, 4), [("N", 1)], ["0"]],
    "repeat": [lambda x: x.repeat(2, 3), [N3], ["0"]],
    "permute": [lambda x: x.permute(2, 0, 1), [TN3], ["1"]],
    "movedim": [lambda x: sx.movedim(x, 1, 0), [TN3], ["1"]],
    "transposed": [lambda x: x.T, [N3], ["0"]],
    "flip features": [lambda x: sx.flip(x, 1), [N3], ["0"], {"covers": ("flip_over",)}],
    "flip rows": [lambda x: sx.flip(x, 0), [N3], ["0"], {"refused": PLACES}],
    "roll features": [lambda x: sx.roll(x, 1, 1), [N3], ["0"], {"covers": ("roll_over",)}],
    "roll rows": [lambda x: sx.roll(x, 1, 0), [N3], ["0"], {"refused": PLACES}],
    "roll all": [lambda x: sx.roll(x, 1), [N3], ["0"], {"refused": PLACES}],
    "cat rows": [lambda x, y: sx.cat([x, y]), [N3, N3], ["0", "0"]],
    "cat rows and all": [lambda x, y: sx.cat([x, y]), [N3, (2, 3)], ["0", ""]],
    "cat features": [lambda x, y: sx.cat([x, y], 1), [N3, ("N", 2)], ["0", "0"]],
    "cat features of all": [lambda x, y: sx.cat([x, y], 1), [N3, N3], ["0", ""]],
    "cat sums": [lambda x, y: sx.cat([x, y]), [(3,), (3,)], ["partial", "partial"]],
    "cat a sum and all": [lambda x, y: sx.cat([x, y]), [(3,), (3,)], ["partial", ""]],
    "stack": [lambda x, y: sx.stack([x, y]), [N3, N3], ["0", "0"]],
    "stack of all": [lambda x, y: sx.stack([x, y], 1), [N3, N3], ["0", ""]],
    "split features": [lambda x: sx.split(x, 2, 1), [N3], ["0"]],
    "split rows": [lambda x: sx.split(x, 2), [N3], ["0"], {"refused": PLACES}],
    "views apart": [lambda x, y: sx.chunk(sx.cat([x, y]), 2)[1], [N3, N3], ["0", "0"]],
    "views by len": [lambda x, y: sx.sin(sx.cat([x, y]))[len(x) :], [N3, N3], ["0", "0"]],
    "first view by len": [lambda x, y: sx.sin(sx.cat([x, y]))[: len(x)], [N3, N3], ["0", "0"]],
    "unbind features": [lambda x: sx.unbind(x, 1), [N3], ["0"]],
    "pad features": [lambda x: sx.pad(x, (1, 2)), [N3], ["0"]],
    "pad rows": [lambda x: sx.pad(x, (0, 0, 1, 2)), [N3], ["0"]],
    "pad rows by the edge": [lambda x: sx.pad(x, (0, 0, 1, 2), mode="replicate"), [N3], ["0"]],
    "cut rows": [lambda x: sx.pad(x, (0, 0, -1, 0)), [N3], ["0"]],
    "tril": [lambda x: x.tril(), [("N", 3, 3)], ["0"], {"covers": ("select",)}],
    "tril of rows": [lambda x: x.triu(), [N3], ["0"]],
}  # fmt: skip


def assigned(key: Any, into: Any = sx.sin) -> Any:
    """A function of x and y that assigns y to elements of what `into` makes of x."""

    def function(x: Any, y: Any) -> Any:
        z = into(x)
        z[key(x) if callable(key) else key] = y
        return z

    return function


def zeros_of_rows(x: Any) -> Any:
    return sx.zeros(len(x), 3, dtype=x.dtype)


ASSIGNMENTS = {
    "all": [assigned(...), [N3, N3], ["0", "0"], {"covers": ("put",)}],
    "all by all": [assigned(slice(None)), [N3, N3], ["0", ""]],
    "rows to all": [assigned(slice(None)), [N3, N3], ["", "0"]],
    "all by a row": [assigned(slice(None)), [N3, (3,)], ["0", ""]],
    "a column": [assigned((slice(None), 1)), [N3, ("N",)], ["0", "0"]],
    "a column of all": [assigned((..., 0)), [N3, ("N",)], ["0", ""]],
    "a column of zeros": [assigned((slice(None), 1), zeros_of_rows), [N3, ("N",)], ["0", "0"]],
    "columns by more": [assigned((slice(None), slice(1, 3))), [N3, (1, 1, 2)], ["0", ""]],
    "a sum to a column": [assigned((slice(None), 1)), [N3, ()], ["0", "partial"]],
    "a time in front": [assigned(1), [TN3, N3], ["1", "0"]],
    "a time in the middle": [assigned((slice(None), 0)), [("N", 2, 3), N3], ["0", "0"]],
    "a row": [assigned(0), [N3, (3,)], ["0", ""], {"refused": PLACES}],
    "rows in between": [assigned(slice(1, 2)), [N3, (3,)], ["0", ""], {"refused": PLACES}],
    "a mask of rows": [assigned(lambda x: x.detach().sum(1) > 0), [N3, (3,)], ["0", ""]],
    "a mask of elements": [assigned(lambda x: x.detach() > 0), [N3, ()], ["0", ""]],
    "an element of a sum": [assigned(1), [(3,), ()], ["partial", ""]],
    "a sum to an element": [assigned(1), [(3,), ()], ["", "partial"]],
    "a sum to a sum": [assigned(slice(1, 3)), [(3,), (2,)], ["partial", "partial"]],
    "in place": [lambda x, y: sx.sin(x).mul_(y).add_(y, alpha=2).clamp_(min=-1), [N3, (3,)], ["0", ""]],
    "rows in place": [lambda x, y: sx.sin(x).sub_(y), [N3, N3], ["0", "0"]],
    "rows to all in place": [lambda x, y: sx.sin(x).add_(y), [N3, N3], ["", "0"]],
    "a sum in place": [lambda x, y: sx.sin(x).add_(y), [(3,), (3,)], ["partial", "partial"]],
    "filled": [lambda x, y: sx.sin(x).fill_(y), [N3, ()], ["0", "partial"]],
    "copied": [lambda x, y: sx.sin(x).copy_(y), [N3, N3], ["0", "0"]],
    "masked in place": [lambda x, y: sx.sin(x).masked_fill_(y.detach() > 0, 2.0), [N3, ("N", 1)], ["0", "0"]],
}  # fmt: skip
INDICES = {
    "all": [lambda x: x[:], [N3], ["0"], {"covers": ("take",)}],
    "dots": [lambda x: x[..., 1], [N3], ["0"]],
    "new axis": [lambda x: x[None, :, 1:], [N3], ["0"]],
    "integer": [lambda x: x[0], [N3], ["0"], {"refused": PLACES}],
    "slice": [lambda x: x[1:3], [N3], ["0"], {"refused": PLACES}],
    "step": [lambda x: x[::2], [N3], ["0"], {"refused": PLACES}],
    "array": [lambda x: x[np.array([0, 2])], [N3], ["0"], {"refused": PLACES}],
    "mask of rows": [lambda x: x[x.detach().sum(1) > 0], [N3], ["0"]],
    "mask of all": [lambda x, y: x[y.detach() > 0], [N3, ("N",)], ["0", ""]],
    "array of bools": [lambda x: x[MASK], [N3], ["0"]],
    "mask of elements": [lambda x: x[x > 0], [N3], ["0"]],
    "mask along the second axis": [lambda x: x[:, x.detach().sum((0, 2)) > 0].sum(), [TN3], ["1"]],
    "mask of what all hold": [lambda x, y: x[y.detach() > 0], [N3, ("N",)], ["", "0"]],
    "masks of masks": [lambda x: (lambda y: y[y[:, 0].detach() < 1])(x[x[:, 1].detach() > -1]), [N3], ["0"]],
    "rows of a table": [lambda t, i: t[i], [(3, 2), ("N",)], ["", "0"], {"integers": (1,)}],
    "own class": [lambda x, i: x[np.arange(len(x)), i], [N3, ("N",)], ["0", "0"], {"integers": (1,)}],
    "of a sum": [lambda x: x[1:], [(3,)], ["partial"]],
    "gather": [lambda x, i: sx.gather(x, 1, i), [N3, ("N", 2)], ["0", "0"], {"integers": (1,)}],
    "gather by all": [lambda x, i: sx.gather(x, 1, i), [N3, ("N", 2)], ["0", ""], {"integers": (1,)}],
    "gather from rows": [lambda x, i: sx.gather(x, 0, i), [N3, ("N", 3)], ["0", "0"], {"integers": (1,)}],
    "gather from all": [lambda x, i: sx.gather(x, 0, i), [(3, 2), ("N", 2)], ["", "0"], {"integers": (1,)}],
    "gather from a sum": [lambda x, i: sx.gather(x, 0, i), [(3, 2), (2, 2)], ["partial", ""], {"integers": (1,)}],
    "take_along_dim": [lambda x, i: sx.take_along_dim(x, i, 1), [N3, ("N", 2)], ["0", "0"], {"integers": (1,)}],
    "scatter_add": [lambda x, i, y: sx.scatter_add(x, 1, i, y), [N3, N3, N3], ["0"] * 3, {"integers": (1,),
        "covers": ("scatter_add_to",)}],
    "scatter_add to a sum": [lambda x, i, y: sx.scatter_add(x, 0, i, y), [(3,)] * 3, ["partial", "", "partial"],
        {"integers": (1,)}],
    "scatter_add to all": [lambda x, i, y: sx.scatter_add(x, 0, i, y), [(3, 3), N3, N3], ["", "0", "0"],
        {"integers": (1,)}],
    "index_select": [lambda x, i: sx.index_select(x, 1, i), [N3, (2,)], ["0", ""], {"integers": (1,)}],
    "index_select rows": [lambda x, i: sx.index_select(x, 0, i), [N3, (2,)], ["0", ""], {"integers": (1,),
        "refused": PLACES}],
    "index_select by rows": [lambda x, i: sx.index_select(x, 0, i), [(3, 2), ("N",)], ["", "0"], {"integers": (1,)}],
    "masked_select": [lambda x: sx.masked_select(x, x > 0), [N3], ["0"]],
    "masked_select features": [lambda x, y: sx.masked_select(x, y > 0), [N3, (3,)], ["0", ""]],
    "masked_select by rows": [lambda x, y: sx.masked_select(x, y > 0), [("N", 1), ("N", 1)], ["0", ""]],
    "one_hot": [lambda i: sx.one_hot(i), [("N",)], ["0"], {"integers": (0,)}],
    "diag": [lambda x: sx.diag(x), [("N",)], ["0"]],
    "embedding": [lambda i, t: F.embedding(i, t, 1), [("N", 2), (3, 4)], ["0", ""], {"integers": (0,),
        "covers": ("table_rows", "sum_of_rows")}],
    "embedding of a sum": [lambda i, t: F.embedding(i, t), [("N",), (3, 4)], ["0", "partial"], {"integers": (0,)}],
    "embedding of rows": [lambda i, t: F.embedding(i, t), [("N",), N3], ["0", "0"], {"integers": (0,)}],
}  # fmt: skip
CHOICES = {
    "where": [lambda x, y: sx.where(x > 0, x, y), [N3, (3,)], ["0", ""]],
    "where of all": [lambda x, y: sx.where(y > 0, x, y), [N3, N3], ["0", ""]],
    "where by a sum": [lambda x, y: sx.where(y > 0, x, 0.0), [N3, (3,)], ["0", "partial"]],
    "where of a sum": [lambda x: sx.where(np.array([True, False, True]), x, 0.0), [(3,)], ["partial"]],
    "where by an array": [lambda x: sx.where(MASK[:, None], x, 0.5), [N3], ["0"]],
    "where of numbers": [lambda x: sx.where(x > 0, 1.0, 0.5) * x, [N3], ["0"]],
    "masked_fill": [lambda x: x.masked_fill(x > 0, 0.5), [N3], ["0"]],
    "masked_fill by rows": [lambda x, y: x.masked_fill(y > 0, 0.5), [N3, ("N", 1)], ["", "0"]],
    "clamp": [lambda x, y: x.clamp(-y * y, 1.0), [N3, (3,)], ["0", "partial"]],
    "maximum": [lambda x, y: sx.max(x, y), [N3, N3], ["0", ""]],
    "rows beside columns": [lambda x, y: sx.where(x > y, x, y), [("N", 1), ("N",)], ["0", "0"]],
}  # fmt: skip
REDUCTIONS = {
    "var": [lambda x: x.var(), [N3], ["0"]],
    "var of rows": [lambda x: x.var(0), [N3], ["0"]],
    "std": [lambda x: x.std(0, keepdims=True), [N3], ["0"]],
    "norm": [lambda x: sx.norm(x), [N3], ["0"]],
    "norm of rows": [lambda x: sx.norm(x, dim=0, keepdim=True), [N3], ["0"]],
    "1-norm": [lambda x: sx.norm(x, 1, dim=0), [N3], ["0"]],
    "3-norm": [lambda x: sx.norm(x + 2, 3), [N3], ["0"]],
    "largest norm": [lambda x: sx.norm(x, float("inf")), [N3], ["0"]],
    "prod": [lambda x: sx.prod(x), [("N",)], ["0"]],
    "prod of features": [lambda x: sx.prod(x, 1, keepdim=True), [N3], ["0"]],
    "cumsum": [lambda x: sx.cumsum(x, 0), [N3], ["0"]],
    "logsumexp": [lambda x: sx.logsumexp(x, 0), [N3], ["0"]],
    "softmax over rows": [lambda x: sx.softmax(x, 0), [N3], ["0"]],
    "max": [lambda x: sx.max(x, 0)[0], [N3], ["0"]],
    "max of features": [lambda x: sx.max(x, 1)[0], [N3], ["0"]],
    "min": [lambda x: sx.min(x), [N3], ["0"]],
    "argmax": [lambda x: x.argmax(0), [N3], ["0"]],
    "argmax of features": [lambda x: x.argmax(1), [N3], ["0"]],
    "sort": [lambda x: sx.sort(x, 0)[0], [N3], ["0"]],
    "sort features": [lambda x: sx.sort(x, 1), [N3], ["0"]],
    "topk": [lambda x: sx.topk(x, 2, 0)[0], [N3], ["0"]],
    "topk of a sum": [lambda x: sx.topk(x, 2)[0], [(3,)], ["partial"]],
    "any": [lambda x: (x > 1).any(0), [N3], ["0"]],
    "all": [lambda x: (x > 1).all(), [N3], ["0"]],
    "median by sorting": [lambda x: sx.sort(x, 0)[0][5], [N3], ["0"]],
    "sum, then mean": [lambda x: x.sum(0).mean(), [N3], ["0"]],
    "mean of merged rows": [lambda x: x.mean((0, 1)), [(22, 3)], ["0 2 1"]],
    "quotient of sums": [lambda x, y: (x * y).sum() / (y * y).sum(), [N3, N3], ["0", "0"]],
    "root": [lambda x: x.square().mean().sqrt(), [N3], ["0"], {"covers": ("all_reduced",)}],
    "sum and weights": [lambda x, w: x.sum() + w.square().sum(), [N3, (3,)], ["0", ""], {"covers": ("shared_out",)}],
    "sum and numbers of another dtype": [lambda x: x.sum(0) + np.float32([0.1, 0.2, 0.3]), [N3], ["0"]],
    "sum of integers and a number": [lambda i: i.sum() + 0.5, [("N",)], ["0"], {"integers": (0,)}],
    "sum of integers and one": [lambda i: 1 - i.sum(0), [N3], ["0"], {"integers": (0,)}],
    "global value": [collective.to_replicate, [N3], ["0"], {"covers": ("among_all", "cut_rows")}],
}  # fmt: skip
PRODUCTS = {
    "matrix, vector": [lambda x, v: x @ v, [N3, (3,)], ["0", ""]],
    "vector, matrix": [lambda v, x: v @ x, [("N",), N3], ["0", "0"]],
    "vectors": [lambda v, x: v @ x, [("N",), ("N",)], ["0", "0"]],
    "vectors, one of all": [lambda v, x: v @ x, [("N",), ("N",)], ["0", ""]],
    "pairs": [lambda x: x @ x.T, [N3], ["0"]],
    "gram": [lambda x: x.T @ x, [N3], ["0"]],
    "gram of all": [lambda x, y: x.T @ y, [N3, N3], ["0", ""]],
    "stacks": [lambda x, y: x @ y, [("N", 2, 3), ("N", 3, 2)], ["0", "0"]],
    "stack and all": [lambda x, y: x @ y, [("N", 2, 3), (3, 2)], ["0", ""]],
    "stacks of all": [lambda x, y: x @ y, [("N", 2, 3), ("N", 3, 2)], ["0", ""]],
    "time first": [lambda x, y: x @ y, [TN3, (3, 2)], ["1", ""]],
    "sums": [lambda x, y: x @ y, [(2, 3), (3, 2)], ["partial", "partial"]],
    "a sum and rows": [lambda x, y: x @ y, [N3, (3, 2)], ["0", "partial"]],
    "outer": [sx.outer, [("N",), (3,)], ["0", ""]],
    "outer of rows": [sx.outer, [("N",), ("N",)], ["0", "0"]],
    "einsum pairs": [lambda x: sx.einsum("ik,jk->ij", x, x), [N3], ["0"]],
    "einsum moments": [lambda x: sx.einsum("ni,nj->ij", x, x), [N3], ["0"]],
    "einsum weights": [lambda x, w: sx.einsum("tni,io->nto", x, w), [TN3, (3, 2)], ["1", ""]],
    "einsum trace of rows": [lambda x, y: sx.einsum("ni,in->", x, y), [N3, (3, "N")], ["0", "1"]],
    "einsum three": [lambda x, y, w: sx.einsum("ni,ij,nj->n", x, w, y), [N3, N3, (3, 3)], ["0", "0", ""]],
    "linear": [lambda x, w, b: linear(x, w, b), [N3, (3, 2), (2,)], ["0", "", ""]],
}  # fmt: skip


def classes(**options: Any) -> Callable[..., Tensor]:
    return lambda x, i: F.cross_entropy(x, i, **options)


HEAVY = np.array([0.5, 0.0, 2.0])
LOSSES: dict[str, list[Any]] = {}
for how in ("mean", "sum", "none"):
    for name, options in {
        "cross_entropy": {}, "weighted": {"weight": HEAVY}, "ignoring": {"ignore_index": 1},
        "smoothed": {"label_smoothing": 0.1}, "weighted and smoothed": {"weight": HEAVY, "label_smoothing": 0.1},
        "weighted and ignoring": {"weight": HEAVY, "ignore_index": 2},
    }.items():  # fmt: skip
        function, more = classes(reduction=how, **options), {"integers": (1,)}
        LOSSES[f"{name}, {how}"] = [function, [N3, ("N",)], ["0", "0"], more]
        LOSSES[f"{name}, {how}, labels of all"] = [function, [N3, ("N",)], ["0", ""], more]
        LOSSES[f"{name}, {how}, images"] = [function, [("N", 3, 2), ("N", 2)], ["0", "0"], more]
    for name, loss in {
        "mse": F.mse_loss, "l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss, "huber": F.huber_loss,
    }.items():  # fmt: skip
        LOSSES[f"{name}, {how}"] = [lambda x, y, f=loss, h=how: f(x, y, reduction=h), [N3, N3], ["0", "0"]]
        LOSSES[f"{name}, {how}, targets of all"] = [
            lambda x, y, f=loss, h=how: f(x, y, reduction=h),
            [N3, N3],
            ["0", ""],
        ]
        LOSSES[f"{name}, {how}, time first"] = [
            lambda x, y, f=loss, h=how: f(x, y, reduction=h),
            [TN3, TN3],
            ["1", "1"],
        ]
    LOSSES[f"nll, {how}"] = [
        lambda x, i, h=how: F.nll_loss(sx.log_softmax(x, 1), i, HEAVY, reduction=h), [N3, ("N",)], ["0", "0"],
        {"integers": (1,)},
    ]  # fmt: skip
    LOSSES[f"soft labels, {how}"] = [
        lambda x, y, h=how: F.cross_entropy(x, sx.softmax(y, 1), HEAVY, reduction=h),
        [N3, N3],
        ["0", "0"],
    ]
    LOSSES[f"one-hot labels, {how}"] = [
        lambda x, i, h=how: F.cross_entropy(x, sx.one_hot(i, 3), HEAVY, one_hot=True, reduction=h), [N3, ("N",)],
        ["0", "0"], {"integers": (1,)},
    ]  # fmt: skip
    LOSSES[f"binary, {how}"] = [
        lambda x, y, h=how: F.binary_cross_entropy(sx.sigmoid(x), sx.sigmoid(y), reduction=h),
        [N3, N3],
        ["0", "0"],
    ]
    LOSSES[f"binary of logits, {how}"] = [
        lambda x, y, h=how: F.binary_cross_entropy_with_logits(
            x, sx.sigmoid(y).detach(), reduction=h, weight=np.array([1.0, 2, 3]), pos_weight=np.array([1.0, 2, 3])
        ), [N3, N3], ["0", "0"],
    ]  # fmt: skip
    LOSSES[f"weights of rows, {how}"] = [
        lambda x, y, w, h=how: F.binary_cross_entropy_with_logits(x, sx.sigmoid(y), (w * w).detach(), reduction=h),
        [N3, N3, ("N", 1)], ["0", "0", "0"],
    ]  # fmt: skip
    LOSSES[f"weights of rows of all, {how}"] = [
        lambda x, y, w, h=how: F.binary_cross_entropy_with_logits(x, sx.sigmoid(y), (w * w).detach(), reduction=h),
        [N3, N3, ("N", 1)], ["0", "0", ""],
    ]  # fmt: skip
for how in ("mean", "sum", "none", "batchmean"):
    LOSSES[f"kl_div, {how}"] = [
        lambda x, y, h=how: F.kl_div(sx.log_softmax(x, 1), sx.softmax(y, 1), reduction=h),
        [N3, N3],
        ["0", "0"],
    ]
LOSSES |= {
    "classes along rows": [classes(), [(3, "N"), (3,)], ["1", ""], {"integers": (1,)}],
    "all scores, labels of rows": [classes(), [N3, ("N",)], ["", "0"], {"integers": (1,)}],
    "scores as a sum": [classes(), [(3, 3), (3,)], ["partial", ""], {"integers": (1,)}],
    "labels of selected rows": [lambda x, i: classes()(x[i > 0], i[i > 0]), [N3, ("N",)], ["0", "0"], {"integers": (1,),
        "covers": ("cross_entropy_of_classes", "cross_entropy_rows", "negative_likelihood_rows", "sum_divided")}],
    "squares of selected rows": [lambda x, y: F.mse_loss(x[y[:, 0] > 0], y[y[:, 0] > 0]), [N3, N3], ["0", "0"],
        {"covers": ("mean_square",)}],
}  # fmt: skip


def layer(make: Callable[[], Any], pick: Callable[[Any], Any] = lambda y: y) -> Callable[..., Any]:
    """The layer, with parameters that are drawn alike for each rank."""

    def apply(x: Tensor, *others: Tensor) -> Any:
        module = make()
        rng = np.random.default_rng(0)
        for parameter in module.parameters():
            parameter.array[...] = rng.uniform(-1, 1, parameter.shape)
        return pick(module(x, *others))

    return apply


IMAGES = ("N", 2, 5, 4)
LAYERS = {
    "Linear": [layer(lambda: nn.Linear(3, 2, dtype="float64")), [N3], ["0"]],
    "conv2d": [lambda x, w, b: F.conv2d(x, w, b, padding=1), [IMAGES, (3, 2, 3, 3), (3,)], ["0", "", ""]],
    "conv1d": [lambda x, w: F.conv1d(x, w, stride=2), [("N", 2, 7), (3, 2, 3)], ["0", ""]],
    "conv_transpose2d": [lambda x, w: F.conv_transpose2d(x, w), [IMAGES, (2, 3, 2, 2)], ["0", ""]],
    "max_pool2d": [lambda x: F.max_pool2d(x, 2), [IMAGES], ["0"]],
    "max_pool1d": [lambda x: F.max_pool1d(x, 2), [("N", 2, 7)], ["0"]],
    "max_unpool2d": [lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), [IMAGES], ["0"],
        {"covers": ("max_pool_indices",)}],
    "avg_pool2d": [lambda x: F.avg_pool2d(x, 2), [IMAGES], ["0"]],
    "adaptive_avg_pool2d": [lambda x: F.adaptive_avg_pool2d(x, (2, 3)), [IMAGES], ["0"]],
    "batch_norm": [lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), [N3, (3,), (3,)], ["0", "", ""],
        {"covers": ("batch_norm_of_rows",)}],
    "batch_norm of images": [lambda x: F.batch_norm(x, training=True), [IMAGES], ["0"]],
    "batch_norm over time": [lambda x: F.batch_norm(x, training=True), [(3, 2, "N")], ["2"]],
    "batch_norm of channels": [lambda x: F.batch_norm(x, training=True), [(3, "N")], ["1"]],
    "layer_norm": [lambda x, w: F.layer_norm(x, 3, w), [TN3, (3,)], ["1", ""]],
    "layer_norm over rows": [lambda x: F.layer_norm(x, 11), [(3, "N")], ["1"]],
    "group_norm": [lambda x: F.group_norm(x, 2), [("N", 4, 3)], ["0"]],
    "attention": [lambda q, k: F.scaled_dot_product_attention(q, k, k), [("N", 4, 3), ("N", 5, 3)], ["0", "0"]],
    "causal attention": [lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True), [("N", 2, 4, 3)], ["0"]],
    "queries as rows": [lambda q, k: F.scaled_dot_product_attention(q, k, k), [N3, (4, 3)], ["0", ""]],
    "causal queries as rows": [lambda q, k: F.scaled_dot_product_attention(q, k, k, is_causal=True), [N3, N3],
        ["0", ""]],
    "causal rows": [lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True), [N3], ["0"]],
    "MultiheadAttention over rows": [layer(lambda: nn.MultiheadAttention(4, 2, dtype="float64"), lambda y: y[0]),
        [("N", 4)], ["0"]],
    "MultiheadAttention with memory of all": [layer(lambda: nn.MultiheadAttention(4, 2, batch_first=True,
        dtype="float64"), lambda y: y[0]), [("N", 3, 4), ("N", 2, 4)], ["0", ""]],
    "keys as rows": [lambda q, k: F.scaled_dot_product_attention(q, k, k), [N3, N3], ["0", "0"]],
    "padded attention": [lambda q, m: F.scaled_dot_product_attention(q, q, q, m > -1), [("N", 4, 3), ("N", 1, 4)],
        ["0", "0"]],
    "attention padded alike": [lambda q, m: F.scaled_dot_product_attention(q, q, q, m), [("N", 4, 3), ("N", 1, 4)],
        ["0", ""]],
    "MultiheadAttention": [layer(lambda: nn.MultiheadAttention(4, 2, batch_first=True, dtype="float64"),
        lambda y: y[0]), [("N", 3, 4)], ["0"]],
    "MultiheadAttention, time first": [layer(lambda: nn.MultiheadAttention(4, 2, dtype="float64"), lambda y: y[0]),
        [(3, "N", 4)], ["1"]],
    "LSTM": [layer(lambda: nn.LSTM(3, 2, bidirectional=True, dtype="float64"), lambda y: [y[0], *y[1]]), [TN3], ["1"]],
    "LSTM, batch first": [layer(lambda: nn.LSTM(3, 2, 2, batch_first=True, dtype="float64"), lambda y: y[0]),
        [("N", 2, 3)], ["0"]],
    "LSTM over the batch": [layer(lambda: nn.LSTM(3, 2, dtype="float64"), lambda y: y[0]), [("N", 2, 3)], ["0"]],
    "GRU": [layer(lambda: nn.GRU(3, 2, dtype="float64"), lambda y: y[0]), [TN3], ["1"]],
    "GRU with a state": [layer(lambda: nn.GRU(3, 2, dtype="float64"), lambda y: y[0]), [TN3, (1, "N", 2)], ["1", "1"]],
    "GRU with a state of all": [layer(lambda: nn.GRU(3, 2, dtype="float64"), lambda y: y[0]), [TN3, (1, "N", 2)],
        ["1", ""]],
}  # fmt: skip
GROUPS = {
    "shape": SHAPES, "index": INDICES, "choice": CHOICES, "reduction": REDUCTIONS, "product": PRODUCTS, "loss": LOSSES,
    "assignment": ASSIGNMENTS,
    "layer": LAYERS, "composed": COMPOSED,
}  # fmt: skip
ALL = [case for kind, group in GROUPS.items() for case in cases(kind, group)]


def arrays_of(case: Case) -> list[Any]:
    """The inputs, the same whenever it is asked for."""
    rng = np.random.default_rng(7)
    drawn = []
    for i, shape in enumerate(case.shapes):
        extents = [11 if n == "N" else n for n in shape]
        integers = i in case.integers
        drawn.append(
            rng.integers(0, case.labels, extents) if integers else np.asarray(rng.uniform(*case.between, extents))
        )
    return drawn


@pytest.mark.parametrize("case", ALL)
def test_function(case: Case) -> None:
    arrays = arrays_of(case)
    expected = placed.on_one_process(case.function, arrays)
    for counts in placed.splits(11) if LONG else ([1, 10], [0, 9, 2], share(f"{case.shapes}{case.placements}", 11)):
        right = placed.check(case.function, arrays, case.placements, counts, expected=expected)
        assert right == (not case.refused), f"on {counts}"
    if case.refused:
        plain, *ranks = [
            outcome
            for counts in ([11], [6, 5])
            for outcome in run(lambda rank: placed.outcome(case.function, arrays, case.placements, rank), counts)
        ]
        assert not isinstance(plain, Exception), "one process refuses too"
        for error in ranks:
            with pytest.raises(RuntimeError, match=re.escape(case.refused)):
                raise error


SHARDS = [3, 3, 2, 3]  # rows of each virtual shard
IN_ORDER = [[6, 5], [11, 0], [3, 5, 3], [0, 8, 3]]  # splits of whole shards


@pytest.mark.parametrize("case", ALL)
def test_function_in_reproducible_mode(case: Case) -> None:
    """Outside of a forward: as on one process, with the same bits on any number of ranks, or refused by all ranks."""
    arrays = arrays_of(case)

    def bits(rank: Any) -> list[Any]:
        results = placed.outcome(case.function, arrays, case.placements, rank)
        return [
            np.zeros(x.shape) if isinstance(p := x.place, Shard) and not p.batch.in_order else rank.whole(x)
            for x in results
        ]

    (reference,) = run(bits, [11], SHARDS)
    for counts in IN_ORDER if LONG else IN_ORDER[-1:]:
        if placed.check(case.function, arrays, case.placements, counts, SHARDS):
            for results in agreed(run(bits, counts, SHARDS)) or []:
                for x, y in zip(results, reference, strict=True):
                    np.testing.assert_array_equal(x, y, f"on {counts}")


def test_every_operation_is_here() -> None:
    """Or is one that virtual shards need inside of a forward, which tests/parallel runs."""
    covered = {name for row in ROWS for name in row.names}
    covered |= {name for param in ALL for name in param.values[0].covers}
    assert set(REGISTRY) - covered == OF_REPRODUCIBLE_MODE


# -- the harness


def test_a_waiting_rank_is_found() -> None:
    outcomes = run(lambda rank: rank.reduce(np.ones(2), "a test") if rank.number else None, [1, 2])
    with pytest.raises(AssertionError, match="rank 0: the end; rank 1: reduce a test"):
        agreed(outcomes)


def test_a_different_collective_is_found() -> None:
    outcomes = run(lambda rank: rank.reduce(np.ones(2 + rank.number), "a test"), [1, 2])
    with pytest.raises(AssertionError, match=r"\(2,\) float64; rank 1: reduce a test \(3,\)"):
        agreed(outcomes)


def test_a_refusal_of_some_is_found() -> None:
    def some_refuse(rank: Any) -> None:
        if rank.number:
            raise ValueError("only here")

    with pytest.raises(AssertionError, match="some ranks raise"):
        agreed(run(some_refuse, [1, 2]))


def test_a_wrong_placement_is_found() -> None:
    with pytest.raises(AssertionError):  # each rank has its own sum
        placed.check(lambda x: tagged(Tensor.of(x.array.sum(0)), None), [np.ones((3, 2))], ["0"], [2, 1])
