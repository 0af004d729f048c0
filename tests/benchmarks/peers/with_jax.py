"""JAX: perceptrons and an LSTM as one compiled function, which reuses the memory of the parameters that it replaces."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

VERSION = ""  # known when it has been imported, which must not be before its cores are chosen


class Peer:
    """A process of JAX on as many cores as it shall have threads."""

    def __init__(self, threads: int, rank: int, ranks: int, meeting: str) -> None:
        global VERSION
        self.rank, self.ranks = rank, ranks
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])  # it starts a thread for each of them
        if threads == 1:
            os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        import jax

        VERSION = jax.__version__

    def prepare(self, act: str, workload: str, path: str) -> Callable[[], Any]:
        """A training step."""
        import jax
        from jax import numpy as jnp

        def perceptron(parameters: Any, x: Any) -> Any:
            *hidden, (weight, bias) = zip(parameters[::2], parameters[1::2], strict=True)
            for w, b in hidden:
                x = jax.nn.relu(x @ w.T + b)
            return x @ weight.T + bias

        def recurrent(parameters: Any, x: Any) -> Any:
            w_input, w_state, b_input, b_state, weight, bias = parameters

            def each(states: Any, from_input: Any) -> Any:
                h, c = states
                i, f, g, o = jnp.split(from_input + h @ w_state.T, 4, axis=1)
                c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
                return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

            start = jnp.zeros((len(x), w_state.shape[1]), x.dtype)
            inputs = jnp.swapaxes(x @ w_input.T + (b_input + b_state), 0, 1)
            (h, _), _ = jax.lax.scan(each, (start, start), inputs)
            return h @ weight.T + bias

        model = recurrent if workload == "W6" else perceptron

        def loss_of(parameters: Any, x: Any, y: Any) -> Any:
            scores = model(parameters, x)
            if workload == "W9":
                return jnp.mean(jnp.square(scores - y))
            return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(scores), y[:, None], 1))

        @partial(jax.jit, donate_argnums=(0, 1))
        def update(parameters: Any, state: Any, x: Any, y: Any) -> Any:
            loss, gradients = jax.value_and_grad(loss_of)(parameters, x, y)
            if workload == "W9":  # Adam
                count, means, squares = state
                count += 1
                means = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, means, gradients)
                squares = jax.tree.map(lambda s, g: 0.999 * s + 0.001 * g * g, squares, gradients)
                factor, root = 1e-4 / (1 - 0.9**count), 1 / jnp.sqrt(1 - 0.999**count)
                change = jax.tree.map(lambda m, s: factor * m / (jnp.sqrt(s) * root + 1e-8), means, squares)
                return jax.tree.map(jnp.subtract, parameters, change), (count, means, squares), loss
            state = jax.tree.map(lambda v, g: 0.9 * v + g, state, gradients)
            return jax.tree.map(lambda p, v: p - 1e-3 * v, parameters, state), state, loss

        stored = np.load(path)
        parameters = [jnp.asarray(stored[f"arr_{i}"]) for i in range(sum(name.startswith("arr_") for name in stored))]
        zeros = partial(jax.tree.map, jnp.zeros_like)
        moments = (jnp.zeros(()), zeros(parameters), zeros(parameters)) if workload == "W9" else zeros(parameters)
        state = parameters, moments
        pairs = zip(stored["x"], stored["y"], strict=True)
        batches = itertools.cycle(
            [(jnp.asarray(x), jnp.asarray(y.reshape(-1) if y.dtype.kind == "i" else y)) for x, y in pairs]
        )

        def step() -> Any:
            nonlocal state
            *state, loss = update(*state, *next(batches))
            return jax.block_until_ready((state, loss))[1]

        return step
