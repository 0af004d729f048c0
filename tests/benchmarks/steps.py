"""Training steps beside their matrix products, and the part of a step in which ranks wait for each other."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

import sorix_dist as sx
from sorix_dist import nn
from sorix_dist.core.flat import leaf_of
from sorix_dist.core.graph import zero
from sorix_dist.parallel import world
from sorix_dist.parallel.agreement import BACKWARD, StepFingerprint
from sorix_dist.parallel.coordinator import Coordinator
from sorix_dist.utils.data import loader
from sorix_dist.utils.data.sampler import shard_bounds
from tests.benchmarks.measure import interleaved
from tests.benchmarks.products import multiply
from tests.benchmarks.workloads import WORKLOADS, training_step


def measure(names: Sequence[str], synchronised: Sequence[str], seconds: float) -> dict[str, Any]:
    """Of the workloads of these names the times of `step` and of its `products`; of the `synchronised` ones those of
    `synchronisation`, of an `all_reduce` of as many numbers, of the `agreement` of the ranks in the first, and of the
    `barriers` that this would be without words. Each pair runs for `seconds`. A call of all ranks."""
    steps, synchronisations = {}, {}
    for name in names:
        workload = WORKLOADS[name]
        start, stop = shard_bounds(workload.rows, *loader.ranks())
        products = workload.products(stop - start)
        steps[name] = interleaved({"step": training_step(workload), "products": partial(multiply, products)}, seconds)
        gc.collect()  # a wrapped model that nobody holds any more would still be asked
    for name in synchronised:
        synchronisations[name] = interleaved(synchronisation(WORKLOADS[name].model()), seconds / 4)
        gc.collect()
    return {"steps": steps, "synchronisation": synchronisations}


def synchronisation(module: nn.Module) -> dict[str, Callable[[], Any]]:
    """What `measure` says of it, as functions; all ranks call them."""
    model = sx.DistributedDataParallel(module)
    leaves = [leaf_of(parameter) for parameter in model.parameters()]
    coordinator, loss = leaves[0].sync, sx.zeros(())
    assert isinstance(coordinator, Coordinator)
    gradient = np.zeros(sum(parameter.numel for parameter in model.parameters()), np.float32)

    def synchronise() -> None:
        zero(leaves)
        coordinator.before_backward(None)
        for leaf in leaves:  # as if a backward had reached them
            leaf.local.written = True
        coordinator.after_backward(loss)

    consensus, fingerprint = coordinator.consensus, StepFingerprint(BACKWARD)
    barrier = getattr(consensus, "window", world()).barrier

    def agree() -> None:
        consensus.agree(fingerprint, [0], [])
        consensus.commit(True)

    def two_barriers() -> None:
        barrier()
        barrier()

    return {
        "synchronisation": synchronise,
        "all_reduce": lambda: world().all_reduce(gradient),
        "agreement": agree,
        "barriers": two_barriers,
    }
