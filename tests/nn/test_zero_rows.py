"""Every layer and loss works on a batch of no rows, which is what a rank without rows of a small batch has."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn

VECTOR, SEQUENCE, SIGNAL, IMAGE = (0, 4), (0, 5, 4), (0, 4, 9), (0, 4, 9, 9)
VOLUME = (0, 4, 5, 5, 5)
LAYERS = {
    "Embedding": (lambda: nn.Embedding(7, 4), (0, 5)),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(7, 4), (0, 5)),
    "Flatten": (nn.Flatten, IMAGE),
    "Identity": (nn.Identity, VECTOR),
    "Linear": (lambda: nn.Linear(4, 3), VECTOR),
    "Dropout": (nn.Dropout, VECTOR),
    "AlphaDropout": (nn.AlphaDropout, VECTOR),
    "Bilinear": (lambda: _WithItself(nn.Bilinear(4, 4, 3)), VECTOR),
    "Fold": (lambda: nn.Fold((3, 4), 2), (0, 8, 6)),
    "LPPool1d": (lambda: nn.LPPool1d(2, 3), SIGNAL),
    "LPPool2d": (lambda: nn.LPPool2d(2, 3), IMAGE),
    **{name: (lambda name=name: getattr(nn, name)(dim=1), VECTOR) for name in ("Softmax", "LogSoftmax")},
    **{
        name: (getattr(nn, name), VECTOR)
        for name in nn.activation.__all__
        if not any(word in name for word in ("max", "min", "Threshold"))
    },
    "Threshold": (lambda: nn.Threshold(0.1, 2.0), VECTOR),
    "Softmin": (lambda: nn.Softmin(1), VECTOR),
    "Softmax2d": (nn.Softmax2d, IMAGE),
    "PixelShuffle": (lambda: nn.PixelShuffle(2), IMAGE),
    "PixelUnshuffle": (lambda: nn.PixelUnshuffle(3), IMAGE),
    "ChannelShuffle": (lambda: nn.ChannelShuffle(2), IMAGE),
    "LocalResponseNorm": (lambda: nn.LocalResponseNorm(2), IMAGE),
    **{
        f"{kind}Pad{dims}d": (lambda kind=kind, dims=dims: getattr(nn, f"{kind}Pad{dims}d")(1), shape)
        for kind in ("Circular", "Constant", "Reflection", "Replication", "Zero")
        for dims, shape in ((1, SIGNAL), (2, IMAGE), (3, VOLUME))
    },
    "Unfold": (lambda: nn.Unfold(2), IMAGE),
    "UpsamplingNearest2d": (lambda: nn.UpsamplingNearest2d(5), IMAGE),
    "UpsamplingBilinear2d": (lambda: nn.UpsamplingBilinear2d(5), IMAGE),
    "AdaptiveMaxPool1d": (lambda: nn.AdaptiveMaxPool1d(2), SIGNAL),
    "AdaptiveMaxPool2d": (lambda: nn.AdaptiveMaxPool2d(2), IMAGE),
    "MaxPool3d": (lambda: nn.MaxPool3d(2), VOLUME),
    "AvgPool3d": (lambda: nn.AvgPool3d(2), VOLUME),
    "AdaptiveAvgPool3d": (lambda: nn.AdaptiveAvgPool3d(2), VOLUME),
    "Unflatten": (lambda: nn.Unflatten(1, (2, 2)), IMAGE),
    "Upsample": (lambda: nn.Upsample(scale_factor=2), IMAGE),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3), SIGNAL),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), IMAGE),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 2, 3), IMAGE),
    "Conv3d": (lambda: nn.Conv3d(4, 6, 3, padding=1), VOLUME),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 2, 3), SIGNAL),
    "AvgPool1d": (lambda: nn.AvgPool1d(2), SIGNAL),
    "AdaptiveAvgPool1d": (lambda: nn.AdaptiveAvgPool1d(2), SIGNAL),
    "MaxPool1d": (lambda: nn.MaxPool1d(2), SIGNAL),
    "MaxPool2d": (lambda: nn.MaxPool2d(2), IMAGE),
    "MaxUnpool1d": (lambda: _Unpooled(nn.MaxUnpool1d, nn.MaxPool1d), SIGNAL),
    "MaxUnpool2d": (lambda: _Unpooled(nn.MaxUnpool2d, nn.MaxPool2d), IMAGE),
    "AvgPool2d": (lambda: nn.AvgPool2d(2), IMAGE),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d(2), IMAGE),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), IMAGE),
    "LayerNorm": (lambda: nn.LayerNorm(4), VECTOR),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(4).eval(), VECTOR),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(4).eval(), IMAGE),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(4).eval(), (0, 4, 3, 3, 3)),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(4), SIGNAL),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(4, affine=True), IMAGE),
    "InstanceNorm3d": (lambda: nn.InstanceNorm3d(4), (0, 4, 3, 3, 3)),
    "RMSNorm": (lambda: nn.RMSNorm(4), VECTOR),
    "Dropout1d": (nn.Dropout1d, SIGNAL),
    "Dropout2d": (nn.Dropout2d, IMAGE),
    "Dropout3d": (nn.Dropout3d, VOLUME),
    "CosineSimilarity": (lambda: _WithItself(nn.CosineSimilarity()), VECTOR),
    "PairwiseDistance": (lambda: _WithItself(nn.PairwiseDistance()), VECTOR),
    "Transformer": (lambda: _WithItself(nn.Transformer(4, 2, 1, 1, 8, batch_first=True)), SEQUENCE),
    "LSTM": (lambda: nn.LSTM(4, 3, batch_first=True), SEQUENCE),
    "GRU": (lambda: nn.GRU(4, 3, batch_first=True), SEQUENCE),
    "RNN": (lambda: nn.RNN(4, 3, batch_first=True), SEQUENCE),
    **{name: (lambda name=name: getattr(nn, name)(4, 3), VECTOR) for name in ("RNNCell", "GRUCell", "LSTMCell")},
    "MultiheadAttention": (lambda: _SelfAttention(), SEQUENCE),
    "TransformerEncoderLayer": (lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), SEQUENCE),
    "TransformerDecoderLayer": (lambda: _WithItself(nn.TransformerDecoderLayer(4, 2, 8, batch_first=True)), SEQUENCE),
    "TransformerDecoder": (
        lambda: _WithItself(nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 8, batch_first=True), 2)),
        SEQUENCE,
    ),
    "TransformerEncoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2),
        SEQUENCE,
    ),
}
CLASSES = np.zeros(0, np.int64)
LOSSES = {
    "CrossEntropyLoss": CLASSES,
    "NLLLoss": CLASSES,
    "MultiMarginLoss": CLASSES,
    **dict.fromkeys(
        ("BCELoss", "BCEWithLogitsLoss", "HuberLoss", "KLDivLoss", "L1Loss", "MSELoss", "SmoothL1Loss"),
        np.zeros(VECTOR, np.float32),
    ),
}
OTHER_LOSSES = {
    **dict.fromkeys(
        ("HingeEmbeddingLoss", "MultiLabelSoftMarginLoss", "PoissonNLLLoss", "SoftMarginLoss"), (VECTOR, VECTOR)
    ),
    "CosineEmbeddingLoss": (VECTOR, VECTOR, (0,)),
    "GaussianNLLLoss": (VECTOR, VECTOR, VECTOR),
    "MarginRankingLoss": (VECTOR, VECTOR, VECTOR),
    "TripletMarginLoss": (VECTOR, VECTOR, VECTOR),
}
CONTAINERS = {
    "Module",
    "ModuleDict",
    "ModuleList",
    "Parameter",
    "ParameterDict",
    "ParameterList",
    "Sequential",
    "functional",
    "init",
    "utils",
}


class _SelfAttention(nn.Module):
    def __init__(self) -> None:
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


class _Unpooled(nn.Module):
    def __init__(self, unpool, pool):
        self.unpool, self.pool = unpool(2), pool(2, return_indices=True)

    def forward(self, x):
        return self.unpool(*self.pool(x))


class _WithItself(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def forward(self, x):
        return self.layer(x, x)


def test_every_layer_is_here():
    assert {*LAYERS, *LOSSES, *OTHER_LOSSES} == {*nn.__all__} - CONTAINERS


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name):
    make, shape = LAYERS[name]
    layer = make()
    integers = name.startswith("Embedding")
    x = sx.tensor(np.zeros(shape, np.int64 if integers else np.float32), requires_grad=not integers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = layer(x)
        y = y[0] if isinstance(y, tuple) else y
        assert y.shape[0] == 0
        y.sum().backward()
    assert integers or x.grad.shape == shape
    for parameter_name, parameter in layer.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert not parameter.grad.numpy().any(), parameter_name


@pytest.mark.parametrize("name", OTHER_LOSSES)
def test_loss_of_three(name):
    x, *others = (sx.tensor(np.zeros(shape, np.float32), requires_grad=True) for shape in OTHER_LOSSES[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = getattr(nn, name)()(x, *(y.detach() for y in others))
        assert loss.item() == 0
        loss.backward()
    assert x.grad.shape == VECTOR


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_loss(name, reduction):
    x = sx.tensor(np.zeros(VECTOR, np.float32), requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = getattr(nn, name)(reduction=reduction)(x, LOSSES[name])
        assert loss.numpy().sum() == 0
        loss.sum().backward()
    assert x.grad.shape == VECTOR
