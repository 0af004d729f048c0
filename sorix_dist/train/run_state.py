"""The state of a run: the states of its parts, and the package's counters. It resumes from there bit for bit."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from typing import Any

import numpy as np

from sorix_dist import nn
from sorix_dist._version import __version__
from sorix_dist.comm import Comm, blas
from sorix_dist.core import Tensor
from sorix_dist.core import random as rng
from sorix_dist.core.memory import refuse_frozen
from sorix_dist.core.random import Draws, functional_draws
from sorix_dist.optim.optimizer import Optimizer
from sorix_dist.parallel import DistributedDataParallel
from sorix_dist.parallel.consistency import on_every_rank
from sorix_dist.utils.data.dataset import matches_override
from sorix_dist.utils.data.nested import tensors


def has_state(part: Any) -> bool:
    """Whether a part of a run has a state to save and load: a state dict, or at least an epoch."""
    return _has_own_state(part) or (_has(part, "set_epoch") and hasattr(part, "epoch"))


def is_replicated(part: Any) -> bool:
    """Whether a part is the same on every rank, so that rank 0's state is that of all ranks."""
    return isinstance(part, nn.Module | Optimizer)


def states_of(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The states of some parts, by name."""
    return {name: _state_of(part) for name, part in parts.items()}


def _state_of(part: Any) -> Any:
    return part.state_dict() if _has_own_state(part) else {"epoch": part.epoch}


def copies(part: Any, state: Any) -> Iterator[Tensor]:
    """The tensors in a part's state that share no memory with it, as the package's own `state_dict` promises."""
    taken = getattr(_bare(part).state_dict, "__func__", None)
    if taken is nn.Module.state_dict:
        yield from tensors(state)
    elif taken is Optimizer.state_dict:  # options may be arrays of the user's
        yield from tensors(state["state"])


def load_states(comm: Comm, parts: Mapping[str, Any], saved: Mapping[str, Any], counted: Mapping[str, Any]) -> None:
    """Loads states, by name, and the counters that `counts` took; if a part raises on any rank, changes nothing. A call
    of all ranks.

    Parts with `check_state_dict(state)`, which raises what `load_state_dict` would raise, are checked first. The
    others are loaded next, and get their former states back if one of them raises.
    """
    checked = {name: part for name, part in parts.items() if _has_check(part)}
    others = {name: part for name, part in parts.items() if name not in checked}
    counted_before, before = counts(parts), dict[str, Any]()
    try:
        on_every_rank(comm, lambda: restore_counts(parts, counted))  # first: a loader's order follows from the seed
        on_every_rank(comm, lambda: _each(_check, checked, saved))
        before = on_every_rank(comm, lambda: _copied_states(others))
        on_every_rank(comm, lambda: _each(_load, others, saved))
    except Exception:
        restore_counts(parts, counted_before)
        on_every_rank(comm, lambda: _each(_load, {name: others[name] for name in before}, before))
        raise
    on_every_rank(comm, lambda: _each(_load, checked, saved))


def _copied_states(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Copies of the states of parts, except parts that have none before their first `load_state_dict`."""
    states = {}
    for name, part in parts.items():
        with suppress(Exception):
            states[name] = deepcopy(_state_of(part))
    return states


def _each(do: Callable[[Any, Any], None], parts: Mapping[str, Any], states: Mapping[str, Any]) -> None:
    for name, part in parts.items():
        try:
            do(part, states[name])
        except Exception as error:
            error.add_note(f"while the checkpoint's {name} was loaded; a changed run needs a folder of its own")
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


def _has_check(part: Any) -> bool:
    """Whether a part has a `check_state_dict` that belongs to its `load_state_dict`."""
    part = _bare(part)
    replaced = "load_state_dict" in getattr(part, "__dict__", ())
    return not replaced and matches_override(type(part), "check_state_dict", "load_state_dict")


def _bare(part: Any) -> Any:
    """The model in a wrapper; any other part itself."""
    return part.module if type(part) is DistributedDataParallel else part


def counts(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The package's own counters: random numbers, and the dropout masks that layers have drawn."""
    return {
        "random": rng.state(),
        "calls": functional_draws().calls,
        "draws": {
            name: {layer: [draws.number, draws.calls] for layer, draws in _draws(part)} for name, part in parts.items()
        },
    }


def are_counts(value: Any) -> bool:
    """Whether a value has the form of `counts`."""
    if not isinstance(value, dict) or not {"random", "calls", "draws"} <= value.keys():
        return False
    entries = (value["random"], value["draws"], *(value["draws"].values() if isinstance(value["draws"], dict) else ()))
    return isinstance(value["calls"], int) and all(isinstance(entry, dict) for entry in entries)


def restore_counts(parts: Mapping[str, Any], counted: Mapping[str, Any]) -> None:
    """Sets the counters to what `counts` took."""
    rng.go_on(counted["random"])
    functional_draws().calls = counted["calls"]
    for name, part in parts.items():
        known = counted["draws"].get(name, {})
        for layer, draws in _draws(part):
            if layer in known:
                draws.number, draws.calls = known[layer]


def cpu() -> str:
    """The name of the processor."""
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def surroundings(comm: Comm, shards: int | None) -> dict[str, Any]:
    """The conditions other than the program on which the bits of results depend, by name.

    shards: the number of virtual shards in reproducible mode, else None.
    """
    libraries = blas.libraries()
    return {
        "ranks": comm.size,
        "hosts": comm.hosts,
        "virtual shards": shards,
        "BLAS": "; ".join(library for library, _ in libraries),
        "BLAS threads": max((threads for _, threads in libraries), default=1),
        "NumPy": np.__version__,
        "CPU": cpu(),
        "sorix_dist": __version__,
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The changes that may change bits. With equal virtual shards, ranks and hosts do not matter."""
    shards = now["virtual shards"]
    free = ("ranks", "hosts") if shards is not None and before.get("virtual shards") == shards else ()
    return [
        f"{name}: {before.get(name)} then, {value} now"
        for name, value in now.items()
        if before.get(name) != value and name not in free
    ]


def _draws(part: Any) -> Iterator[tuple[str, Draws]]:
    """The counters of dropout masks in a model, by the layer's name and attribute."""
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
