"""One of several elements at each place."""

from __future__ import annotations

import numpy as np

from sorix_dist.core.ops import choose
from tests.support.core.opcheck import PAIRS, Row

MASK = np.arange(4) % 3 == 0
SQUARES = [((3, 4),), ((2, 4, 3),), ((0, 3),), ((2, 0, 3),)]

ROWS = [
    Row(choose.select, lambda x, y, condition: np.where(condition, x, y), [((3, 4), (4,)), ((), (1, 4)), ((0, 4), ())],
        options={"condition": MASK}),
    Row(choose.maximum, np.maximum, PAIRS),
    Row(choose.minimum, np.minimum, PAIRS),
    Row(choose.clamp, np.clip, [((3, 4), (), ()), ((3, 4), (4,), (3, 1)), ((0, 4), (4,), ()), ((), (), ())],
        between=((-2, 2), (-0.8, -0.5), (0.5, 0.8)), apart=(), covers="clamp_between"),
    Row(choose.clamp, lambda x, low, high: np.minimum(x, high), [((3, 4), None, ()), ((), None, ())],
        covers="clamp_between"),
    Row(choose.clamp, lambda x, low, high: np.maximum(x, low), [((3, 4), (4,), None)], covers="clamp_between"),
    Row(choose.clamp, lambda x, low, high: np.clip(x, low, high), [((3, 4), (), ())],  # bounds the wrong way round
        between=((-2, 2), (0.5, 0.8), (-0.8, -0.5)), covers="clamp_between"),
    Row(choose.tril, np.tril, SQUARES, options={}, covers="select"),
    Row(choose.triu, np.triu, SQUARES, covers="select"),
    Row(choose.tril, lambda x, diagonal: np.tril(x, diagonal), SQUARES, options={"diagonal": 1}, covers="select"),
    Row(choose.triu, lambda x, diagonal: np.triu(x, diagonal), SQUARES, options={"diagonal": -1}, covers="select"),
    Row(choose.masked_fill, lambda x, mask, value: np.where(mask, value, x), [((3, 4),), ((0, 4),)],
        options={"mask": MASK, "value": 0.5}, covers="select"),
]  # fmt: skip
