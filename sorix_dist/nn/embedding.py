"""Embedding: a vector for each of a number of things."""

from __future__ import annotations

from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core import random as rng
from sorix_dist.nn import functional as F
from sorix_dist.nn.arguments import parameter_dtype
from sorix_dist.nn.module import Module, Parameter


class Embedding(Module):
    """The rows of `W` (num_embeddings, embedding_dim) that integers in [0, num_embeddings) name.

    W starts normal with variance 1. The row `padding_idx`, if given, starts at zero and gets no gradient.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        device: Any = "cpu",
        *,
        padding_idx: int | None = None,
        dtype: Any = None,
    ) -> None:
        kind = parameter_dtype(device, dtype)
        for name, value in (("num_embeddings", num_embeddings), ("embedding_dim", embedding_dim)):
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise ValueError(f"padding_idx must be in [{-num_embeddings}, {num_embeddings}), got {padding_idx}")
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx = None if padding_idx is None else padding_idx % num_embeddings
        weights = rng.generator().standard_normal((num_embeddings, embedding_dim), dtype=np.float32)
        if self.padding_idx is not None:
            weights[self.padding_idx] = 0
        self.W = Parameter(weights.astype(kind, copy=False))

    def forward(self, x: Any) -> Tensor:
        """x: integers of any shape; the result has the features as one more dimension."""
        return F.embedding(x, self.W, self.padding_idx)

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"
