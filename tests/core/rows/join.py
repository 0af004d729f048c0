"""Several tensors into one, and borders."""

from __future__ import annotations

from typing import Any

import numpy as np

from sorix_dist.core.ops import join, shape
from tests.support.core.opcheck import Row


def together(*parts: Any, **options: Any) -> Any:
    return np.concatenate(parts, **options)


def side_by_side(*parts: Any, **options: Any) -> Any:
    return np.stack(parts, **options)


def tiled(x: Any) -> Any:
    return shape.repeat(x, 2, 1, 3)


def padded(x: Any, pad: Any, mode: str) -> Any:
    names = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    return np.pad(x, [(0, 0)] * (x.ndim - 2) + [pad[2:], pad[:2]], mode=names[mode])


ROWS = [
    Row(join.concatenate, together, [((2, 3), (1, 3), (4, 3)), ((0, 3), (2, 3)), ((0, 2), (0, 2)), ((2,), (3,))],
        options={"axis": 0}, lacks={"0-d": "there is no dimension along which to join"}),
    Row(join.concatenate, together, [((2, 3), (2, 0), (2, 1))], options={"axis": 1}),
    Row(join.stack_along, side_by_side, [((2, 3), (2, 3)), ((0, 3), (0, 3)), ((), (), ())], options={"axis": 0}),
    Row(join.stack_along, side_by_side, [((2, 3), (2, 3), (2, 3))], options={"axis": 2}),
    Row(join.pad, lambda x, pad, value: np.pad(x, [(0, 2), (1, 0)], constant_values=value), [((2, 3),), ((0, 3),)],
        options={"pad": (1, 0, 0, 2), "value": 1.5}, covers="pad_with"),
    Row(join.pad, lambda x, pad: np.pad(x[..., 1:], [(0, 0)] * (x.ndim - 1) + [(0, 2)]), [((2, 3),), ((4,),)],
        options={"pad": (-1, 2)}, covers="pad_with"),
    Row(join.pad, lambda x, pad: x, [((),)], options={"pad": ()}, covers="pad_with"),
    *(Row(join.pad, padded, [((3, 4),), ((2, 3, 3),)], options={"pad": (2, 1, 1, 2), "mode": mode}, covers="take")
      for mode in ("reflect", "replicate", "circular")),
    Row(tiled, lambda x: np.tile(x, (2, 1, 3)), [((3, 2),), ((2, 1, 2),), ((),), ((0, 2),)],
        covers=("expand_to", "reshape_to")),
]  # fmt: skip
