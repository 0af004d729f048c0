"""Metrics over all samples of all ranks: `update` is local and cheap, `compute` is a call of all ranks."""

from sorix_dist.train.metrics.base import MAE, MSE, R2, Mean, Metric
from sorix_dist.train.metrics.classification import (
    AUROC,
    F1,
    Accuracy,
    ConfusionMatrix,
    Perplexity,
    Precision,
    Recall,
    TopK,
)

__all__ = [
    "Metric", "Mean", "MSE", "MAE", "R2", "Perplexity",
    "Accuracy", "TopK", "ConfusionMatrix", "Precision", "Recall", "F1", "AUROC",
]  # fmt: skip
