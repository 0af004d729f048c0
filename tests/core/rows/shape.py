"""Other shapes, other places, other parts of the same elements."""

from __future__ import annotations

import numpy as np

from sorix_dist.core.ops import indexing, shape
from tests.support.core.opcheck import ELEMENTWISE, Row

ROWS = [
    Row(shape.alias, np.array, ELEMENTWISE),
    Row(shape.clone, np.array, ELEMENTWISE),
    Row(shape.reshape_to, lambda x, shape: np.reshape(x, shape), [((3, 4),), ((2, 6),)], options={"shape": (2, 2, 3)}),
    Row(shape.reshape_to, lambda x, shape: np.reshape(x, shape), [((),), ((1, 1),)], options={"shape": (1,)}),
    Row(shape.reshape_to, lambda x, shape: np.reshape(x, shape), [((0, 3),)], options={"shape": (2, 0)}),
    Row(shape.permute_to, lambda x, axes: np.transpose(x, axes), [((2, 3, 4),), ((2, 0, 3),)],
        options={"axes": (2, 0, 1)}),
    Row(shape.transpose, np.transpose, [((2, 3, 4),), ((),), ((0, 3),)], covers="permute_to"),
    Row(shape.expand_to, lambda x, shape: np.broadcast_to(x, shape), [((3, 1),), ((1,),), ((),), ((2, 1, 4),)],
        options={"shape": (2, 3, 4)}),
    Row(shape.expand_to, lambda x, shape: np.broadcast_to(x, shape), [((1, 4),), ((0, 1),)], options={"shape": (0, 4)}),
    Row(shape.flip_over, lambda x, axis: np.flip(x, axis), [((3, 4),), ((2, 3, 2),), ((0, 2),)],
        options={"axis": (0, 1)}),
    Row(shape.flip_over, lambda x, axis: np.flip(x, axis), [((),)], options={"axis": ()}),
    Row(shape.roll_over, lambda x, shift, axis: np.roll(x, shift, axis), [((3, 4),), ((2, 3, 2),), ((0, 2),)],
        options={"shift": (1, -2), "axis": (0, 1)}),
    Row(shape.roll_over, lambda x, shift, axis: np.roll(x, shift, axis), ELEMENTWISE,
        options={"shift": 2, "axis": None}),
    Row(indexing.take, lambda x, index: x[index], [((4, 3),), ((4, 0),)], options={"index": np.array([0, 2, 2, -1])}),
    Row(indexing.take, lambda x, index: x[index], [((4, 3),)], options={"index": (slice(None, None, -2), None, 1)}),
    Row(indexing.take, lambda x, index: x[index], [((4, 3),)],
        options={"index": (np.array([[0, 1], [1, 0]]), slice(1, 3))}),
    Row(indexing.take, lambda x, index: x[index], [((4, 3),)], options={"index": np.array([True, False, True, True])}),
    Row(indexing.take, lambda x, index: x[index], [((),)], options={"index": (None, ...)}),
    Row(indexing.take, lambda x, index: x[index], [((0, 3),)], options={"index": slice(None)}),
    Row(indexing.scatter_add_to, lambda x, index, shape: np.eye(4)[index].T @ x, [((3, 2),)],
        options={"index": np.array([1, 3, 1]), "shape": (4, 2)}),
    Row(indexing.scatter_add_to, lambda x, index, shape: np.eye(5)[:, :3] @ x, [((3, 2),)],
        options={"index": slice(0, 3), "shape": (5, 2)}),
    Row(indexing.scatter_add_to, lambda x, index, shape: np.array([0, x, 0]), [((),)],
        options={"index": 1, "shape": (3,)}),
    Row(indexing.scatter_add_to, lambda x, index, shape: np.zeros(shape), [((0, 2),)],
        options={"index": np.zeros(0, int), "shape": (3, 2)}),
    Row(indexing.gather, lambda x, dim, index: np.take_along_axis(x, index, dim), [((3, 4),)],
        options={"dim": 1, "index": np.array([[0, 0], [3, 1], [2, 2]])}, covers="take"),
    Row(indexing.gather, lambda x, dim, index: x[index[:, 0], 0][:, None], [((3, 4),)],
        options={"dim": 0, "index": np.array([[2], [2]])}, covers="take"),
    Row(indexing.index_select, lambda x, dim, index: np.take(x, index, dim), [((3, 4),), ((0, 4),)],
        options={"dim": 1, "index": np.array([3, 0, 3])}, covers="take"),
    Row(indexing.masked_select, lambda x, mask: x[:, mask].ravel(), [((3, 2),), ((0, 2),)],
        options={"mask": np.array([True, False])}, covers="take"),
    Row(indexing.diag, np.diag, [((3,),), ((0,),), ((3, 4),), ((4, 2),)], covers=("take", "scatter_add_to")),
    Row(indexing.diag, lambda x, diagonal: np.diag(x, diagonal), [((3,),), ((3, 4),), ((4, 2),)],
        options={"diagonal": -1}, covers=("take", "scatter_add_to")),
]  # fmt: skip
