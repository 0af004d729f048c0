"""The state of an optimizer for the parameters of one group, in flat arrays parallel to theirs, and its steps."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from sorix_dist.core import Tensor, flat
from sorix_dist.core.fingerprint import as_text
from sorix_dist.core.graph import Accumulator, Leaf, Sync, syncs_of
from sorix_dist.core.memory import PRIVATE, ParameterMemory
from sorix_dist.core.tensor import Array

Scratch = tuple[Array, ...]
Buffers = dict[str, Array]  # by name
Block = tuple[Array, Array, Scratch, Buffers]  # data, gradient, scratch and buffers: slices of one length


class FlatState:
    """For each parameter the number of its updates, and buffers of its shape and dtype.

    All buffers of one dtype and memory form one array in that memory, in the order of the group. So neighbours in flat
    storage are neighbours here. When parameters move, only the blocks are computed anew.
    """

    def __init__(self, params: list[Tensor], optimizer: str, options: Sequence[str]) -> None:
        self.params = params
        self._optimizer, self._names = optimizer, list(options)
        self._options_of = itemgetter(*options)  # of a group, as a tuple
        self._steps = np.zeros(len(params), np.int64)  # of the first `_summed` of all `_advances`
        self._advances = self._summed = 0
        # A digest of the step counts: now, before the last step, and the increment of a step.
        self._count = self._before = self._per_step = 0
        self.buffers: dict[str, list[Array]] = {}  # an array for each kind
        self._kinds: list[tuple[ParameterMemory, np.dtype[Any]]] = []
        self._last: tuple[tuple[Any, ...], int] = (), 0  # the digested options, and the digest
        self.memories: list[ParameterMemory] = []  # that processes share, without duplicates
        self._offsets: list[tuple[int, int]] = []  # of each parameter: the number of its kind, and its offset
        self._version = -1  # of the flat storages, for these three:
        self._leaves, self._totals, self._syncs = list[Leaf](), list[Accumulator](), list[Sync]()
        self._blocks_for: Any = None  # the state that the blocks of `_runs` were cut for
        self._used = np.zeros(len(params), np.int64)
        self._runs: list[tuple[int, list[Block]]] = []  # with the count of updates, less that of advances
        self._allocate((), "optimizer.step")

    @property
    def steps(self) -> Array:
        """The number of updates of each parameter."""
        if self._summed != self._advances:
            self._steps += (self._advances - self._summed) * self._used
            self._summed = self._advances
        return self._steps

    def leaves(self) -> list[Leaf]:
        """The leaves of these parameters."""
        if self._version != flat.version():
            self._leaves = [flat.leaf_of(p) for p in self.params]
            self._totals = [leaf.total for leaf in self._leaves]
            self._syncs = syncs_of(self._leaves)
            self._version = flat.version()
        return self._leaves

    def syncs(self) -> list[Sync]:
        """The `Sync` of these parameters' gradients."""
        self.leaves()
        return self._syncs

    def __getstate__(self) -> dict[str, Any]:
        # The blocks are views of the parameters' memory, which a copy does not share.
        own = {"_leaves": [], "_totals": [], "_syncs": [], "_version": -1, "_kinds": [], "memories": []}
        return {**self.__dict__, "_blocks_for": None, "_runs": [], **own}

    def advance(self, names: tuple[str, ...], scratch_arrays: int, group: Any) -> list[tuple[int, list[Block]]]:
        """Counts an update, with the options of `group`, of every parameter that has a gradient. Returns the blocks
        that this process must update, with their counts. `syncs()` comes right before it."""
        self._before = self._count
        digest = self._digest(self._options_of(group)) + 31 * self._count
        for sync in self._syncs:
            sync.before_step(digest, self)
        used = [total.written for total in self._totals]
        # While the same parameters are used, the differences of their counts are constant, so the blocks stay valid.
        if (self._version, names, used) != self._blocks_for:
            self._allocate(names, "optimizer.step")
            self._make_blocks(names, [i for i, was_used in enumerate(used) if was_used], scratch_arrays)
            self._blocks_for = (self._version, names, used)
            self._steps, self._used = self.steps, np.array(used, np.int64)
            self._per_step = weighted(self._used)
        self._advances = advances = self._advances + 1
        self._count += self._per_step
        return [(before + advances, blocks) for before, blocks in self._runs]

    def _digest(self, options: tuple[Any, ...]) -> int:
        if options != self._last[0]:
            known = tuple(list(value) if isinstance(value, list) else value for value in options)  # a list may change
            shapes = [parameter.array.shape for parameter in self.params]
            self._last = known, zlib.crc32(f"{self._optimizer}{[*map(as_text, known)]}{shapes}".encode())
        return self._last[1]

    def describe(self) -> str:
        """The optimizer, its options and the number of updates before the last step began."""
        options = ", ".join(f"{name}={as_text(value)}" for name, value in zip(self._names, self._last[0], strict=True))
        before = self.steps if self._count == self._before else self.steps - self._used
        counts = sorted({*before.tolist()})
        many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        return f"{self._optimizer}({options}) after {many} updates of {len(self.params)} parameter(s)"

    def _fence(self, action: str, everywhere: bool = False) -> None:
        for memory in self.memories:
            memory.fence(action, everywhere=everywhere)

    def _allocate(self, names: tuple[str, ...], action: str) -> None:
        """Flattens parameters without flat storage, and allocates missing buffers. A call with one `action` of all
        ranks that share the parameters."""
        unflattened = [p for p in self.params if flat.leaf_of(p).flat is None]
        if unflattened:
            flat.flatten(unflattened)
        kind_of = [(flat.flat_of(p).memory, p.array.dtype) for p in self.params]
        kinds = list(dict.fromkeys(kind_of))
        known = {name: self._views(name) for name in self.buffers}
        same = kinds == self._kinds
        self._kinds, self._offsets, sizes = kinds, [(0, 0)] * len(kind_of), []
        self.memories = list(dict.fromkeys(memory for memory, _ in kinds if memory is not PRIVATE))
        for number, kind in enumerate(kinds):
            members = [i for i, r in enumerate(kind_of) if r == kind]
            starts, size = flat.layout(self.params[i] for i in members)
            sizes.append(size)
            for i, start in zip(members, starts, strict=True):
                self._offsets[i] = number, start
        missing = [name for name in dict.fromkeys((*self.buffers, *names)) if name not in self.buffers or not same]
        if missing:
            self._fence(action, everywhere=True)
        for name in missing:
            self.buffers[name] = [memory.zeros(size, dtype) for (memory, dtype), size in zip(kinds, sizes, strict=True)]
            for view, before, (memory, _) in zip(self._views(name), known.get(name, ()), kind_of):
                if memory.writes:
                    np.copyto(view, before, casting="same_kind")

    def _views(self, name: str) -> list[Array]:
        return [
            self.buffers[name][kind][start : start + p.array.size].reshape(p.array.shape)
            for p, (kind, start) in zip(self.params, self._offsets, strict=True)
        ]

    def _make_blocks(self, names: tuple[str, ...], used: list[int], scratch_arrays: int) -> None:
        def joined(before: int, i: int) -> bool:
            kind, start = self._offsets[before]
            return (
                self._offsets[i] == (kind, start + flat.padded_size(self.params[before]))
                and self.steps[before] == self.steps[i]
            )

        self._runs = []
        spare: dict[Any, Scratch] = {}
        for run in flat.runs(self.params, used, joined):
            if run.flat.edited is not None:
                raise RuntimeError("step: the parameters are being edited; step after the end of `with model.edit():`")
            dtype, own = run.flat.dtype, flat.within(run.start, run.stop, run.flat.own)
            if dtype not in spare:
                spare[dtype] = tuple(np.empty(flat.BLOCK, dtype) for _ in range(scratch_arrays))
            kind, first = self._offsets[run.first]
            shift = first - run.start
            blocks = []
            for start in range(own.start, own.stop, flat.BLOCK):
                stop = min(start + flat.BLOCK, own.stop)
                state = slice(start + shift, stop + shift)
                buffers = {name: self.buffers[name][kind][state] for name in names}
                scratch = tuple(array[: stop - start] for array in spare[dtype])
                blocks.append((run.flat.data[start:stop], run.flat.grad[start:stop], scratch, buffers))
            self._runs.append((int(self.steps[run.first]) - self._advances, blocks))


def weighted(counts: Array) -> int:
    """A digest of counts: a weighted sum."""
    return int(counts @ np.arange(1, len(counts) + 1))
