"""What the forward of a model changes in its modules, where reproducible mode runs it for each virtual shard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core import random as rng
from sorix_dist.core.capture import host, version
from sorix_dist.core.placement import Group
from sorix_dist.core.tensor import Array
from sorix_dist.nn import Module
from sorix_dist.parallel.virtual_shards import VirtualShards, sum_rows


def owned_buffers(module: Module) -> list[tuple[Module, str]]:
    """The buffers of a model, each as its module and attribute."""
    return [(m, name) for m in module.modules() for name in m._own_buffers() if getattr(m, name) is not None]


class GlobalDraws:
    """Looks at one forward of a wrapped model, if `wanted`, for draws from random streams that all code shares.

    It stands beside the wrapper: a step would be captured anew when an attribute of a module changes.
    """

    def __init__(self, group: Group, wanted: bool) -> None:
        self.group, self.looked = group, not wanted

    @contextmanager
    def look(self) -> Iterator[None]:
        """A context for the forward: warns of its draws."""
        self.looked = True
        with rng.draws_from() as drawn:
            yield
        for name in drawn:
            self.group.warn(
                f"the forward draws from {name}, which all ranks have to seed alike, and which "
                "differs from that of one process for rows and in reproducible mode: draw by sx.rand and "
                "sx.randn_like, or from a generator that is an attribute of the module"
            )


@host
def buffers_of(module: Module) -> Buffers:
    """The buffers of a model, before its forward."""
    return Buffers(module)


class Buffers:
    """The buffers of a model. Every shard starts with the same values; the new value of a buffer is the mean over the
    shards, weighted by their rows."""

    def __init__(self, module: Module) -> None:
        self.buffers = owned_buffers(module)
        self.before = [getattr(m, name) for m, name in self.buffers]
        self.values = [tensor.array.copy() for tensor in self.before]
        self.after: list[list[Array]] = []

    @host
    def restore(self) -> None:
        for (module, name), tensor, value in zip(self.buffers, self.before, self.values, strict=True):
            if getattr(module, name) is not tensor:
                setattr(module, name, tensor)
            np.copyto(tensor.array, value)

    @host
    def keep(self) -> None:
        if not self.buffers:
            return
        now = [getattr(module, name) for module, name in self.buffers]
        self.after.append([tensor.array.copy() for tensor in now])
        self.assigned = [tensor is not old for tensor, old in zip(now, self.before, strict=True)]

    @host
    def combine(self, shards: VirtualShards, total: int) -> None:
        if not self.buffers:
            return
        self.restore()
        bounds = [shards.rows(shard, total) for shard in shards.owned]
        weights = [(stop - start) / max(1, total) for start, stop in bounds]
        for (module, name), tensor, new, *values in zip(
            self.buffers, self.before, self.assigned, *self.after, strict=True
        ):
            mean = values[0]  # a count of batches
            if tensor.array.dtype.kind == "f":
                parts = np.array([v * np.asarray(w, v.dtype) for v, w in zip(values, weights, strict=True)])
                mean = sum_rows(shards.table(np.ascontiguousarray(parts)))
            if new:  # the backward needs the numbers that the forward read
                setattr(module, name, Tensor(mean))
            else:
                np.copyto(tensor.array, mean)


class Numbers:
    """The plain attributes of a model's modules, such as a count of steps, and the random streams. Every shard starts
    with the same values, so that a forward counts, and draws, once for each batch."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self._version = -1
        self.begin()

    def begin(self) -> None:
        """Remembers the values with which a batch begins."""
        if self._version != version():  # which each assignment to an attribute of a module changes
            self._version = version()
            self.modules = [*self.module.modules()]
            self.before = self._read()
            values = [(m, k, v) for m in self.modules for k, v in m.__dict__.items()]
            self._owners = [(m, k) for m, k, v in values if v.__class__ in (list, dict)]
            self._lists = [v for _, _, v in values if v.__class__ in (list, dict)]
            self._streams = [v for _, _, v in values if isinstance(v, rng.STREAMS)]
        self._read_before = [*map(rng.stream_state, self._streams)]
        self._lengths = [*map(len, self._lists)]
        self.after: list[dict[str, Any]] = []

    def _read(self) -> list[dict[str, Any]]:
        return [{k: v for k, v in m.__dict__.items() if v.__class__ in (int, float, bool, str)} for m in self.modules]

    def restore(self) -> None:
        """Sets what the forward of another shard has changed."""
        for stream, state in zip(self._streams, self._read_before, strict=True):
            rng.set_stream_state(stream, state)
        if not self.after or self._version == version():
            return
        for module, before, after in zip(self.modules, self.before, self.after, strict=True):
            if before != after:
                for name in after.keys() - before.keys():
                    delattr(module, name)
                module.__dict__.update(before)
        self._version = version()

    def compare(self, group: Group) -> None:
        """Warns of an attribute that is not the same after the forwards of all shards, and of a list that grows."""
        now, before = self.before if self._version == version() else self._read(), self.after
        for module, ours, theirs in zip(self.modules, now, before) if now is not before else ():
            for name in ours.keys() & theirs.keys():
                if ours[name] != theirs[name]:
                    group.warn(
                        f"reproducible mode: the forward sets {type(module).__name__}.{name} to {theirs[name]} for one "
                        f"virtual shard of a batch and to {ours[name]} for another: a later forward that reads it "
                        "computes something else on every number of ranks"
                    )
        self.after = now
        if [*map(len, self._lists)] == self._lengths:
            return
        for (module, name), found, length in zip(self._owners, self._lists, self._lengths, strict=True):
            if getattr(module, name, None) is found and len(found) > length:
                group.warn(
                    f"reproducible mode: the forward adds to {type(module).__name__}.{name} for each virtual shard of "
                    "this rank: what a later forward computes from it depends on the number of ranks"
                )
