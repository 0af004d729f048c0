"""Transformer encoders (Vaswani et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from sorix_dist.core import Tensor
from sorix_dist.core.ops.shape import swapaxes
from sorix_dist.nn import functional as F
from sorix_dist.nn.arguments import parameter_dtype
from sorix_dist.nn.attention import MultiheadAttention
from sorix_dist.nn.containers import ModuleList
from sorix_dist.nn.dropout import Dropout
from sorix_dist.nn.layers import Linear
from sorix_dist.nn.module import Module
from sorix_dist.nn.norm import LayerNorm

_ACTIVATIONS: dict[str, Callable[[Any], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


class TransformerEncoderLayer(Module):
    """Self-attention and a network of two linear layers, each added to its input and normalised.

    d_model: features; nhead: heads, a divisor of it; dim_feedforward: the neurons between the linear layers;
    activation: "relu", "gelu" (of the tanh form) or a function; norm_first: normalise before each part instead
    of after it (Xiong et al. 2020); batch_first: inputs are (N, L, d_model) instead of (L, N, d_model).
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Callable[[Any], Tensor] = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = "cpu",
        dtype: Any = None,
    ) -> None:
        if isinstance(activation, str) and activation not in _ACTIVATIONS:
            raise ValueError(
                f"TransformerEncoderLayer: activation must be 'relu', 'gelu' or a function, got {activation!r}"
            )
        kind = parameter_dtype(device, dtype)
        # Inside, the batch comes first: dropout's masks belong to its rows.
        self.self_attn = MultiheadAttention(d_model, nhead, dropout, bias, batch_first=True, device=device, dtype=kind)
        self.linear1 = Linear(d_model, dim_feedforward, bias=bias).to(kind)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias=bias, init="xavier").to(kind)
        self.norm1 = LayerNorm(d_model, layer_norm_eps, bias=bias, dtype=kind)
        self.norm2 = LayerNorm(d_model, layer_norm_eps, bias=bias, dtype=kind)
        self.dropout1 = Dropout(dropout)
        self.dropout2 = Dropout(dropout)
        self.activation = _ACTIVATIONS[activation] if isinstance(activation, str) else activation
        self.norm_first = norm_first
        self.batch_first = batch_first

    def forward(
        self, src: Any, src_mask: Any = None, src_key_padding_mask: Any = None, is_causal: bool = False
    ) -> Tensor:
        """src: (L, N, d_model), or (N, L, d_model) with `batch_first`, or (L, d_model); masks as for
        MultiheadAttention, with src_mask as attn_mask."""
        x = src if isinstance(src, Tensor) else Tensor(src)
        turned = x.ndim == 3 and not self.batch_first
        x = swapaxes(x, 0, 1) if turned else x

        def attend(x: Tensor) -> Tensor:
            attended, _ = self.self_attn(
                x, key_padding_mask=src_key_padding_mask, need_weights=False, attn_mask=src_mask, is_causal=is_causal
            )
            return self.dropout1(attended)

        def feed_forward(x: Tensor) -> Tensor:
            return self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))

        if self.norm_first:
            x = x + attend(self.norm1(x))
            x = x + feed_forward(self.norm2(x))
        else:
            x = self.norm1(x + attend(x))
            x = self.norm2(x + feed_forward(x))
        return swapaxes(x, 0, 1) if turned else x


class TransformerEncoder(Module):
    """`num_layers` copies of a layer, one after the other, and then `norm`, if given."""

    def __init__(self, encoder_layer: TransformerEncoderLayer, num_layers: int, norm: Module | None = None) -> None:
        if num_layers < 0:
            raise ValueError(f"TransformerEncoder: num_layers must be >= 0, got {num_layers}")
        self.layers = ModuleList([deepcopy(encoder_layer) for _ in range(num_layers)])
        self.norm = norm

    def forward(
        self, src: Any, mask: Any = None, src_key_padding_mask: Any = None, is_causal: bool | None = None
    ) -> Tensor:
        """As for TransformerEncoderLayer, with `mask` for its src_mask."""
        x = src
        for layer in self.layers:
            x = layer(x, mask, src_key_padding_mask, bool(is_causal))
        return x if self.norm is None else self.norm(x)
