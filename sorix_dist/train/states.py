"""What a run needs to go on as if it had not been stopped: the states of its parts, and what the package counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sorix_dist import nn
from sorix_dist._version import __version__
from sorix_dist.comm import Comm
from sorix_dist.core import random as rng
from sorix_dist.core.ops.dropout import Draws, functional_draws
from sorix_dist.optim.optimizer import Optimizer
from sorix_dist.parallel import DistributedDataParallel
from sorix_dist.utils import machine


def has_state(part: Any) -> bool:
    """Whether a part of a run has a state that can be taken and given back."""
    return _has_own_state(part) or (_has(part, "set_epoch") and hasattr(part, "epoch"))


def is_alike(part: Any) -> bool:
    """Whether a part is the same on every rank, so that the state of one rank's is that of all."""
    return isinstance(part, nn.Module | Optimizer)


def state_of(part: Any) -> Any:
    """The state of a part; its epoch if that is all there is."""
    return part.state_dict() if _has_own_state(part) else {"epoch": part.epoch}


def is_copied(part: Any) -> bool:
    """Whether the state of a part shares no memory with it: the package's own methods promise that."""
    if type(part) is DistributedDataParallel:
        part = part.module  # whose state it is
    return getattr(part.state_dict, "__func__", None) in (nn.Module.state_dict, Optimizer.state_dict)


def load_state(part: Any, state: Any) -> None:
    """Gives a part a state that `state_of` took."""
    if _has_own_state(part):
        part.load_state_dict(state)
    else:
        part.set_epoch(state["epoch"])


def counts(parts: Mapping[str, Any]) -> dict[str, Any]:
    """What the package itself counts: random numbers, and the masks that layers have drawn."""
    return {
        "random": rng.state(),
        "calls": functional_draws().calls,
        "draws": {
            name: {place: [draws.number, draws.calls] for place, draws in _draws(part)} for name, part in parts.items()
        },
    }


def go_on(parts: Mapping[str, Any], counted: Mapping[str, Any]) -> None:
    """Goes on where `counts` were taken."""
    rng.go_on(counted["random"])
    functional_draws().calls = counted["calls"]
    for name, part in parts.items():
        known = counted["draws"].get(name, {})
        for place, draws in _draws(part):
            if place in known:
                draws.number, draws.calls = known[place]


def surroundings(comm: Comm, shards: int | None) -> dict[str, Any]:
    """What the bits of the results depend on, beside the program: names and values.

    shards: the pieces that every batch is cut into, if their number does not follow from that of the ranks.
    """
    libraries = machine.blas()
    return {
        "ranks": comm.size,
        "hosts": comm.hosts,
        "virtual shards": shards,
        "BLAS": "; ".join(library for library, _ in libraries),
        "BLAS threads": max((threads for _, threads in libraries), default=1),
        "NumPy": np.__version__,
        "CPU": machine.cpu(),
        "sorix_dist": __version__,
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What has changed in the surroundings so that bits may change.

    Ranks and hosts do not count where both runs cut the batch into the same virtual shards.
    """
    shards = now["virtual shards"]
    free = ("ranks", "hosts") if shards is not None and before.get("virtual shards") == shards else ()
    return [
        f"{name}: {before.get(name)} then, {value} now"
        for name, value in now.items()
        if before.get(name) != value and name not in free
    ]


def _draws(part: Any) -> Iterator[tuple[str, Draws]]:
    """The masks of the layers of a model, by the layer's name."""
    if isinstance(part, DistributedDataParallel):
        part = part.module
    if isinstance(part, nn.Module):
        for prefix, module in part.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Draws):
                    yield f"{prefix}.{name}", value


def _has_own_state(part: Any) -> bool:
    return _has(part, "state_dict", "load_state_dict")


def _has(part: Any, *methods: str) -> bool:
    return all(callable(getattr(part, method, None)) for method in methods)
