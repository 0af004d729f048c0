"""The state of an optimizer for the parameters of one group, in flat arrays parallel to theirs."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from sorix_dist.core import Tensor, flat
from sorix_dist.core.fingerprint import as_text
from sorix_dist.core.graph import Sync
from sorix_dist.core.memory import ParameterMemory
from sorix_dist.core.tensor import Array

Scratch = tuple[Array, ...]
Buffers = dict[str, Array]  # by name
Block = tuple[Array, Array, Scratch, Buffers]  # with data and gradient in front: slices of one length


class GroupState:
    """Per parameter the number of its updates and some buffers of its shape and dtype.

    The buffers of all parameters of one dtype and memory lie in one array in that memory, in the order of the group, so
    that neighbours in flat storage are neighbours here. When parameters move in their memory, only the blocks are cut
    anew.
    """

    def __init__(self, params: list[Tensor], optimizer: str, options: Sequence[str]) -> None:
        self.params = params
        self._optimizer, self._names = optimizer, list(options)
        self.steps = np.zeros(len(params), np.int64)
        # A digest of the step counts: now, before the last step, and the increment of a step.
        self._count = self._before = self._per_step = 0
        self.buffers: dict[str, list[Array]] = {}  # for each room an array
        self._rooms: list[tuple[ParameterMemory, np.dtype[Any]]] = []
        self._last: tuple[list[Any], int] = [], 0  # the digested options, and the digest
        self.memories: list[ParameterMemory] = []  # where the parameters lie, each once
        self._places: list[tuple[int, int]] = []  # of each parameter: the number of its room, and where it starts
        self._syncs: tuple[int, list[Sync]] = (-1, [])  # as of a version of the flat storages
        self._cut_for: Any = None  # what the blocks of `_runs` were cut for
        self._used = np.zeros(len(params), np.int64)
        self._runs: list[tuple[int, list[Block]]] = []
        self._lay((), "optimizer.step")

    def syncs(self) -> list[Sync]:
        """The `Sync` of these parameters' gradients."""
        if self._syncs[0] != flat.version():
            leaves = [p.leaf for p in self.params if p.leaf is not None]
            found = {id(leaf.sync): leaf.sync for leaf in leaves if leaf.sync is not None}
            self._syncs = (flat.version(), list(found.values()))
        return self._syncs[1]

    def __getstate__(self) -> dict[str, Any]:
        # A copy has parameters in other memory than the blocks show.
        return {**self.__dict__, "_cut_for": None, "_runs": [], "_syncs": (-1, []), "_rooms": [], "memories": []}

    def advance(self, names: tuple[str, ...], scratch_arrays: int, options: list[Any]) -> list[tuple[int, list[Block]]]:
        """Counts an update with these options of every parameter that has a gradient; returns what this process is to
        update of them, in blocks, with that count."""
        self._before = self._count
        alike = self._digest(options) + 31 * self._count
        for sync in self.syncs():
            sync.before_step(alike, self)
        used = [p.leaf.total.written for p in self.params]  # type: ignore[union-attr]
        # While the same parameters are used, their counts differ by the same, so the cut stays right.
        if (flat.version(), names, used) != self._cut_for:
            self._lay(names, "optimizer.step")
            self._cut(names, [i for i, was_used in enumerate(used) if was_used], scratch_arrays)
            self._cut_for = (flat.version(), names, used)
            self._used = np.array(used, np.int64)
            self._per_step = _weighted(self._used)
        self.steps += self._used
        self._count += self._per_step
        return [(int(self.steps[first]), blocks) for first, blocks in self._runs]

    def _digest(self, options: list[Any]) -> int:
        if options != self._last[0]:
            known = [list(value) if isinstance(value, list) else value for value in options]  # a list may change
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

    def entries(self) -> list[dict[str, Any] | None]:
        """For each parameter copies of what is remembered of it, or None if it was never updated."""
        views = {name: self._views(name) for name in self.buffers}
        return [
            {"step": int(step), **{name: Tensor(parts[i].copy()) for name, parts in views.items()}} if step else None
            for i, step in enumerate(self.steps)
        ]

    def check(self, entries: Sequence[dict[str, Any] | None], names: tuple[str, ...]) -> None:
        """Raises ValueError for entries that do not fit these parameters, or lack a buffer of `names`."""
        for i, (parameter, entry) in enumerate(zip(self.params, entries, strict=True)):
            if entry is None:
                continue
            missing = {"step", *names} - entry.keys()
            if missing:
                raise ValueError(f"load_state_dict: the state of parameter {i} lacks {sorted(missing)}")
            if int(entry["step"]) < 0:
                raise ValueError(f"load_state_dict: 'step' of parameter {i} must be >= 0, got {entry['step']}")
            for name in names:
                value, wanted = np.asarray(entry[name]), parameter.array
                if value.shape != wanted.shape or not np.can_cast(value.dtype, wanted.dtype, "same_kind"):
                    raise ValueError(
                        f"load_state_dict: '{name}' of parameter {i} must be {wanted.dtype} {wanted.shape}, "
                        f"got {value.dtype} {value.shape}"
                    )

    def load(self, entries: Sequence[dict[str, Any] | None], names: tuple[str, ...]) -> None:
        """Loads entries that were checked. A call of all ranks that share the parameters."""
        self.buffers = {name: arrays for name, arrays in self.buffers.items() if name in names}
        self._lay(names, "optimizer.load_state_dict")
        self._fence("optimizer.load_state_dict")
        for i, entry in enumerate(entries):
            self.steps[i] = 0 if entry is None else int(entry["step"])
        self._count = _weighted(self.steps)
        for name in names:
            for view, (room, _), entry in zip(self._views(name), self._places, entries, strict=True):
                if self._rooms[room][0].writes:
                    np.copyto(view, 0 if entry is None else np.asarray(entry[name]), casting="same_kind")
        self._fence("optimizer.load_state_dict")
        self._cut_for, self._runs = None, []

    def _fence(self, action: str, everywhere: bool = False) -> None:
        for memory in self.memories:
            memory.fence(action, everywhere=everywhere)

    def _lay(self, names: tuple[str, ...], action: str) -> None:
        """Puts parameters that have no flat storage into one, and makes the buffers that are missing when all who share
        them have come here, `action` the same."""
        unplaced = [p for p in self.params if flat.leaf_of(p).flat is None]
        if unplaced:
            flat.flatten(unplaced)
        room_of = [(flat.flat_of(p).memory, p.array.dtype) for p in self.params]
        rooms = list(dict.fromkeys(room_of))
        known = {name: self._views(name) for name in self.buffers}
        same = rooms == self._rooms
        self._rooms, self._places, sizes = rooms, [(0, 0)] * len(room_of), []
        self.memories = list(dict.fromkeys(memory for memory, _ in rooms))
        for number, room in enumerate(rooms):
            members = [i for i, r in enumerate(room_of) if r == room]
            starts, size = flat.layout(self.params[i] for i in members)
            sizes.append(size)
            for i, start in zip(members, starts, strict=True):
                self._places[i] = number, start
        missing = [name for name in dict.fromkeys((*self.buffers, *names)) if name not in self.buffers or not same]
        if missing:
            self._fence(action, everywhere=True)
        for name in missing:
            self.buffers[name] = [memory.zeros(size, dtype) for (memory, dtype), size in zip(rooms, sizes, strict=True)]
            for view, before, (memory, _) in zip(self._views(name), known.get(name, ()), room_of):
                if memory.writes:
                    np.copyto(view, before, casting="same_kind")

    def _views(self, name: str) -> list[Array]:
        return [
            self.buffers[name][room][start : start + p.array.size].reshape(p.array.shape)
            for p, (room, start) in zip(self.params, self._places, strict=True)
        ]

    def _cut(self, names: tuple[str, ...], used: list[int], scratch_arrays: int) -> None:
        def joined(before: int, i: int) -> bool:
            room, start = self._places[before]
            return (
                self._places[i] == (room, start + flat.room(self.params[before]))
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
            room, first = self._places[run.first]
            shift = first - run.start
            blocks = []
            for start in range(own.start, own.stop, flat.BLOCK):
                stop = min(start + flat.BLOCK, own.stop)
                state = slice(start + shift, stop + shift)
                buffers = {name: self.buffers[name][room][state] for name in names}
                scratch = tuple(array[: stop - start] for array in spare[dtype])
                blocks.append((run.flat.data[start:stop], run.flat.grad[start:stop], scratch, buffers))
            self._runs.append((run.first, blocks))


def _weighted(counts: Array) -> int:
    """A digest of counts: a weighted sum."""
    return int(counts @ np.arange(1, len(counts) + 1))
