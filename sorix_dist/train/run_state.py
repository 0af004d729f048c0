"""What a run needs to go on as if it had not been stopped: the states of its parts, and what the package counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from typing import Any

import numpy as np

from sorix_dist import nn
from sorix_dist._version import __version__
from sorix_dist.comm import Comm
from sorix_dist.core import Tensor
from sorix_dist.core import random as rng
from sorix_dist.core.memory import refuse_frozen
from sorix_dist.core.random import Draws, functional_draws
from sorix_dist.optim.optimizer import Optimizer
from sorix_dist.parallel import DistributedDataParallel
from sorix_dist.parallel.consistency import on_every_rank
from sorix_dist.utils import machine
from sorix_dist.utils.data.nested import tensors


def has_state(part: Any) -> bool:
    """Whether a part of a run has a state that can be taken and given back."""
    return _has_own_state(part) or (_has(part, "set_epoch") and hasattr(part, "epoch"))


def is_alike(part: Any) -> bool:
    """Whether a part is the same on every rank, so that the state of one rank's is that of all."""
    return isinstance(part, nn.Module | Optimizer)


def state_of(part: Any) -> Any:
    """The state of a part; its epoch if that is all there is."""
    return part.state_dict() if _has_own_state(part) else {"epoch": part.epoch}


def copies(part: Any, state: Any) -> Iterator[Tensor]:
    """The tensors in the state of a part that share no memory with it: the package's own methods promise that."""
    taken = getattr(_bare(part).state_dict, "__func__", None)
    if taken is nn.Module.state_dict:
        yield from tensors(state)
    elif taken is Optimizer.state_dict:  # the options beside are whatever a user has put there
        yield from tensors(state["state"])


def load_states(comm: Comm, parts: Mapping[str, Any], saved: Mapping[str, Any], counted: Mapping[str, Any]) -> None:
    """Gives the parts the states that `state_of` took, by name, and goes on where `counts` were taken; or, if a part
    refuses its state on any rank, changes nothing. A call of all ranks.

    A part with `check_state_dict(state)` is asked before anything has changed; that method raises what
    `load_state_dict` would raise. The others come next, and get back what they had if one of them refuses.
    """
    checked = {name: part for name, part in parts.items() if _says_what_fits(part)}
    others = {name: part for name, part in parts.items() if name not in checked}
    counted_before, before = counts(parts), dict[str, Any]()
    try:
        on_every_rank(comm, lambda: go_on(parts, counted))  # first: the order of a loader follows from the seed
        on_every_rank(comm, lambda: _each(_check, checked, saved))
        before = on_every_rank(comm, lambda: _taken(others))
        on_every_rank(comm, lambda: _each(_load, others, saved))
    except Exception:
        go_on(parts, counted_before)
        on_every_rank(comm, lambda: _each(_load, {name: others[name] for name in before}, before))
        raise
    on_every_rank(comm, lambda: _each(_load, checked, saved))


def _taken(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Copies of the states that parts have; one that is made by its `load_state_dict` may have none yet."""
    states = {}
    for name, part in parts.items():
        with suppress(Exception):
            states[name] = deepcopy(state_of(part))
    return states


def _each(do: Callable[[Any, Any], None], parts: Mapping[str, Any], states: Mapping[str, Any]) -> None:
    for name, part in parts.items():
        try:
            do(part, states[name])
        except Exception as error:
            error.add_note(f"while the checkpoint's {name} was loaded")
            raise


def _check(part: Any, state: Any) -> None:
    if isinstance(part, nn.Module) and not isinstance(part, DistributedDataParallel):
        for parameter in part.parameters():
            refuse_frozen(parameter.array)
    _bare(part).check_state_dict(state)


def _load(part: Any, state: Any) -> None:
    if _has_own_state(part):
        part.load_state_dict(state)
    else:
        part.set_epoch(state["epoch"])


def _says_what_fits(part: Any) -> bool:
    """Whether a part has a `check_state_dict` that speaks for its `load_state_dict`: of the same class, or one that was
    derived from it."""
    part = _bare(part)
    if "load_state_dict" in getattr(part, "__dict__", ()):
        return False
    defining = (vars(kind) for kind in type(part).__mro__)
    first: Mapping[str, Any] = next(
        (own for own in defining if {"check_state_dict", "load_state_dict"} & own.keys()), {}
    )
    return "check_state_dict" in first


def _bare(part: Any) -> Any:
    """A wrapped model itself, whose state it is; any other part as it is."""
    return part.module if type(part) is DistributedDataParallel else part


def counts(parts: Mapping[str, Any]) -> dict[str, Any]:
    """What the package itself counts: random numbers, and the masks that layers have drawn."""
    return {
        "random": rng.state(),
        "calls": functional_draws().calls,
        "draws": {
            name: {place: [draws.number, draws.calls] for place, draws in _draws(part)} for name, part in parts.items()
        },
    }


def are_counts(value: Any) -> bool:
    """Whether a value has the form of what `counts` takes."""
    if not isinstance(value, dict) or not {"random", "calls", "draws"} <= value.keys():
        return False
    entries = (value["random"], value["draws"], *(value["draws"].values() if isinstance(value["draws"], dict) else ()))
    return isinstance(value["calls"], int) and all(isinstance(entry, dict) for entry in entries)


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
    part = _bare(part)
    if isinstance(part, nn.Module):
        for prefix, module in part.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Draws):
                    yield f"{prefix}.{name}", value


def _has_own_state(part: Any) -> bool:
    return _has(part, "state_dict", "load_state_dict")


def _has(part: Any, *methods: str) -> bool:
    return all(callable(getattr(part, method, None)) for method in methods)
