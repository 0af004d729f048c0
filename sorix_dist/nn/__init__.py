"""Layers, losses and what they are built of."""

from sorix_dist.core.missing import missing_from
from sorix_dist.nn import activation, functional, init, utils
from sorix_dist.nn.activation import *  # noqa: F403
from sorix_dist.nn.attention import (
    MultiheadAttention,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
)
from sorix_dist.nn.conv import (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AvgPool1d,
    AvgPool2d,
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    MaxPool1d,
    MaxPool2d,
)
from sorix_dist.nn.layers import (
    Dropout,
    Dropout2d,
    Embedding,
    Flatten,
    Identity,
    Linear,
    PixelShuffle,
    Unflatten,
    Upsample,
    ZeroPad2d,
)
from sorix_dist.nn.loss import (
    BCELoss,
    BCEWithLogitsLoss,
    CosineEmbeddingLoss,
    CrossEntropyLoss,
    GaussianNLLLoss,
    HuberLoss,
    KLDivLoss,
    L1Loss,
    MarginRankingLoss,
    MSELoss,
    NLLLoss,
    SmoothL1Loss,
    TripletMarginLoss,
)
from sorix_dist.nn.module import Module
from sorix_dist.nn.net import ModuleDict, ModuleList, ParameterList, Sequential
from sorix_dist.nn.norm import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LayerNorm,
    RMSNorm,
)
from sorix_dist.nn.parameter import Parameter
from sorix_dist.nn.recurrent import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell

__all__ = [
    "Module", "ModuleDict", "ModuleList", "Parameter", "ParameterList", "Sequential",
    "Embedding", "Flatten", "Identity", "Linear", "PixelShuffle", "Unflatten", "Upsample", "ZeroPad2d",
    *activation.__all__,
    "AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AvgPool1d", "AvgPool2d", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d",
    "ConvTranspose2d", "MaxPool1d", "MaxPool2d",
    "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "GroupNorm", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d",
    "LayerNorm", "RMSNorm",
    "Dropout", "Dropout2d",
    "GRU", "GRUCell", "LSTM", "LSTMCell", "RNN", "RNNCell",
    "MultiheadAttention", "TransformerDecoder", "TransformerDecoderLayer", "TransformerEncoder",
    "TransformerEncoderLayer",
    "BCELoss", "BCEWithLogitsLoss", "CrossEntropyLoss", "HuberLoss", "KLDivLoss", "L1Loss", "MSELoss", "NLLLoss",
    "SmoothL1Loss", "CosineEmbeddingLoss", "GaussianNLLLoss", "MarginRankingLoss", "TripletMarginLoss",
    "functional", "init", "utils",
]  # fmt: skip

__getattr__ = missing_from(__name__, globals())
