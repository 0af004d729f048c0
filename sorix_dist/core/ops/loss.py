"""Losses that are one operation, because the fused gradient is simpler and more exact than its parts."""

from __future__ import annotations

import numpy as np

from sorix_dist.core.op import op
from sorix_dist.core.ops.elementwise import exp, log, mul, sub
from sorix_dist.core.ops.reduce import sum_over


def _cross_entropy(logits, *, target):
    highest = logits.array.max(axis=1, keepdims=True, initial=0)
    shifted = sub(logits, highest)
    likely = sub(shifted, log(sum_over(exp(shifted), axis=1, keepdims=True)))
    chosen = np.zeros(logits.array.shape, logits.array.dtype)
    chosen[np.arange(len(target)), target] = -1 / max(1, len(target))
    return sum_over(mul(likely, chosen), axis=None, keepdims=False)


@op(composite=_cross_entropy)
def cross_entropy_of_classes(logits, *, target):
    """The mean over rows of log(sum(exp(logits))) - logits[target]; 0 for no rows.

    logits: raw scores (N, C); target: N integers in [0, C). The gradient is (softmax - one-hot) / N.
    """
    count = max(1, len(target))
    at_target = (np.arange(len(target)), target)
    shifted = logits - logits.max(axis=1, keepdims=True, initial=-np.inf)
    chosen = shifted[at_target]
    exps = np.exp(shifted, out=shifted)
    sums = exps.sum(axis=1)

    def to_logits(g, out):
        share = g / count
        gradient = exps * (share / sums)[:, None]
        gradient[at_target] -= share
        return gradient

    return (np.log(sums) - chosen).sum() / count, (to_logits,)
