"""Recurrent layers over whole sequences, each as one operation: a loop over the steps with one product of the state and
the input, then one product over all steps for the gradients of the weights. Weights have PyTorch's layout,
(gates * H, features), and its order of gates.

Gates have the shape (T, gates, N, H), so that each lies together in memory; their gradients (T, N, gates * H), so that
a product with them is one of matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sorix_dist.core import rules
from sorix_dist.core.op import memoize_last, op
from sorix_dist.core.ops.activation import logistic, relu, tanh
from sorix_dist.core.ops.blocks import SMALL
from sorix_dist.core.ops.elementwise import add, mul, sub
from sorix_dist.core.ops.indexing import index
from sorix_dist.core.ops.join import stack
from sorix_dist.core.ops.matrix import column_sums, linear
from sorix_dist.core.ops.shape import transpose
from sorix_dist.core.tensor import Array

_SECOND_CACHE = 1 << 18  # numbers
_CACHED = 1 << 15  # numbers of each gate: as many stay in the second cache during several passes


def _order(count: int, reverse: bool) -> range:
    """The steps of a sequence in the order in which they are read."""
    return range(count - 1, -1, -1) if reverse else range(count)


class _Steps:
    """What the steps of a sequence start from and end with.

    rows: (T, N, H + 1 + I), the state before each step, a one for the bias, and the input; flat: as one matrix; ends:
    (T, N, H), the states after each step, in the rows of the next one.
    """

    def __init__(self, x: Array, h: Array, reverse: bool) -> None:
        (count, n, inputs), self.size = x.shape, h.shape[1]
        width = self.size + 1 + inputs
        memory = np.empty((count + 1, n, width), x.dtype)
        self.rows, after = (memory[1:], memory[:-1]) if reverse else (memory[:-1], memory[1:])
        self.flat, self.ends = self.rows.reshape(count * n, width), after[..., : self.size]
        self.rows[-1 if reverse else 0, :, : self.size] = h
        self.rows[..., self.size] = 1
        self.rows[..., self.size + 1 :] = x

    def product(self, weights: Array, out: Array) -> Callable[[int], Any]:
        """A function that writes a step's rows @ weights^T to its part of `out`, (T, gates, N, H).

        weights: (gates, H, H + 1 + I). The inputs are multiplied with the state unless the weights, which each step
        reads, are too large for it.
        """
        rows, n, turned = self.rows, out.shape[2], weights.swapaxes(1, 2)
        if weights.size <= _SECOND_CACHE:
            blocks = _in_blocks(turned, n)
            products = _by_block(out, blocks)
            return lambda t: np.matmul(rows[t], blocks, out=products[t])
        of_inputs = np.matmul(self.flat[:, self.size :], turned[:, self.size :]).reshape(out.swapaxes(0, 1).shape)
        blocks, of_state = _in_blocks(turned[:, : self.size], n), np.empty(out.shape[1:], out.dtype)
        view = _by_block(of_state, blocks)

        def product(t: int) -> None:
            np.matmul(rows[t, :, : self.size], blocks, out=view)
            np.add(of_state, of_inputs[:, t], out=out[t])

        return product

    def rules(self, slopes: Callable[[Array], Array]) -> tuple[Callable[[Array, Any], Any], ...]:
        """The rules of the weights and biases, from the gradients (T * N, gates * H) of what they are added to.

        One product with the rows gives the gradients of all of them.
        """
        product = memoize_last(lambda gradient: np.matmul(slopes(gradient).T, self.flat))

        def columns(part: Any) -> Callable[[Array, Any], Any]:
            return lambda gradient, out: _copied(product(gradient)[:, part], out)

        to_bias = columns(self.size)
        return columns(slice(self.size + 1, None)), columns(slice(self.size)), to_bias, to_bias


def _copied(part: Array, out: Array | None) -> Array:
    """A copy of a part of an array, in `out` if given."""
    if out is None:
        return part.copy()
    out[...] = part
    return out


def _joined(gates: Sequence[int], w_state: Array, w_input: Array, *biases: Array | None) -> Array:
    """The weights of the rows of steps for some gates, in this order: (gates, H, H + 1 + I)."""
    size = w_state.shape[1]
    bias = sum((b for b in biases if b is not None), np.zeros(len(w_state), w_state.dtype))
    joined = np.empty((len(gates), size, size + 1 + w_input.shape[1]), w_state.dtype)
    for gate, weights in zip(gates, joined, strict=True):
        own = slice(gate * size, (gate + 1) * size)
        np.concatenate((w_state[own], bias[own, None], w_input[own]), axis=1, out=weights)
    return joined


def _in_blocks(w: Array, rows: int) -> Array:
    """A matrix (..., K, H) cut into blocks of columns (..., blocks, K, H / blocks), for a product with `rows` rows.

    OpenBLAS computes a small product without copying its matrices first, in half the time; 64 columns are fastest.
    """
    height, length = w.shape[-2:]
    widths = (length // n for n in range(1, length // 32 + 1) if length % n == 0)
    width = next((width for width in widths if width <= 64 and width * height * rows <= SMALL), length)
    return np.ascontiguousarray(w.reshape(*w.shape[:-1], length // width, width).swapaxes(-2, -3))


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
    count, half = len(x), np.array(0.5, x.dtype)
    steps = _Steps(x, h, reverse)
    # A logistic function is a tanh of half the argument, so that one call serves all gates, in the order o, i, f, g.
    weights = _joined((3, 0, 1, 2), w_state, w_input, b_input, b_state)
    weights[:3] *= half
    gates = np.empty((count, 4, *h.shape), x.dtype)
    product = steps.product(weights, gates)
    cells = np.empty((count + 1, *h.shape), x.dtype)
    cells, cells_before = (cells[:-1], cells[1:]) if reverse else (cells[1:], cells[:-1])
    cells_before[-1 if reverse else 0] = c
    curved, spare = np.empty_like(cells), np.empty(h.shape, x.dtype)  # tanh of the cells
    for t in _order(count, reverse):
        product(t)
        a, cell = gates[t], cells[t]
        np.tanh(a, out=a)
        logistics = a[:3]
        logistics *= half
        logistics += half
        o, i, f, g = a
        np.multiply(f, cells_before[t], out=cell)
        cell += np.multiply(i, g, out=spare)
        np.multiply(o, np.tanh(cell, out=curved[t]), out=steps.ends[t])
    value = np.empty((count + 1, *h.shape), x.dtype)
    outputs = value[1:] if reverse else value[:-1]
    outputs[...] = steps.ends
    value[0 if reverse else count] = cells[0 if reverse else count - 1]

    @memoize_last
    def back(gradient: Array) -> tuple[Array, Array, Array]:
        """The gradients of the gates before their functions, (T * N, 4 * H), and of h and c before the first step."""
        of_outputs, of_cell = (gradient[1:], gradient[0]) if reverse else (gradient[:-1], gradient[-1])
        slopes = np.empty((count, len(h), 4 * steps.size), x.dtype)
        by_gate = slopes.reshape(count, len(h), 4, steps.size).swapaxes(1, 2)
        states, spare = np.zeros((4, *h.shape), x.dtype), np.empty(h.shape, x.dtype)
        to_c, copies, to_h = states[0], states[1:3], states[3]
        to_c[...] = of_cell
        w = _in_blocks(w_state, len(h))
        product = _by_block(to_h, w)
        # What the gradients of c, for i, f and g, and of h, for o, are multiplied by, for some steps at a time.
        length = min(count, max(1, _CACHED // max(1, h.size)))
        all_factors, all_through = np.empty_like(gates[:length]), np.empty_like(cells[:length])
        order = [*reversed(_order(count, reverse))]
        for some in (order[at : at + length] for at in range(0, count, length)):
            first, part = min(some), slice(min(some), max(some) + 1)
            factors, through = all_factors[: len(some)], all_through[: len(some)]
            of_i, of_f, of_g, of_o = factors.swapaxes(0, 1)
            o, i, f, g = gates[part].swapaxes(0, 1)
            np.subtract(1, gates[part, 1:3], out=factors[:, :2])
            np.multiply(i, g, out=of_g)
            of_i *= of_g
            of_g *= g
            np.subtract(i, of_g, out=of_g)
            of_f *= f
            of_f *= cells_before[part]
            np.subtract(1, o, out=of_o)
            of_o *= outputs[part]
            np.multiply(outputs[part], curved[part], out=through)
            np.subtract(o, through, out=through)
            for t in some:
                to_h += of_outputs[t]
                to_c += np.multiply(to_h, through[t - first], out=spare)
                copies[...] = to_c
                np.multiply(factors[t - first], states, out=by_gate[t])
                to_c *= f[t - first]
                np.matmul(slopes[t], w, out=product)
        return slopes.reshape(-1, 4 * steps.size), to_h, to_c

    return value, (
        lambda g, out: np.matmul(back(g)[0], w_input).reshape(x.shape),
        lambda g, out: back(g)[1],
        lambda g, out: back(g)[2],
        *steps.rules(lambda g: back(g)[0]),
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
    count, size, half = len(x), w_state.shape[1], np.array(0.5, x.dtype)
    steps = _Steps(x, h, reverse)
    gates = np.empty((count, 2, *h.shape), x.dtype)
    product = steps.product(_joined((0, 1), w_state, w_input, b_input, b_state) * half, gates)
    # r stands between what n takes from the state, `inner`, and what it takes from the input.
    of_state = _joined((2,), w_state, w_input, b_state)[0, :, : size + 1]
    of_input = _joined((2,), w_state, w_input, b_input)[0, :, size:]
    n = np.matmul(steps.flat[:, size:], of_input.T).reshape(count, *h.shape)
    inner, blocks, spare = np.empty_like(n), _in_blocks(of_state.T, len(h)), np.empty(h.shape, x.dtype)
    products = _by_block(inner, blocks)
    for t in _order(count, reverse):
        product(t)
        row, both, new = steps.rows[t], gates[t], n[t]
        np.matmul(row[:, : size + 1], blocks, out=products[t])
        np.tanh(both, out=both)
        both *= half
        both += half
        r, z = both
        new += np.multiply(r, inner[t], out=spare)
        np.tanh(new, out=new)
        np.subtract(row[:, :size], new, out=spare)
        spare *= z
        np.add(spare, new, out=steps.ends[t])

    @memoize_last
    def back(gradient: Array) -> tuple[Array, Array]:
        """The gradients of n', r, z and n before their functions, (T * N, 4 * H), and of h before the first step."""
        r, z = gates.swapaxes(0, 1)
        factors = np.empty((count, 4, *h.shape), x.dtype)
        of_inner, of_r, of_z, of_n = factors.swapaxes(0, 1)
        np.subtract(1, gates, out=factors[:, 1:3])
        np.multiply(of_z, 1 - np.square(n), out=of_n)
        np.multiply(of_n, r, out=of_inner)
        of_r *= of_inner
        of_r *= inner
        of_z *= z
        of_z *= steps.rows[..., :size] - n
        slopes = np.empty((count, len(h), 4 * size), x.dtype)
        by_gate = slopes.reshape(count, len(h), 4, size).swapaxes(1, 2)
        w = _in_blocks(np.concatenate((w_state[2 * size :], w_state[: 2 * size])), len(h))
        to_h, spare = np.zeros(h.shape, x.dtype), np.empty(h.shape, x.dtype)
        product = _by_block(spare, w)
        for t in reversed(_order(count, reverse)):
            to_h += gradient[t]
            np.multiply(factors[t], to_h, out=by_gate[t])
            to_h *= z[t]
            np.matmul(slopes[t, :, : 3 * size], w, out=product)
            to_h += spare
        return slopes.reshape(-1, 4 * size), to_h

    def to_w_state(g: Any, out: Any) -> Any:
        (slopes, _), states = back(g), steps.flat[:, :size]
        out = np.empty_like(w_state) if out is None else out
        np.matmul(slopes[:, size : 3 * size].T, states, out=out[: 2 * size])
        np.matmul(slopes[:, :size].T, states, out=out[2 * size :])
        return out

    sums = memoize_last(lambda gradient: column_sums(back(gradient)[0]))

    def to_b_state(g: Any, out: Any) -> Any:
        return np.concatenate((sums(g)[size : 3 * size], sums(g)[:size]), out=out)

    return steps.ends.copy(), (
        lambda g, out: np.matmul(back(g)[0][:, size:], w_input).reshape(x.shape),
        lambda g, out: back(g)[1],
        lambda g, out: np.matmul(back(g)[0][:, size:].T, steps.flat[:, size + 1 :], out=out),
        to_w_state,
        lambda g, out: _copied(sums(g)[size:], out),
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
    count, zero = len(x), np.zeros((), x.dtype)
    steps = _Steps(x, h, reverse)
    product = steps.product(_joined((0,), w_state, w_input, b_input, b_state), steps.ends[:, None])
    for t in _order(count, reverse):
        product(t)
        a = steps.ends[t]
        if nonlinearity == "tanh":
            np.tanh(a, out=a)
        else:
            np.maximum(a, zero, out=a)
    value = steps.ends.copy()

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
        return slopes.reshape(-1, steps.size), to_h

    return value, (
        lambda g, out: np.matmul(back(g)[0], w_input).reshape(x.shape),
        lambda g, out: back(g)[1],
        *steps.rules(lambda g: back(g)[0]),
    )
