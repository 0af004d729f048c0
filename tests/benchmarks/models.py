"""The models of the workloads that are more than a list of layers; `peers.torch_models` has the same ones."""

from __future__ import annotations

import numpy as np

from sorix_dist import Tensor, nn
from sorix_dist.nn import functional as F


class Language(nn.Module):
    """A GPT: which symbol comes next, at every place of a sequence."""

    def __init__(self, symbols: int, length: int, width: int, heads: int, layers: int) -> None:
        self.symbol = nn.Embedding(symbols, width)
        self.place = nn.Parameter(np.zeros((length, width), np.float32))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width))
        self.head = nn.Linear(width, symbols, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(self.symbol(x) + self.place, is_causal=True))
        return scores


class Recurrent(nn.Module):
    """An LSTM: which class a sequence has, by its last state."""

    def __init__(self, inputs: int, units: int, classes: int) -> None:
        self.body = nn.LSTM(inputs, units, batch_first=True)
        self.head = nn.Linear(units, classes)

    def forward(self, x: Tensor) -> Tensor:
        _, (h, _) = self.body(x)
        scores: Tensor = self.head(h[0])
        return scores


class Block(nn.Module):
    """Two convolutions with batch normalisation, added to what they get; 1x1 where its shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = (
            nn.Identity()
            if inputs == outputs
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class Residual(nn.Module):
    """A residual network of 8 layers for small images (He et al. 2016, section 4.2)."""

    def __init__(self, *widths: int, classes: int) -> None:
        first = widths[0]
        self.stem = nn.Sequential(nn.Conv2d(3, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU())
        pairs = zip((first, *widths), widths, strict=False)
        self.body = nn.Sequential(*(Block(a, b, 1 if a == b else 2) for a, b in pairs))
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(self.stem(x)).mean(axis=(2, 3)))
        return scores


class Encoder(nn.Module):
    """Layers of a Transformer's encoder: which class each place of a sequence has."""

    def __init__(self, width: int, heads: int, layers: int, classes: int) -> None:
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, layers)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(x))
        return scores
