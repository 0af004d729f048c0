"""Checkpointer: saves a run so that a kill, a full disk or a damaged file never loses it, and goes on from there."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sorix_dist.parallel.consistency import on_every_rank, on_first_rank, same_everywhere
from sorix_dist.parallel.world import communicator, virtual_shards
from sorix_dist.store import tensorfile
from sorix_dist.store.checkpoint_folder import CheckpointFolder
from sorix_dist.store.packing import pack, unpack
from sorix_dist.train import run_state
from sorix_dist.utils.data.sampler import whole

OURS = "sorix_dist"
"""The name in a checkpoint under which everything lies that no argument gave."""


class Checkpointer:
    """Saves and loads the state of a run in a folder, one file a checkpoint.

    directory: the folder, made when it is needed; one run at a time saves there. keep: how many of the newest
    valid checkpoints are kept. async_save: `save` copies the state and returns, and a thread writes it; the end
    of the program waits for it. comm: an mpi4py communicator if not all ranks of the job train together.

    A checkpoint that `save` (with async_save: `wait`) has returned from is on the disk, and stays there until
    `keep` newer ones are. Rank 0 alone reads and writes; every method is a call of all ranks, which all get the same
    result or error. Files are safetensors files with a digest of everything in them, never a pickle.
    """

    def __init__(
        self, directory: str | os.PathLike[str], keep: int = 3, async_save: bool = False, comm: Any = None
    ) -> None:
        keep = whole("Checkpointer: keep", keep, 1)
        self.directory = Path(os.path.abspath(os.fspath(directory)))
        self.async_save = bool(async_save)
        self.comm = communicator(comm)
        self.folder = CheckpointFolder(self.directory, keep)
        self._writing: _Writing | None = None

    def save(self, step: int, **parts: Any) -> Path:
        """Saves a checkpoint; returns the path of its file.

        step: how far the run is, an integer >= 0. parts: by any names, what has a `state_dict()` (model=,
        optimizer=, scheduler=, loader=, metrics), and values: numbers, strings, None, tensors and arrays, also in
        nested dicts, lists and tuples. Values, models and optimizers are rank 0's, for they are the same everywhere.
        Random streams and the counts of dropout masks are saved too.

        OSError if the file can't be written, TypeError for a value that can't be saved; earlier checkpoints are as
        they were. With async_save, what went wrong in the thread is raised by the next `save` or `wait`.
        """
        names = [f"'{name}'" for name in sorted(parts)]
        same_everywhere(self.comm, "Checkpointer.save: step and the names of parts", [f"step {step!r}", *names])
        step = whole("Checkpointer.save: step", step, 0)
        if OURS in parts:
            raise ValueError(f"Checkpointer.save: the name {OURS!r} is taken, give another one")
        self.wait()
        stateful = {name: part for name, part in parts.items() if run_state.has_state(part)}
        own = {name: part for name, part in stateful.items() if not run_state.is_alike(part)}
        told = on_every_rank(self.comm, lambda: {name: run_state.state_of(part) for name, part in own.items()})
        return on_first_rank(self.comm, lambda: self._save(step, {**parts, **told}, stateful))

    def load_latest(self, **parts: Any) -> dict[str, Any] | None:
        """Loads the newest valid checkpoint into `parts`; returns the values that were saved with it, and its "step".

        None if there is no checkpoint. parts: by the names that they were saved under; one that is None is left
        out, as are parts that are saved but not named. Random streams and dropout go on as they were.
        A damaged file is left alone, a RuntimeWarning names it, and the one before is used; ValueError if there are
        only damaged ones. ValueError too for a part that the checkpoint does not hold or that does not fit; every part
        is as it was then. (A part of another class may have `check_state_dict(state)`, which raises what its
        `load_state_dict` would raise; without one, its state is copied first, to be given back.)
        A RuntimeWarning says what has changed since (ranks, BLAS, CPU, versions) so that results may differ in their
        last bits from those of a run that was not stopped.
        """
        parts = {name: part for name, part in parts.items() if part is not None}
        same_everywhere(
            self.comm, "Checkpointer.load_latest: the names of parts", [f"'{name}'" for name in sorted(parts)]
        )
        for name, part in parts.items():
            if not run_state.has_state(part):
                raise TypeError(
                    f"Checkpointer.load_latest: {name} must have load_state_dict, got {type(part).__name__}"
                )
        self.wait()
        loaded = self._read()
        if loaded is None:
            return None
        path, saved = loaded
        ours = saved.pop(OURS)
        kept = {name: saved.pop(name) for name in ours["parts"]}
        lacking = [name for name in parts if name not in kept]
        if lacking:
            raise ValueError(
                f"Checkpointer.load_latest: {path} holds {', '.join(kept) or 'no parts'}, not {lacking[0]}"
            )
        run_state.load_states(self.comm, parts, kept, ours["counts"])
        now = run_state.surroundings(self.comm, virtual_shards(self.comm)) if self.comm.rank == 0 else None
        changed = [] if now is None else run_state.differences(ours["surroundings"], now)
        if changed:
            warnings.warn(
                f"{path} was saved where results may differ in their last bits; {'; '.join(changed)}",
                RuntimeWarning,
                stacklevel=2,
            )
        return {"step": ours["step"], **saved}

    def wait(self) -> None:
        """Returns when what was saved is on the disk; raises what went wrong with it."""
        if self.async_save:
            on_first_rank(self.comm, self._finish)

    def steps(self) -> list[int]:
        """The steps of all checkpoints in the folder, in the order of saving; damaged ones are among them."""
        return on_first_rank(self.comm, lambda: [entry.step for entry in self.folder.entries()])

    # -- what rank 0 does

    def _save(self, step: int, parts: dict[str, Any], stateful: dict[str, Any]) -> Path:
        alike = {name: run_state.state_of(part) for name, part in stateful.items() if run_state.is_alike(part)}
        ours = {
            "step": step,
            "parts": list(stateful),
            "counts": run_state.counts(stateful),
            "surroundings": run_state.surroundings(self.comm, virtual_shards(self.comm)),
        }
        arrays, text = pack({**parts, **alike, OURS: ours}, "parts")
        path = self.folder.next_path(step)
        if not self.async_save:
            self.folder.write(path, arrays, text)
            return path
        fresh = {id(copy.array) for name, state in alike.items() for copy in run_state.copies(stateful[name], state)}
        copies = {name: array if id(array) in fresh else array.copy() for name, array in arrays.items()}
        self._writing = _Writing(path, lambda: self.folder.write(path, copies, text))
        return path

    def _finish(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.finish()

    def _read(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest valid checkpoint, on every rank: its path, and all that was saved."""
        here: list[_Content] = []

        def read() -> tuple[Path, str, list[tuple[str, Any, Any]]] | None:
            content = self.folder.newest(_read)
            if content is None:
                return None
            here.append(content)
            return content.path, content.text, [(name, a.dtype, a.shape) for name, a in content.arrays.items()]

        told = on_first_rank(self.comm, read)
        if told is None:
            return None
        path, text, kinds = told
        arrays = here[0].arrays if here else {name: np.empty(shape, dtype) for name, dtype, shape in kinds}
        for array in arrays.values():
            self.comm.broadcast(array)
        return path, here[0].value if here else unpack(arrays, text)


class _Content(NamedTuple):
    """A checkpoint that was read, as it is in the file and as the value that it was made of."""

    path: Path
    arrays: dict[str, tensorfile.Array]
    text: str
    value: dict[str, Any]


def _read(path: Path) -> _Content:
    """A checkpoint; ValueError if it is damaged or none."""
    arrays, text = tensorfile.read(path)
    value = unpack(arrays, text)
    ours = value.get(OURS) if isinstance(value, dict) else None
    if not isinstance(ours, dict) or not {"step", "parts", "counts", "surroundings"} <= ours.keys():
        raise ValueError("it is a file of sorix_dist, but not a checkpoint")
    names = ours["parts"]
    if not isinstance(names, list) or not all(isinstance(name, str) and name in value for name in names):
        raise ValueError("it does not hold the parts that it names")
    if len(set(names) - {OURS}) < len(names) or not run_state.are_counts(ours["counts"]):
        raise ValueError("its own entries are not those of a checkpoint")
    return _Content(path, arrays, text, value)


class _Writing:
    """A thread that writes a checkpoint. It is no daemon: the end of the program waits for it."""

    def __init__(self, path: Path, write: Callable[[], None]) -> None:
        self._path = path
        self._write = write
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"saves {path.name}")
        self._thread.start()

    def finish(self) -> None:
        """Returns when the file is on the disk; raises what went wrong."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._write()
        except Exception as error:  # noqa: BLE001 - `finish` raises it
            self._error = error
            # Said at once, because a program may end without asking again.
            warnings.warn(f"the checkpoint {self._path} could not be saved: {error}", RuntimeWarning, stacklevel=2)
