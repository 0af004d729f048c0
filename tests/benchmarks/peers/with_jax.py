"""JAX: the perceptrons as one compiled function, which reuses the memory of the parameters that it replaces."""

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

        def loss_of(parameters: Any, x: Any, y: Any) -> Any:
            *hidden, (weight, bias) = parameters
            for w, b in hidden:
                x = jax.nn.relu(x @ w + b)
            chosen = jnp.take_along_axis(jax.nn.log_softmax(x @ weight + bias), y[:, None], 1)
            return -jnp.mean(chosen)

        @partial(jax.jit, donate_argnums=(0, 1))
        def update(parameters: Any, velocities: Any, x: Any, y: Any) -> Any:
            loss, gradients = jax.value_and_grad(loss_of)(parameters, x, y)
            velocities = jax.tree.map(lambda v, g: 0.9 * v + g, velocities, gradients)
            return jax.tree.map(lambda p, v: p - 1e-3 * v, parameters, velocities), velocities, loss

        stored = np.load(path)
        weights = [stored[f"arr_{i}"] for i in range(2 * (len(stored["sizes"]) - 1))]
        parameters = [
            (jnp.asarray(w.T.copy()), jnp.asarray(b)) for w, b in zip(weights[::2], weights[1::2], strict=True)
        ]
        state = parameters, jax.tree.map(jnp.zeros_like, parameters)
        pairs = zip(stored["x"], stored["y"], strict=True)
        batches = itertools.cycle([(jnp.asarray(x), jnp.asarray(y.reshape(-1))) for x, y in pairs])

        def step() -> Any:
            nonlocal state
            *state, loss = update(*state, *next(batches))
            return jax.block_until_ready((state, loss))[1]

        return step
