"""Layers, losses and what they are built of."""

from sorix_dist.nn import functional, init, utils
from sorix_dist.nn.attention import MultiheadAttention, TransformerEncoder, TransformerEncoderLayer
from sorix_dist.nn.conv import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    Conv1d,
    Conv2d,
    ConvTranspose2d,
    MaxPool1d,
    MaxPool2d,
)
from sorix_dist.nn.layers import (
    ELU,
    GELU,
    Dropout,
    Dropout2d,
    Embedding,
    Flatten,
    Identity,
    LeakyReLU,
    Linear,
    LogSoftmax,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from sorix_dist.nn.loss import (
    BCELoss,
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    HuberLoss,
    KLDivLoss,
    L1Loss,
    MSELoss,
    NLLLoss,
    SmoothL1Loss,
)
from sorix_dist.nn.module import Module, Parameter
from sorix_dist.nn.net import ModuleList, Sequential
from sorix_dist.nn.norm import BatchNorm1d, BatchNorm2d, GroupNorm, LayerNorm
from sorix_dist.nn.recurrent import GRU, LSTM

__all__ = [
    "Module", "ModuleList", "Parameter", "Sequential",
    "Embedding", "Flatten", "Identity", "Linear",
    "ELU", "GELU", "LeakyReLU", "LogSoftmax", "ReLU", "Sigmoid", "SiLU", "Softmax", "Softplus", "Tanh",
    "AdaptiveAvgPool2d", "AvgPool2d", "Conv1d", "Conv2d", "ConvTranspose2d", "MaxPool1d", "MaxPool2d",
    "BatchNorm1d", "BatchNorm2d", "GroupNorm", "LayerNorm",
    "Dropout", "Dropout2d",
    "GRU", "LSTM", "MultiheadAttention", "TransformerEncoder", "TransformerEncoderLayer",
    "BCELoss", "BCEWithLogitsLoss", "CrossEntropyLoss", "HuberLoss", "KLDivLoss", "L1Loss", "MSELoss", "NLLLoss",
    "SmoothL1Loss",
    "functional", "init", "utils",
]  # fmt: skip
