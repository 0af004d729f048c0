"""What an optimizer remembers of the parameters of one group, beside them in flat arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sorix_dist.core import Tensor, flat
from sorix_dist.core.graph import Sync
from sorix_dist.core.tensor import Array

# data, gradient, scratch arrays, buffers by name: slices of one length
Block = tuple[Array, Array, tuple[Array, ...], dict[str, Array]]


class GroupState:
    """Per parameter the number of its updates and some buffers of its shape and dtype.

    The buffers of all parameters of one dtype lie in one array, laid out as the parameters are in flat
    storage, so that neighbours there are neighbours here. Nothing here depends on where the parameters are:
    when they move, only the blocks are cut anew.
    """

    def __init__(self, params: list[Tensor]) -> None:
        self.params = params
        self.steps = np.zeros(len(params), np.int64)
        self.buffers: dict[str, dict[np.dtype[Any], Array]] = {}
        self._dtypes: list[np.dtype[Any]] = []
        self._starts: list[int] = []
        self._syncs: tuple[int, list[Sync]] = (-1, [])  # as of a version of the flat storages
        self.forget_blocks()
        self._lay(())

    @property
    def pending(self) -> bool:
        """Whether backwards have left gradients of these parameters that are not in what they show yet."""
        return any(sync.pending for sync in self._who_synchronises())

    def _who_synchronises(self) -> list[Sync]:
        if self._syncs[0] != flat.version():
            leaves = [p.leaf for p in self.params if p.leaf is not None]
            found = {id(leaf.sync): leaf.sync for leaf in leaves if leaf.sync is not None}
            self._syncs = (flat.version(), list(found.values()))
        return self._syncs[1]

    def forget_blocks(self) -> None:
        """Makes the next `advance` cut the blocks anew."""
        self._cut_for: Any = None
        self._runs: list[tuple[int, list[Block]]] = []

    def __getstate__(self) -> dict[str, Any]:
        # A copy has parameters in other memory than the blocks show.
        return {**self.__dict__, "_cut_for": None, "_runs": [], "_syncs": (-1, [])}

    def advance(self, names: tuple[str, ...], scratch_arrays: int) -> Iterator[tuple[int, list[Block]]]:
        """Counts an update of every parameter that has a gradient; yields their blocks with that count."""
        used = [p.leaf.total.written for p in self.params]  # type: ignore[union-attr]
        # While the same parameters are used, their counts differ by the same, so the cut stays right.
        cut_for = (flat.version(), names, used)
        if cut_for != self._cut_for:
            self._lay(names)
            self._cut(names, [i for i, was_used in enumerate(used) if was_used], scratch_arrays)
            self._cut_for = (flat.version(), names, used)
        self.steps += used
        for sync in self._who_synchronises():
            sync.stepped()
        for first, blocks in self._runs:
            yield int(self.steps[first]), blocks

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
            for name in names:
                value, wanted = np.asarray(entry[name]), parameter.array
                if value.shape != wanted.shape or not np.can_cast(value.dtype, wanted.dtype, "same_kind"):
                    raise ValueError(
                        f"load_state_dict: '{name}' of parameter {i} must be {wanted.dtype} {wanted.shape}, "
                        f"got {value.dtype} {value.shape}"
                    )

    def load(self, entries: Sequence[dict[str, Any] | None], names: tuple[str, ...]) -> None:
        """Takes over entries that were checked."""
        self.buffers = {}
        self._lay(names)
        for i, entry in enumerate(entries):
            self.steps[i] = 0 if entry is None else int(entry["step"])
        for name in names:
            for view, entry in zip(self._views(name), entries, strict=True):
                if entry is not None:
                    np.copyto(view, np.asarray(entry[name]), casting="same_kind")
        self.forget_blocks()

    def _lay(self, names: tuple[str, ...]) -> None:
        """Puts parameters that have no flat storage into one, and makes the buffers that are missing."""
        homeless = [p for p in self.params if flat.leaf_of(p).flat is None]
        if homeless:
            flat.flatten(homeless)
        dtypes = [p.array.dtype for p in self.params]
        known = {name: self._views(name) for name in self.buffers}
        same = dtypes == self._dtypes
        self._dtypes, self._starts, sizes = dtypes, [0] * len(dtypes), {}
        for dtype in {*dtypes}:
            members = [i for i, d in enumerate(dtypes) if d == dtype]
            starts, sizes[dtype] = flat.layout(self.params[i] for i in members)
            for i, start in zip(members, starts, strict=True):
                self._starts[i] = start
        for name in dict.fromkeys((*self.buffers, *names)):
            if name in self.buffers and same:
                continue
            self.buffers[name] = {dtype: flat.zeros(size, dtype) for dtype, size in sizes.items()}
            for view, before in zip(self._views(name), known.get(name, ())):
                np.copyto(view, before, casting="same_kind")

    def _views(self, name: str) -> list[Array]:
        return [
            self.buffers[name][dtype][start : start + p.array.size].reshape(p.array.shape)
            for p, dtype, start in zip(self.params, self._dtypes, self._starts, strict=True)
        ]

    def _cut(self, names: tuple[str, ...], used: list[int], scratch_arrays: int) -> None:
        def joined(before: int, i: int) -> bool:
            return (
                self._starts[before] + flat.room(self.params[before]) == self._starts[i]
                and self.steps[before] == self.steps[i]
            )

        self._runs = []
        spare: dict[Any, tuple[Array, ...]] = {}
        for run in flat.runs(self.params, used, joined):
            dtype = run.flat.dtype
            if dtype not in spare:
                spare[dtype] = tuple(np.empty(flat.BLOCK, dtype) for _ in range(scratch_arrays))
            shift = self._starts[run.first] - run.start
            blocks = []
            for start in range(run.start, run.stop, flat.BLOCK):
                stop = min(start + flat.BLOCK, run.stop)
                state = slice(start + shift, stop + shift)
                buffers = {name: self.buffers[name][dtype][state] for name in names}
                scratch = tuple(array[: stop - start] for array in spare[dtype])
                blocks.append((run.flat.data[start:stop], run.flat.grad[start:stop], scratch, buffers))
            self._runs.append((run.first, blocks))
