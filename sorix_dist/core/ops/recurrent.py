"""Recurrent layers over whole sequences, each as one operation: one large product for the inputs of all steps,
then a loop over the steps. Weights have PyTorch's layout, (gates * H, features), and its order of gates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sorix_dist.core import rules
from sorix_dist.core.op import memoize_last, op
from sorix_dist.core.ops.activation import logistic, tanh
from sorix_dist.core.ops.elementwise import add, mul, sub
from sorix_dist.core.ops.indexing import index
from sorix_dist.core.ops.join import stack
from sorix_dist.core.ops.matrix import linear
from sorix_dist.core.ops.shape import transpose
from sorix_dist.core.tensor import Array


def _order(count: int, reverse: bool) -> Sequence[int]:
    """The steps of a sequence in the order in which they are read."""
    return range(count - 1, -1, -1) if reverse else range(count)


def _before(states: Array, first: Array, reverse: bool) -> Array:
    """The state that each step started from, given the states that they ended with."""
    return np.concatenate((states[1:], first[None]) if reverse else (first[None], states[:-1]))


def _rows(sequence: Array) -> Array:
    """(T, N, features) as (T * N, features)."""
    return sequence.reshape(sequence.shape[0] * sequence.shape[1], sequence.shape[2])


def _over_steps(sequence: Array, w: Array) -> Array:
    """sequence @ w of all steps by one product."""
    product: Array = np.matmul(_rows(sequence), w).reshape(*sequence.shape[:2], w.shape[1])
    return product


def _gates(x: Any, count: int, size: int) -> tuple[Any, ...]:
    """The columns of each gate."""
    return tuple(x[..., i * size : (i + 1) * size] for i in range(count))


# -- long short-term memory


def _lstm(x: Any, h: Any, c: Any, w_input: Any, w_state: Any, b_input: Any, b_state: Any, *, reverse: bool) -> Any:
    size = w_state.shape[1]
    from_input, from_state = transpose(w_input), transpose(w_state)
    steps = {}
    for t in _order(len(x), reverse):
        gates = add(linear(index(x, t), from_input, b_input), linear(h, from_state, b_state))
        i, f, g, o = _gates(gates, 4, size)
        c = add(mul(logistic(f), c), mul(logistic(i), tanh(g)))
        h = mul(logistic(o), tanh(c))
        steps[t] = h
    return stack([*(steps[t] for t in range(len(x))), c])


@op(composite=_lstm, rule=rules.rows_at(1, states=(1, 2), at=2))
def lstm(x: Any, h: Any, c: Any, w_input: Any, w_state: Any, b_input: Any, b_state: Any, *, reverse: bool) -> Any:
    """The hidden states of an LSTM after every step, and behind them its last cell state, (T + 1, N, H).

    (i, f, g, o) = x_t @ w_input^T + b_input + h @ w_state^T + b_state; c = s(f) * c + s(i) * tanh(g);
    h = s(o) * tanh(c), s being the logistic function (Hochreiter and Schmidhuber 1997; Gers et al. 2000).
    x: (T, N, I) with T >= 1; h, c: (N, H) before the first step; weights (4 * H, I) and (4 * H, H); biases (4 * H,)
    or None.
    reverse: the last step comes first; states stay at their places.
    """
    count, size = len(x), w_state.shape[1]
    # A logistic function is a tanh of half the argument, so that one call serves all gates.
    half = np.full(4 * size, 0.5, x.dtype)
    half[2 * size : 3 * size] = 1
    gates = _over_steps(x, w_input.T)
    for bias in (b_input, b_state):
        if bias is not None:
            gates += bias
    value = np.empty((count + 1, *h.shape), x.dtype)
    cells = np.empty((count, *h.shape), x.dtype)
    state, cell = h, c
    for t in _order(count, reverse):
        a = gates[t]
        a += np.matmul(state, w_state.T)
        a *= half
        np.tanh(a, out=a)
        a *= half
        a += 1 - half
        i, f, g, o = _gates(a, 4, size)
        np.multiply(f, cell, out=cells[t])
        cell = cells[t]
        cell += i * g
        state = np.multiply(o, np.tanh(cell), out=value[t])
    value[count] = cell

    @memoize_last
    def back(gradient: Array) -> tuple[Array, Array, Array]:
        """The gradients of the gates before their functions, and of h and c before the first step."""
        slopes = gates * (1 - gates)
        slopes[..., 2 * size : 3 * size] = 1 - np.square(gates[..., 2 * size : 3 * size])
        curved = np.tanh(cells)
        through = gates[..., 3 * size :] * (1 - np.square(curved))
        started = _before(cells, c, reverse)
        to_h, to_c = np.zeros_like(h), np.array(gradient[count])
        for t in reversed(_order(count, reverse)):
            i, f, g, _ = _gates(gates[t], 4, size)
            to_h += gradient[t]
            to_c += to_h * through[t]
            slope = slopes[t]
            to_i, to_f, to_g, to_o = _gates(slope, 4, size)
            to_i *= to_c * g
            to_f *= to_c * started[t]
            to_g *= to_c * i
            to_o *= to_h * curved[t]
            to_c *= f
            to_h = np.matmul(slope, w_state)
        return slopes, to_h, to_c

    def to_bias(gradient: Any, out: Any) -> Any:
        return np.sum(_rows(back(gradient)[0]), axis=0, out=out)

    return value, (
        lambda g, out: _over_steps(back(g)[0], w_input),
        lambda g, out: back(g)[1],
        lambda g, out: back(g)[2],
        lambda g, out: np.matmul(_rows(back(g)[0]).T, _rows(x), out=out),
        lambda g, out: np.matmul(_rows(back(g)[0]).T, _rows(_before(value[:count], h, reverse)), out=out),
        to_bias,
        to_bias,
    )


# -- gated recurrent unit


def _gru(x: Any, h: Any, w_input: Any, w_state: Any, b_input: Any, b_state: Any, *, reverse: bool) -> Any:
    size = w_state.shape[1]
    from_input, from_state = transpose(w_input), transpose(w_state)
    steps: dict[int, Any] = {}
    for t in _order(len(x), reverse):
        r_x, z_x, n_x = _gates(linear(index(x, t), from_input, b_input), 3, size)
        r_h, z_h, n_h = _gates(linear(h, from_state, b_state), 3, size)
        r, z = logistic(add(r_x, r_h)), logistic(add(z_x, z_h))
        n = tanh(add(n_x, mul(r, n_h)))
        h = add(n, mul(z, sub(h, n)))
        steps[t] = h
    return stack([steps[t] for t in range(len(x))])


@op(composite=_gru, rule=rules.rows_at(1, states=(1,), at=2))
def gru(x: Any, h: Any, w_input: Any, w_state: Any, b_input: Any, b_state: Any, *, reverse: bool) -> Any:
    """The hidden states of a GRU after every step, (T, N, H).

    With (r, z, n) the thirds of x_t @ w_input^T + b_input, and likewise (r', z', n') of h @ w_state^T + b_state:
    r = s(r + r'); z = s(z + z'); n = tanh(n + r * n'); h = (1 - z) * n + z * h (Cho et al. 2014, in the form that
    cuDNN and PyTorch compute). Arguments as for `lstm`, with 3 in the place of 4.
    """
    count, size = len(x), w_state.shape[1]
    gates = _over_steps(x, w_input.T)
    if b_input is not None:
        gates += b_input
    value = np.empty((count, *h.shape), x.dtype)
    inner = np.empty((count, *h.shape), x.dtype)  # n'
    state = h
    for t in _order(count, reverse):
        a = gates[t]
        b = np.matmul(state, w_state.T)
        if b_state is not None:
            b += b_state
        inner[t] = b[:, 2 * size :]
        both, n = a[:, : 2 * size], a[:, 2 * size :]
        both += b[:, : 2 * size]
        both *= 0.5
        np.tanh(both, out=both)
        both *= 0.5
        both += 0.5
        n += a[:, :size] * inner[t]
        np.tanh(n, out=n)
        np.subtract(state, n, out=value[t])
        value[t] *= a[:, size : 2 * size]
        value[t] += n
        state = value[t]

    @memoize_last
    def back(gradient: Array) -> tuple[Array, Array, Array, Array]:
        """The gradients of x's and of h's part of the gates, and of h; and the states that steps started from."""
        r, z, n = _gates(gates, 3, size)
        started = _before(value, h, reverse)
        of_x, of_h = np.empty_like(gates), np.empty_like(gates)
        through_n = (1 - z) * (1 - np.square(n))
        through_z = (started - n) * z * (1 - z)
        through_r = inner * r * (1 - r)
        to_h = np.zeros_like(h)
        for t in reversed(_order(count, reverse)):
            to_h += gradient[t]
            to_r, to_z, to_n = _gates(of_x[t], 3, size)
            np.multiply(to_h, through_n[t], out=to_n)
            np.multiply(to_h, through_z[t], out=to_z)
            np.multiply(to_n, through_r[t], out=to_r)
            of_h[t] = of_x[t]
            of_h[t, :, 2 * size :] *= r[t]
            to_h *= z[t]
            to_h += np.matmul(of_h[t], w_state)
        return of_x, of_h, to_h, started

    return value, (
        lambda g, out: _over_steps(back(g)[0], w_input),
        lambda g, out: back(g)[2],
        lambda g, out: np.matmul(_rows(back(g)[0]).T, _rows(x), out=out),
        lambda g, out: np.matmul(_rows(back(g)[1]).T, _rows(back(g)[3]), out=out),
        lambda g, out: np.sum(_rows(back(g)[0]), axis=0, out=out),
        lambda g, out: np.sum(_rows(back(g)[1]), axis=0, out=out),
    )
