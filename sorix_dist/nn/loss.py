"""Losses."""

from __future__ import annotations

from typing import Any

from sorix_dist.core import Tensor
from sorix_dist.nn import functional as F
from sorix_dist.nn.module import Module


class CrossEntropyLoss(Module):
    """The mean cross-entropy of raw scores (N, C) against N class indices, by an exact log-sum-exp.

    Its value is the mean over the rows it is given; of no rows (an empty shard) it is 0.
    """

    def forward(self, y_pred: Any, y_real: Any) -> Tensor:
        return F.cross_entropy(y_pred, y_real)
