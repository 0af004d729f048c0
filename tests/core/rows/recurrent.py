"""Recurrent layers over whole sequences."""

from __future__ import annotations

import numpy as np

from sorix_dist.core.ops import recurrent as r
from tests.support.core.opcheck import Row

SEQUENCES = {"0-d": "a sequence has steps, rows and features"}


def s(x):
    return 1 / (1 + np.exp(-x))


def order(count, reverse):
    return reversed(range(count)) if reverse else range(count)


def lstm(x, h, c, w, u, b=None, d=None, reverse=False):
    states = np.zeros((len(x) + 1, *h.shape))
    outputs = states[1:] if reverse else states[:-1]
    for t in order(len(x), reverse):
        gates = x[t] @ w.T + h @ u.T + (0 if b is None else b) + (0 if d is None else d)
        i, f, g, o = np.split(gates, 4, axis=1)
        c = s(f) * c + s(i) * np.tanh(g)
        outputs[t] = h = s(o) * np.tanh(c)
    states[0 if reverse else -1] = c
    return states


def gru(x, h, w, u, b=None, d=None, reverse=False):
    states = np.zeros((len(x), *h.shape))
    for t in order(len(x), reverse):
        r_x, z_x, n_x = np.split(x[t] @ w.T + (0 if b is None else b), 3, axis=1)
        r_h, z_h, n_h = np.split(h @ u.T + (0 if d is None else d), 3, axis=1)
        z = s(z_x + z_h)
        states[t] = h = (1 - z) * np.tanh(n_x + s(r_x + r_h) * n_h) + z * h
    return states


def rnn(x, h, w, u, b=None, d=None, nonlinearity="tanh", reverse=False):
    states = np.zeros((len(x), *h.shape))
    function = np.tanh if nonlinearity == "tanh" else lambda a: np.maximum(a, 0)
    for t in order(len(x), reverse):
        states[t] = h = function(x[t] @ w.T + h @ u.T + (0 if b is None else b) + (0 if d is None else d))
    return states


def cases(gates, states):
    """Sequences of T steps and N rows of 3 features, for 2 neurons, with and without biases."""
    weights = ((gates * 2, 3), (gates * 2, 2))
    for steps, rows in ((3, 4), (1, 1), (3, 0)):
        yield ((steps, rows, 3), *(((rows, 2),) * states), *weights, (gates * 2,), (gates * 2,))
    yield ((3, 4, 3), *(((4, 2),) * states), *weights, None, None)


ROWS = [
    Row(operation, reference, list(cases(gates, states)), {**options, "reverse": reverse}, lacks=SEQUENCES)
    for operation, reference, gates, states, options in (
        (r.lstm, lstm, 4, 2, {}),
        (r.gru, gru, 3, 1, {}),
        (r.rnn, rnn, 1, 1, {"nonlinearity": "tanh"}),
        (r.rnn, rnn, 1, 1, {"nonlinearity": "relu"}),
    )
    for reverse in (False, True)
]
