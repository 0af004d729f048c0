"""Recurrent layers over whole sequences, and cells, which do one step of them."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from sorix_dist.core import Tensor, as_tensor
from sorix_dist.core import random as rng
from sorix_dist.core.arguments import at_least, is_integer, one_of, parameter_dtype
from sorix_dist.core.capture import host
from sorix_dist.core.dtype import common_dtype
from sorix_dist.core.ops.elementwise import cast
from sorix_dist.core.ops.join import cat, stack
from sorix_dist.core.ops.recurrent import gru, lstm, rnn
from sorix_dist.core.ops.shape import reshape, squeeze, swapaxes, unsqueeze
from sorix_dist.core.placement import shard_of
from sorix_dist.core.rules import beside, rows_along
from sorix_dist.core.tensor import ndarray_of, shape_of
from sorix_dist.nn.layers import Dropout
from sorix_dist.nn.module import Module
from sorix_dist.nn.parameter import Parameter

__all__ = ["GRU", "GRUCell", "LSTM", "LSTMCell", "RNN", "RNNCell"]


@host
def _zeros(shape: tuple[int, ...], kind: Any) -> Any:
    return np.zeros(shape, kind)


_WEIGHTS = "weight_ih", "weight_hh", "bias_ih", "bias_hh"  # in the operation's order


def _make_weights(module: Any, gates: int, features: int, bias: bool, kind: Any, end: str = "") -> None:
    """Sets weights and biases, uniform within 1 / sqrt(hidden_size). end: that of their names."""
    rows, bound = gates * module.hidden_size, 1 / np.sqrt(module.hidden_size)
    shapes = (rows, features), (rows, module.hidden_size), (rows,), (rows,)
    for name, shape in list(zip(_WEIGHTS, shapes, strict=True))[: 4 if bias else 2]:
        setattr(module, name + end, Parameter(rng.generator().uniform(-bound, bound, shape).astype(kind)))


def _weights_of(module: Module, end: str = "") -> list[Any]:
    """The weights and biases, None for those that there are not."""
    return [getattr(module, name + end, None) for name in _WEIGHTS]


class _Recurrent(Module):
    """Parameters with PyTorch's names and layout, layers and directions; computes in the common dtype of the input, the
    states and the weights.

    gates: the number of blocks in the weights; states: what a step gives to the next one.
    """

    gates: ClassVar[int]
    states: ClassVar[tuple[str, ...]] = ("h_0",)
    weight_ih_l0: Parameter

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = "cpu",
        dtype: Any = None,
    ) -> None:
        kind = parameter_dtype(device, dtype)
        if not is_integer(proj_size) or proj_size != 0:
            raise ValueError(f"{type(self).__name__}: proj_size must be 0, got {proj_size!r}: add a Linear after it")
        at_least(1, type(self).__name__, input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        self.input_size, self.hidden_size, self.num_layers = int(input_size), int(hidden_size), int(num_layers)
        self.bias, self.batch_first, self.bidirectional = bias, batch_first, bidirectional
        self.dropout = Dropout(dropout)
        for layer in range(self.num_layers):
            features = self.input_size if layer == 0 else self.hidden_size * self._directions
            for direction in range(self._directions):
                _make_weights(self, self.gates, features, bias, kind, self._end(layer, direction))

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    @staticmethod
    def _end(layer: int, direction: int) -> str:
        return f"_l{layer}{'_reverse' if direction else ''}"

    def forward(self, input: Any, hx: Any = None) -> tuple[Tensor, Any]:
        """The output of the last layer at every step, laid out as the input, and h_n, the hidden states after
        the last step, (num_layers * directions, N, hidden_size). hx: h_0, of that shape; zeros unless given."""
        output, (h,) = self._run(input, None if hx is None else (hx,))
        return output, h

    def _layer(self, x: Tensor, states: list[Any], weights: list[Any], reverse: bool) -> tuple[Tensor, list[Tensor]]:
        """The hidden states after each step of x (T, N, I), and all states after the last one."""
        raise NotImplementedError

    def _run(self, input: Any, given: tuple[Any, ...] | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The outputs in the layout of the input, and each final state, (layers * directions, N, H)."""
        x = as_tensor(input)
        unbatched = x.ndim == 2
        x = rows_along(type(self).__name__, x, (0,) if self._turned(x) else (1,))
        if x.ndim not in (2, 3) or x.shape[-1] != self.input_size or not x.shape[1 if self._turned(x) else 0]:
            form = "(N, T, {0})" if self.batch_first else "(T, N, {0})"
            raise ValueError(
                f"{type(self).__name__}: input must have shape {form.format(self.input_size)} or "
                f"(T, {self.input_size}) with at least one step, got shape {tuple(x.shape)}"
            )
        turned = self._turned(x)
        x = reshape(x, (len(x), 1, self.input_size)) if unbatched else swapaxes(x, 0, 1) if turned else x
        rows = shard_of(x)
        if given is not None and rows is not None and rows.axis == 1:
            given = tuple(beside(state, rows, 2) for state in given)
        starts = self._starts(given, x.shape[1], unbatched)
        kind = common_dtype([x.array, self.weight_ih_l0.array, *map(ndarray_of, starts)])
        x = x if x.array.dtype == kind else cast(x, kind)
        finals: list[list[Tensor]] = []
        for layer in range(self.num_layers):
            if layer and self.training and self.dropout.p:
                # Dropout's masks belong to the rows of the batch, which it expects in front.
                x = swapaxes(self.dropout(swapaxes(x, 0, 1)), 0, 1)
            outputs = []
            for direction in range(self._directions):
                states = [start[len(finals)] for start in starts]
                output, final = self._layer(x, states, _weights_of(self, self._end(layer, direction)), bool(direction))
                outputs.append(output)
                finals.append(final)
            x = outputs[0] if len(outputs) == 1 else cat(outputs, dim=2)
        last = [unsqueeze(states[0], 0) if len(states) == 1 else stack(states) for states in zip(*finals, strict=True)]
        if unbatched:
            return reshape(x, (len(x), x.shape[2])), tuple(reshape(s, (len(s), self.hidden_size)) for s in last)
        return swapaxes(x, 0, 1) if turned else x, tuple(last)

    def _turned(self, x: Tensor) -> bool:
        return self.batch_first and x.ndim == 3

    def _starts(self, given: tuple[Any, ...] | None, rows: int, unbatched: bool) -> list[Any]:
        """Each state before the first step, (layers * directions, N, H); zeros unless given."""
        shape = (self.num_layers * self._directions, rows, self.hidden_size)
        if given is None:
            return [Tensor.of(_zeros(shape, self.weight_ih_l0.array.dtype))] * len(self.states)
        expected = (shape[0], shape[2]) if unbatched else shape
        for name, state in zip(self.states, given, strict=True):
            if shape_of(state) != expected:
                raise ValueError(
                    f"{type(self).__name__}: {name} must have shape {expected}, got shape {tuple(shape_of(state))}"
                )
        return [reshape(state, shape) if unbatched else state for state in given]

    def extra_repr(self) -> str:
        extra = [f"{self.input_size}, {self.hidden_size}"]
        extra += [f"num_layers={self.num_layers}"] if self.num_layers > 1 else []
        extra += ["batch_first=True"] if self.batch_first else []
        extra += ["bidirectional=True"] if self.bidirectional else []
        return ", ".join(extra)


class LSTM(_Recurrent):
    """Long short-term memory over whole sequences (Hochreiter and Schmidhuber 1997), with PyTorch's gates i, f, g, o.

    num_layers: each is fed with the outputs of the one below, after `dropout`; bidirectional: a second set of
    weights reads the sequence backwards, and its outputs stand beside the others; batch_first: inputs are
    (N, T, input_size) instead of (T, N, input_size). Weights start uniform within 1 / sqrt(hidden_size).
    """

    gates = 4
    states = ("h_0", "c_0")

    def forward(self, input: Any, hx: tuple[Any, Any] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The output of the last layer at every step, laid out as the input, and (h_n, c_n), the hidden and cell
        states after the last step, (num_layers * directions, N, hidden_size).

        hx: (h_0, c_0) before the first step, of that shape; zeros unless given. Without N, there is none in the
        results either.
        """
        if hx is not None and (not isinstance(hx, tuple | list) or len(hx) != 2):
            raise ValueError(f"LSTM: hx must be a pair (h_0, c_0), got {type(hx).__name__}")
        output, (h, c) = self._run(input, None if hx is None else tuple(hx))
        return output, (h, c)

    def _layer(self, x: Tensor, states: list[Any], weights: list[Any], reverse: bool) -> tuple[Tensor, list[Tensor]]:
        both = lstm(x, *states, *weights, reverse=reverse)
        return (both[1:], [both[1], both[0]]) if reverse else (both[:-1], [both[-2], both[-1]])


class GRU(_Recurrent):
    """Gated recurrent units over whole sequences (Cho et al. 2014), with PyTorch's gates r, z, n.

    Arguments as for LSTM.
    """

    gates = 3

    def _layer(self, x: Tensor, states: list[Any], weights: list[Any], reverse: bool) -> tuple[Tensor, list[Tensor]]:
        return _with_last(gru(x, *states, *weights, reverse=reverse), reverse)


class RNN(_Recurrent):
    """h = tanh(x W_ih^T + b_ih + h W_hh^T + b_hh) over whole sequences (Elman 1990); nonlinearity: "tanh" or "relu".

    Other arguments as for LSTM.
    """

    gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        *more: Any,
        **options: Any,
    ) -> None:
        one_of("RNN: nonlinearity", nonlinearity, "tanh", "relu")
        self.nonlinearity = nonlinearity
        super().__init__(input_size, hidden_size, num_layers, *more, **options)

    def _layer(self, x: Tensor, states: list[Any], weights: list[Any], reverse: bool) -> tuple[Tensor, list[Tensor]]:
        return _with_last(rnn(x, *states, *weights, nonlinearity=self.nonlinearity, reverse=reverse), reverse)


def _with_last(output: Tensor, reverse: bool) -> tuple[Tensor, list[Tensor]]:
    return output, [output[0 if reverse else len(output) - 1]]


# -- cells


class _Cell(Module):
    """One step of a recurrent layer for inputs (N, input_size), or one (input_size,), and states (N, hidden_size) or
    (hidden_size,), zeros unless given."""

    _in_repr = ("input_size", "hidden_size")
    layer: ClassVar[type[_Recurrent]]

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device: Any = "cpu", dtype: Any = None
    ) -> None:
        at_least(1, type(self).__name__, input_size=input_size, hidden_size=hidden_size)
        kind = parameter_dtype(device, dtype)
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias
        _make_weights(self, self.layer.gates, input_size, bias, kind)

    def forward(self, input: Any, hx: Any = None) -> Any:
        return self._step(input, None if hx is None else [hx])[0]

    def _step(self, input: Any, states: Any) -> list[Tensor]:
        x = as_tensor(input)
        name, expected = type(self).__name__, (*x.shape[:-1], self.hidden_size)
        if x.ndim not in (1, 2) or x.shape[-1] != self.input_size:
            raise ValueError(f"{name}: input must have shape (N, {self.input_size}), got shape {tuple(x.shape)}")
        if states is None:
            states = [np.zeros(expected, x.array.dtype)] * len(self.layer.states)
        for which, state in zip(self.layer.states, states, strict=True):
            if shape_of(state) != expected:
                raise ValueError(f"{name}: {which} must have shape {expected}, got shape {tuple(shape_of(state))}")
        if x.ndim == 1:
            x, states = unsqueeze(x, 0), [unsqueeze(state, 0) for state in states]
        weights = _weights_of(self)
        kind = common_dtype([x.array, weights[0].array, *map(ndarray_of, states)])  # type: ignore[union-attr]
        x = unsqueeze(x if x.array.dtype == kind else cast(x, kind), 0)
        _, new = self.layer._layer(self, x, list(states), weights, False)  # type: ignore[arg-type]
        return new if len(expected) == 2 else [squeeze(state, 0) for state in new]


class RNNCell(_Cell):
    """One step of RNN: the new h from an input and h."""

    layer = RNN

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, nonlinearity: str = "tanh", **options: Any
    ) -> None:
        one_of("RNNCell: nonlinearity", nonlinearity, "tanh", "relu")
        self.nonlinearity = nonlinearity
        super().__init__(input_size, hidden_size, bias, **options)


class GRUCell(_Cell):
    """One step of GRU: the new h from an input and h."""

    layer = GRU


class LSTMCell(_Cell):
    """One step of LSTM: the new (h, c) from an input and (h, c)."""

    layer = LSTM

    def forward(self, input: Any, hx: tuple[Any, Any] | None = None) -> tuple[Tensor, Tensor]:
        h, c = self._step(input, hx)
        return h, c
