"""Recurrent layers over whole sequences, each as one operation: one large product for the inputs of all steps,
then a loop over the steps. Weights have PyTorch's layout, (gates * H, features), and its order of gates.

Gates have the shape (gates, T, N, H), so that each lies together in memory; their gradients (T, N, gates * H), so that
a product with them is one of matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sorix_dist.core import rules
from sorix_dist.core.op import memoize_last, op
from sorix_dist.core.ops.activation import logistic, relu, tanh
from sorix_dist.core.ops.elementwise import add, mul, sub
from sorix_dist.core.ops.indexing import index
from sorix_dist.core.ops.join import stack
from sorix_dist.core.ops.matrix import column_sums, linear
from sorix_dist.core.ops.shape import transpose
from sorix_dist.core.ops.windows import pieces
from sorix_dist.core.tensor import Array


def _order(count: int, reverse: bool) -> Sequence[int]:
    """The steps of a sequence in the order in which they are read."""
    return range(count - 1, -1, -1) if reverse else range(count)


def _states(count: int, first: Array, reverse: bool, dtype: Any) -> tuple[Array, Array]:
    """Memory for the states (count, N, H) that steps end with, and as a view of it those that they start from, which
    begin with `first`."""
    memory = np.empty((count + 1, *first.shape), dtype)
    memory[count if reverse else 0] = first
    return (memory[:-1], memory[1:]) if reverse else (memory[1:], memory[:-1])


def _rows(sequence: Array) -> Array:
    """(T, N, features) as (T * N, features)."""
    return sequence.reshape(sequence.shape[0] * sequence.shape[1], sequence.shape[2])


def _by_gate(w: Array, factors: Array) -> Array:
    """A weight (gates * H, features), times a factor for each gate, as (gates, features, H)."""
    scaled: Array = w.reshape(len(factors), -1, w.shape[1]) * factors
    return scaled.swapaxes(1, 2)


def _from_input(x: Array, w: Array, biases: Sequence[Array | None], factors: Array) -> tuple[Array, Array]:
    """x @ w^T plus the biases, times a factor for each gate, of all steps by one product: (gates, T, N, H); and the
    rows of x."""
    rows = _rows(x)
    gates = np.matmul(rows, _by_gate(w, factors))
    given = [bias for bias in biases if bias is not None]
    if given:
        gates += sum(given[1:], given[0]).reshape(len(factors), 1, -1) * factors
    return gates.reshape(len(factors), *x.shape[:2], gates.shape[2]), rows


def _in_blocks(w: Array, rows: int) -> Array:
    """A matrix (..., K, H) as blocks of columns (..., blocks, K, H / blocks): OpenBLAS computes a small product of
    matrices that lie together in memory without copying them first, in half the time."""
    count = pieces(w, rows, 32)
    return np.ascontiguousarray(w.reshape(*w.shape[:-1], count, w.shape[-1] // count).swapaxes(-2, -3))


def _by_block(product: Array, blocks: Array) -> Array:
    """The view of a product (..., N, H) that a product with matrices which `_in_blocks` has cut writes to."""
    return product.reshape(*product.shape[:-1], blocks.shape[-3], blocks.shape[-1]).swapaxes(-2, -3)


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
    outputs = [steps[t] for t in range(len(x))]
    return stack([c, *outputs] if reverse else [*outputs, c])


@op(composite=_lstm, rule=rules.rows_at(1, states=(1, 2), at=2))
def lstm(x: Any, h: Any, c: Any, w_input: Any, w_state: Any, b_input: Any, b_state: Any, *, reverse: bool) -> Any:
    """The hidden states of an LSTM after every step, and where the next step would be its last cell state,
    (T + 1, N, H).

    (i, f, g, o) = x_t @ w_input^T + b_input + h @ w_state^T + b_state; c = s(f) * c + s(i) * tanh(g);
    h = s(o) * tanh(c), s being the logistic function (Hochreiter and Schmidhuber 1997; Gers et al. 2000).
    x: (T, N, I) with T >= 1; h, c: (N, H) before the first step; weights (4 * H, I) and (4 * H, H); biases (4 * H,)
    or None.
    reverse: the last step comes first; states stay at their places, and the cell state is in front of them.
    """
    count, size = len(x), w_state.shape[1]
    # A logistic function is a tanh of half the argument, so that one call serves all gates.
    half = np.array([0.5, 0.5, 1, 0.5], x.dtype).reshape(4, 1, 1)
    rest = 1 - half
    gates, rows = _from_input(x, w_input, (b_input, b_state), half)
    from_state = _in_blocks(_by_gate(w_state, half), len(h))
    memory = np.empty((count + 2, *h.shape), x.dtype)
    value, started = (memory[:-1], memory[2:]) if reverse else (memory[1:], memory[:-2])
    outputs = value[1:] if reverse else value[:-1]
    started[-1 if reverse else 0] = h
    cells, cells_before = _states(count, c, reverse, x.dtype)
    # The gates of one step are computed together in memory: in `gates` they are far apart, which takes twice the time.
    a, spare = np.empty((4, *h.shape), x.dtype), np.empty(h.shape, x.dtype)
    product = _by_block(a, from_state)
    for t in _order(count, reverse):
        of_step, cell = gates[:, t], cells[t]
        np.matmul(started[t], from_state, out=product)
        a += of_step
        np.tanh(a, out=a)
        a *= half
        i, f, g, o = np.add(a, rest, out=of_step)
        np.multiply(f, cells_before[t], out=cell)
        cell += np.multiply(i, g, out=spare)
        np.multiply(o, np.tanh(cell, out=spare), out=outputs[t])
    value[0 if reverse else count] = cells[0 if reverse else count - 1]

    @memoize_last
    def back(gradient: Array) -> tuple[Array, Array, Array]:
        """The gradients of the gates before their functions, (T * N, 4 * H), and of h and c before the first step."""
        of_outputs, of_cell = (gradient[1:], gradient[0]) if reverse else (gradient[:-1], gradient[-1])
        i, f, g, o = gates
        curved = np.tanh(cells)
        factors = np.subtract(1, gates)
        factors *= gates
        np.subtract(1, np.square(g, out=factors[2]), out=factors[2])
        for factor, other in zip(factors, (g, cells_before, i, curved), strict=True):
            factor *= other
        through = np.square(curved, out=curved)
        np.subtract(1, through, out=through)
        through *= o
        slopes = np.empty((count, len(h), 4 * size), x.dtype)
        by_gate = slopes.reshape(count, len(h), 4, size).transpose(0, 2, 1, 3)
        w = _in_blocks(w_state, len(h))
        to_h, to_c, spare = np.zeros(h.shape, x.dtype), np.array(of_cell), np.empty(h.shape, x.dtype)
        product = _by_block(to_h, w)
        for t in reversed(_order(count, reverse)):
            to_h += of_outputs[t]
            to_c += np.multiply(to_h, through[t], out=spare)
            np.multiply(factors[:3, t], to_c, out=by_gate[t, :3])
            np.multiply(factors[3, t], to_h, out=by_gate[t, 3])
            to_c *= f[t]
            np.matmul(slopes[t], w, out=product)
        return _rows(slopes), to_h, to_c

    def to_bias(gradient: Any, out: Any) -> Any:
        return column_sums(back(gradient)[0], out)

    return value, (
        lambda g, out: np.matmul(back(g)[0], w_input).reshape(x.shape),
        lambda g, out: back(g)[1],
        lambda g, out: back(g)[2],
        lambda g, out: np.matmul(back(g)[0].T, rows, out=out),
        lambda g, out: np.matmul(back(g)[0].T, _rows(started), out=out),
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
    half = np.array([0.5, 0.5, 1], x.dtype).reshape(3, 1, 1)
    gates, rows = _from_input(x, w_input, (b_input,), half)
    from_state = _in_blocks(_by_gate(w_state, half), len(h))
    b_inner: Any = 0
    if b_state is not None:
        gates[:2] += (b_state[: 2 * size] * half[0, 0]).reshape(2, 1, 1, size)
        b_inner = b_state[2 * size :]
    value, started = _states(count, h, reverse, x.dtype)
    inner = np.empty((count, *h.shape), x.dtype)  # n'
    a, spare = np.empty((3, *h.shape), x.dtype), np.empty(h.shape, x.dtype)
    both, from_h, product = a[:2], a[2], _by_block(a, from_state)
    for t in _order(count, reverse):
        n, y, of_step = gates[2, t], value[t], gates[:2, t]
        np.matmul(started[t], from_state, out=product)
        both += of_step
        np.tanh(both, out=both)
        both *= 0.5
        r, z = np.add(both, 0.5, out=of_step)
        n += np.multiply(r, np.add(from_h, b_inner, out=inner[t]), out=spare)
        np.tanh(n, out=n)
        np.subtract(started[t], n, out=y)
        y *= z
        y += n

    @memoize_last
    def back(gradient: Array) -> tuple[Array, Array]:
        """The gradients of n', r, z and n before their functions, (T * N, 4 * H), and of h before the first step."""
        r, z, n = gates
        factors = np.empty((4, *value.shape), x.dtype)
        np.subtract(1, r, out=factors[1])
        np.subtract(1, z, out=factors[2])
        np.multiply(factors[2], 1 - np.square(n), out=factors[3])
        np.multiply(factors[3], r, out=factors[0])
        factors[1] *= factors[0]
        factors[1] *= inner
        factors[2] *= z
        factors[2] *= started - n
        slopes = np.empty((count, len(h), 4 * size), x.dtype)
        by_gate = slopes.reshape(count, len(h), 4, size).transpose(0, 2, 1, 3)
        w = _in_blocks(np.concatenate((w_state[2 * size :], w_state[: 2 * size])), len(h))
        to_h, spare = np.zeros(h.shape, x.dtype), np.empty(h.shape, x.dtype)
        product = _by_block(spare, w)
        for t in reversed(_order(count, reverse)):
            to_h += gradient[t]
            np.multiply(factors[:, t], to_h, out=by_gate[t])
            to_h *= z[t]
            np.matmul(slopes[t, :, : 3 * size], w, out=product)
            to_h += spare
        return _rows(slopes), to_h

    def to_w_state(g: Any, out: Any) -> Any:
        slopes, out = back(g)[0], np.empty_like(w_state) if out is None else out
        np.matmul(slopes[:, size : 3 * size].T, _rows(started), out=out[: 2 * size])
        np.matmul(slopes[:, :size].T, _rows(started), out=out[2 * size :])
        return out

    def to_b_state(g: Any, out: Any) -> Any:
        sums = column_sums(back(g)[0])
        return np.concatenate((sums[size : 3 * size], sums[:size]), out=out)

    return value, (
        lambda g, out: np.matmul(back(g)[0][:, size:], w_input).reshape(x.shape),
        lambda g, out: back(g)[1],
        lambda g, out: np.matmul(back(g)[0][:, size:].T, rows, out=out),
        to_w_state,
        lambda g, out: column_sums(back(g)[0][:, size:], out),
        to_b_state,
    )


# -- Elman's layer


def _rnn(
    x: Any, h: Any, w_input: Any, w_state: Any, b_input: Any, b_state: Any, *, nonlinearity: str, reverse: bool
) -> Any:
    from_input, from_state = linear(x, transpose(w_input), b_input), transpose(w_state)
    steps: dict[int, Any] = {}
    for t in _order(len(x), reverse):
        h = (tanh if nonlinearity == "tanh" else relu)(add(index(from_input, t), linear(h, from_state, b_state)))
        steps[t] = h
    return stack([steps[t] for t in range(len(x))])


@op(composite=_rnn, rule=rules.rows_at(1, states=(1,), at=2))
def rnn(
    x: Any, h: Any, w_input: Any, w_state: Any, b_input: Any, b_state: Any, *, nonlinearity: str, reverse: bool
) -> Any:
    """The states of an Elman layer after every step, (T, N, H): h = f(x_t @ w_input^T + b_input + h @ w_state^T +
    b_state) with f "tanh" or "relu" (Elman 1990). Other arguments as for `lstm`, with 1 in the place of 4."""
    count = len(x)
    (from_input,), rows = _from_input(x, w_input, (b_input, b_state), np.ones((1, 1, 1), x.dtype))
    value, started = _states(count, h, reverse, x.dtype)
    from_h, zero = np.empty(h.shape, x.dtype), np.zeros((), x.dtype)
    from_state = _in_blocks(w_state.T, len(h))
    product = _by_block(from_h, from_state)
    for t in _order(count, reverse):
        np.matmul(started[t], from_state, out=product)
        a = np.add(from_input[t], from_h, out=value[t])
        if nonlinearity == "tanh":
            np.tanh(a, out=a)
        else:
            np.maximum(a, zero, out=a)

    @memoize_last
    def back(gradient: Array) -> tuple[Array, Array]:
        """The gradients of what f is applied to, (T * N, H), and of h before the first step."""
        slopes = 1 - np.square(value) if nonlinearity == "tanh" else (value > 0).astype(x.dtype)
        w, to_h = _in_blocks(w_state, len(h)), np.zeros(h.shape, x.dtype)
        product = _by_block(to_h, w)
        for t in reversed(_order(count, reverse)):
            to_h += gradient[t]
            slopes[t] *= to_h
            np.matmul(slopes[t], w, out=product)
        return _rows(slopes), to_h

    def to_bias(gradient: Any, out: Any) -> Any:
        return column_sums(back(gradient)[0], out)

    return value, (
        lambda g, out: np.matmul(back(g)[0], w_input).reshape(x.shape),
        lambda g, out: back(g)[1],
        lambda g, out: np.matmul(back(g)[0].T, rows, out=out),
        lambda g, out: np.matmul(back(g)[0].T, _rows(started), out=out),
        to_bias,
        to_bias,
    )
