"""Metrics over all samples of all ranks: `update` is local and cheap, `compute` is a call of all ranks."""

from sorix_dist.train.metrics.base import Metric
from sorix_dist.train.metrics.classification import AUROC, F1, Accuracy, ConfusionMatrix, Precision, Recall, TopK
from sorix_dist.train.metrics.means import MAE, MSE, R2, Mean, Perplexity

__all__ = [
    "Metric", "Mean", "MSE", "MAE", "R2", "Perplexity",
    "Accuracy", "TopK", "ConfusionMatrix", "Precision", "Recall", "F1", "AUROC",
]  # fmt: skip
