"""Transformer encoders and decoders (Vaswani et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, ClassVar

from sorix_dist.core import Tensor, as_tensor
from sorix_dist.core.arguments import at_least, parameter_dtype
from sorix_dist.core.ops.shape import swapaxes
from sorix_dist.nn import functional as F
from sorix_dist.nn.attention import MultiheadAttention
from sorix_dist.nn.functional.attention import causal_bias
from sorix_dist.nn.layers import Dropout, Linear
from sorix_dist.nn.module import Module
from sorix_dist.nn.net import ModuleList
from sorix_dist.nn.norm import LayerNorm

__all__ = [
    "Transformer", "TransformerDecoder", "TransformerDecoderLayer", "TransformerEncoder", "TransformerEncoderLayer",
]  # fmt: skip

_ACTIVATIONS: dict[str, Callable[[Any], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


class _TransformerLayer(Module):
    """Attention and a network of two linear layers, each added to its input and normalised (Vaswani et al. 2017)."""

    crosses: ClassVar[bool]  # whether it attends to a second sequence, too

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
        if not callable(activation) and not (isinstance(activation, str) and activation in _ACTIVATIONS):
            name = type(self).__name__
            raise ValueError(f"{name}: activation must be 'relu', 'gelu' or a function, got {activation!r}")
        kind = parameter_dtype(device, dtype)
        at_least(1, type(self).__name__, d_model=d_model, nhead=nhead, dim_feedforward=dim_feedforward)

        # Inside, the batch comes first: dropout's masks belong to its rows.
        def attention() -> MultiheadAttention:
            return MultiheadAttention(d_model, nhead, dropout, bias, batch_first=True, device=device, dtype=kind)

        def norm() -> LayerNorm:
            return LayerNorm(d_model, layer_norm_eps, bias=bias, dtype=kind)

        self.self_attn = attention()
        if self.crosses:
            self.multihead_attn = attention()
        self.linear1 = Linear(d_model, dim_feedforward, bias=bias).to(kind)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias=bias, init="xavier").to(kind)
        self.norm1, self.norm2 = norm(), norm()
        if self.crosses:
            self.norm3 = norm()
        self.dropout1, self.dropout2 = Dropout(dropout), Dropout(dropout)
        if self.crosses:
            self.dropout3 = Dropout(dropout)
        self.activation = _ACTIVATIONS[activation] if isinstance(activation, str) else activation
        self.norm_first, self.batch_first = norm_first, batch_first

    def _turned(self, x: Any) -> Tensor:
        """Transposes between the layout of the inputs and (N, L, d_model)."""
        x = as_tensor(x)
        return x if self.batch_first or x.ndim != 3 else swapaxes(x, 0, 1)

    def _added(self, x: Tensor, norm: Module, part: Callable[[Tensor], Tensor]) -> Tensor:
        return x + part(norm(x)) if self.norm_first else norm(x + part(x))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(self.activation(self.linear1(x))))


class TransformerEncoderLayer(_TransformerLayer):
    """Self-attention and a network of two linear layers, each added to its input and normalised.

    d_model: features; nhead: heads, a divisor of it; dim_feedforward: the neurons between the linear layers;
    activation: "relu", "gelu" (of the tanh form) or a function; norm_first: normalise before each part instead
    of after it (Xiong et al. 2020); batch_first: inputs are (N, L, d_model) instead of (L, N, d_model).
    """

    crosses = False

    def forward(
        self, src: Any, src_mask: Any = None, src_key_padding_mask: Any = None, is_causal: bool = False
    ) -> Tensor:
        """src: (L, N, d_model), or (N, L, d_model) with `batch_first`, or (L, d_model); masks as for
        MultiheadAttention, with src_mask as attn_mask."""

        def attend(x: Tensor) -> Tensor:
            attended, _ = self.self_attn(x, x, x, src_key_padding_mask, False, src_mask, is_causal=is_causal)
            return self.dropout1(attended)

        x = self._added(self._turned(src), self.norm1, attend)
        return self._turned(self._added(x, self.norm2, lambda x: self.dropout2(self._feed_forward(x))))


class TransformerDecoderLayer(_TransformerLayer):
    """Self-attention, attention to the outputs of an encoder, and a network of two linear layers, each added to its
    input and normalised. Arguments as for TransformerEncoderLayer."""

    crosses = True

    def forward(
        self,
        tgt: Any,
        memory: Any,
        tgt_mask: Any = None,
        memory_mask: Any = None,
        tgt_key_padding_mask: Any = None,
        memory_key_padding_mask: Any = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """tgt, and the encoder's outputs memory: (L, N, d_model), or (N, L, d_model) with `batch_first`, or
        (L, d_model); masks as for MultiheadAttention, of the self-attention and of the attention to memory."""
        other = self._turned(memory)

        def attend(x: Tensor) -> Tensor:
            attended, _ = self.self_attn(x, x, x, tgt_key_padding_mask, False, tgt_mask, is_causal=tgt_is_causal)
            return self.dropout1(attended)

        def attend_to_memory(x: Tensor) -> Tensor:
            attended, _ = self.multihead_attn(
                x, other, other, memory_key_padding_mask, False, memory_mask, is_causal=memory_is_causal
            )
            return self.dropout2(attended)

        x = self._added(self._turned(tgt), self.norm1, attend)
        x = self._added(x, self.norm2, attend_to_memory)
        return self._turned(self._added(x, self.norm3, lambda x: self.dropout3(self._feed_forward(x))))


class _Stack(Module):
    def _stack(self, layer: Module, num_layers: int, norm: Module | None) -> None:
        at_least(0, type(self).__name__, num_layers=num_layers)
        self.layers = ModuleList([deepcopy(layer) for _ in range(num_layers)])
        self.norm = norm

    def _run(self, x: Any, *arguments: Any, **options: Any) -> Tensor:
        for layer in self.layers:
            x = layer(x, *arguments, **options)
        return x if self.norm is None else self.norm(x)


class TransformerEncoder(_Stack):
    """`num_layers` copies of a layer, one after the other, and then `norm`, if given."""

    def __init__(
        self,
        encoder_layer: TransformerEncoderLayer,
        num_layers: int,
        norm: Module | None = None,
        enable_nested_tensor: bool = True,  # this and the next have no meaning here
        mask_check: bool = True,
    ) -> None:
        self._stack(encoder_layer, num_layers, norm)

    def forward(
        self, src: Any, mask: Any = None, src_key_padding_mask: Any = None, is_causal: bool | None = None
    ) -> Tensor:
        """As for TransformerEncoderLayer, with `mask` for its src_mask."""
        return self._run(src, mask, src_key_padding_mask, bool(is_causal))


class TransformerDecoder(_Stack):
    """`num_layers` copies of a decoder layer, one after the other, and then `norm`, if given."""

    def __init__(self, decoder_layer: TransformerDecoderLayer, num_layers: int, norm: Module | None = None) -> None:
        self._stack(decoder_layer, num_layers, norm)

    def forward(self, tgt: Any, memory: Any, *masks: Any, **options: Any) -> Tensor:
        """As for TransformerDecoderLayer."""
        return self._run(tgt, memory, *masks, **options)


class Transformer(Module):
    """An encoder and a decoder (Vaswani et al. 2017), each with a norm at its end; other arguments are the layers'."""

    def __init__(
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Callable[[Any], Tensor] = "relu",
        custom_encoder: Module | None = None,
        custom_decoder: Module | None = None,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = "cpu",
        dtype: Any = None,
    ) -> None:
        options: Any = (
            d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first, norm_first, bias, device,
            dtype,
        )  # fmt: skip

        def norm() -> LayerNorm:
            return LayerNorm(d_model, layer_norm_eps, bias=bias, dtype=dtype)

        if custom_encoder is None:
            custom_encoder = TransformerEncoder(TransformerEncoderLayer(*options), num_encoder_layers, norm())
        if custom_decoder is None:
            custom_decoder = TransformerDecoder(TransformerDecoderLayer(*options), num_decoder_layers, norm())
        self.encoder, self.decoder = custom_encoder, custom_decoder
        self.d_model, self.nhead, self.batch_first = d_model, nhead, batch_first

    def forward(
        self,
        src: Any,
        tgt: Any,
        src_mask: Any = None,
        tgt_mask: Any = None,
        memory_mask: Any = None,
        src_key_padding_mask: Any = None,
        tgt_key_padding_mask: Any = None,
        memory_key_padding_mask: Any = None,
        src_is_causal: bool | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """The decoder's outputs for tgt and the encoder's outputs for src; masks as for their layers."""
        memory = self.encoder(src, src_mask, src_key_padding_mask, src_is_causal)
        masks = tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask
        return self.decoder(tgt, memory, *masks, bool(tgt_is_causal), memory_is_causal)  # type: ignore[no-any-return]

    @staticmethod
    def generate_square_subsequent_mask(sz: int, device: Any = "cpu", dtype: Any = None) -> Tensor:
        """The mask (sz, sz) by which each position sees itself and those before it: -inf above the diagonal."""
        kind = parameter_dtype(device, dtype)
        return Tensor(causal_bias(sz, sz, kind).copy())
