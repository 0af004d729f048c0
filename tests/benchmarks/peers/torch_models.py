"""The models of the workloads in PyTorch, with their parameters in the order of ours."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEADS = 4


def perceptron(*sizes: int) -> nn.Module:
    """Linear layers with a ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def convolutional() -> nn.Module:
    """Two convolutions of images of 28x28, and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 10),
    )  # fmt: skip


class Block(nn.Module):
    """A layer of a transformer: attention to what came before, and a perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        sequences, length, width = x.shape
        heads = self.queries_keys_values(self.norm1(x)).view(sequences, length, 3, HEADS, width // HEADS)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(sequences, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Language(nn.Module):
    """A GPT."""

    def __init__(self, symbols: int, length: int, width: int, layers: int) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(length, width))
        self.symbol = nn.Embedding(symbols, width)
        self.body = nn.Sequential(*(Block(width) for _ in range(layers)), nn.LayerNorm(width))
        self.head = nn.Linear(width, symbols, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.symbol(x) + self.place))


class Recurrent(nn.Module):
    """An LSTM, and a linear layer of its last state."""

    def __init__(self, inputs: int, units: int, classes: int) -> None:
        super().__init__()
        self.body = nn.LSTM(inputs, units, batch_first=True)
        self.head = nn.Linear(units, classes)

    def forward(self, x: Tensor) -> Tensor:
        _, (h, _) = self.body(x)
        return self.head(h[0])


class ResidualBlock(nn.Module):
    """Two convolutions with batch normalisation, added to what they get."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        changed = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Identity() if inputs == outputs else changed

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class Residual(nn.Module):
    """A residual network of 8 layers."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        first = widths[0]
        self.stem = nn.Sequential(nn.Conv2d(3, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU())
        pairs = zip((first, *widths), widths, strict=False)
        self.body = nn.Sequential(*(ResidualBlock(a, b, 1 if a == b else 2) for a, b in pairs))
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean(dim=(2, 3)))


class Encoder(nn.Module):
    """Layers of a Transformer's encoder, and a linear layer."""

    def __init__(self, width: int, layers: int, classes: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, HEADS, 4 * width, dropout=0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, layers)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))
