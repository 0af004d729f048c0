"""Checkpointer: saves a run so that no kill, full disk or damaged file loses it, and resumes it."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sorix_dist.core.arguments import as_bool, as_int, as_path, described
from sorix_dist.core.capture import uncaptured
from sorix_dist.parallel.consistency import on_every_rank, on_first_rank, on_progress, same_everywhere
from sorix_dist.parallel.world import communicator, virtual_shards
from sorix_dist.store import files, tensorfile
from sorix_dist.store.checkpoint_folder import CheckpointFolder
from sorix_dist.store.packing import pack, unpack
from sorix_dist.train import run_state
from sorix_dist.watchdog import report

OWN = "sorix_dist"  # the entry of a checkpoint for everything that no argument of `save` gives


class Checkpointer:
    """Saves and loads the state of a run in a folder, one file per checkpoint.

    directory: the folder, made on demand; one run at a time saves there. keep: how many of the newest valid
    checkpoints stay. async_save: `save` copies the state and returns, and a thread writes it; the end of the program
    waits for the thread. comm: an mpi4py communicator if only some ranks of the job train together.

    When `save` (with async_save: `wait`) returns, the checkpoint is on the disk, and it stays until `keep` newer
    ones are there. Every method is a call of all ranks, which get the same result or error; only rank 0 reads and
    writes. Files are safetensors files with digests of all bytes, never pickles.
    """

    def __init__(
        self, directory: str | os.PathLike[str], keep: int = 3, async_save: bool = False, comm: Any = None
    ) -> None:
        keep = as_int("Checkpointer: keep", keep, 1)
        self.directory = as_path("Checkpointer: directory", directory)
        self.async_save = as_bool("Checkpointer: async_save", async_save)
        self.comm = communicator(comm)
        self.folder = CheckpointFolder(self.directory, keep)
        self._writing: _Writing | None = None

    @uncaptured
    def save(self, step: int, **parts: Any) -> Path:
        """Saves a checkpoint; returns the path of its file.

        step: how far the run is, an integer >= 0. parts: under any names, objects with a `state_dict()` (model=,
        optimizer=, scheduler=, loader=, metrics), and values: numbers, strings, None, tensors and arrays, also in
        nested dicts, lists and tuples. Values, models and optimizers, which are the same on every rank, are taken
        from rank 0. Random streams and counts of dropout masks are saved too.

        OSError if the file can't be written, TypeError for a value that can't be saved; earlier checkpoints are
        unchanged. With async_save, the next `save` or `wait` raises an error of the thread, or else the end of the
        program, with exit code 1.
        """
        names = [f"'{name}'" for name in sorted(parts)]
        same_everywhere(self.comm, "Checkpointer.save: step and the names of parts", [f"step {step!r}", *names])
        step = as_int("Checkpointer.save: step", step, 0)
        if OWN in parts:
            raise ValueError(f"Checkpointer.save: the name {OWN!r} is taken, give another one")
        self.wait()
        stateful = {name: part for name, part in parts.items() if run_state.has_state(part)}
        # A state such as a metric's is summed over ranks, so all of them take it.
        collective = {name: part for name, part in stateful.items() if not run_state.is_replicated(part)}
        states = on_every_rank(self.comm, lambda: run_state.states_of(collective))
        return on_first_rank(self.comm, lambda: self._save(step, {**parts, **states}, stateful))

    @uncaptured
    def load_latest(self, **parts: Any) -> dict[str, Any] | None:
        """Loads the newest valid checkpoint into `parts`; returns the values that were saved with it, and its "step".

        None if there is no checkpoint. parts: under the names of `save`; those that are None or not named are
        skipped. Random streams and dropout masks continue where they stopped.
        A RuntimeWarning names a damaged file, and the checkpoint before it is used; ValueError if all are damaged.
        ValueError, with every part unchanged, if the checkpoint lacks a part or has a state that does not fit. (Parts
        of your own may have `check_state_dict(state)`, which raises what `load_state_dict` would raise. Without it,
        their state is copied before and restored.)
        A RuntimeWarning names what has changed since (ranks, BLAS, CPU, versions) if the last bits of results may
        differ from those of an uninterrupted run.
        """
        parts = {name: part for name, part in parts.items() if part is not None}
        names = [f"'{name}'" for name in sorted(parts)]
        same_everywhere(self.comm, "Checkpointer.load_latest: the names of parts", names)
        for name, part in parts.items():
            if not run_state.has_state(part):
                raise TypeError(f"Checkpointer.load_latest: {name} must have load_state_dict, got {described(part)}")
        self.wait()
        loaded = self._read()
        if loaded is None:
            return None
        path, saved = loaded
        own = saved.pop(OWN)
        states = {name: saved.pop(name) for name in own["parts"]}
        missing = [name for name in parts if name not in states]
        if missing:
            raise ValueError(
                f"Checkpointer.load_latest: {path} contains {', '.join(states) or 'no parts'}, not {missing[0]}"
            )
        run_state.load_states(self.comm, parts, states, own["counts"])
        now = run_state.surroundings(self.comm, virtual_shards(self.comm)) if self.comm.rank == 0 else None
        changed = [] if now is None else run_state.differences(own["surroundings"], now)
        if changed:
            warnings.warn(
                f"{path} was saved where results may differ in their last bits; {'; '.join(changed)}",
                RuntimeWarning,
                stacklevel=3,
            )
        return {"step": own["step"], **saved}

    def wait(self) -> None:
        """Waits until the last checkpoint is on the disk; raises an error of the thread that wrote it."""
        if self.async_save:
            on_first_rank(self.comm, self._finish)

    def steps(self) -> list[int]:
        """The steps of all checkpoints in the folder, in the order of saving, damaged ones included."""
        return on_first_rank(self.comm, lambda: [entry.step for entry in self.folder.entries()])

    # -- on rank 0

    def _save(self, step: int, parts: dict[str, Any], stateful: dict[str, Any]) -> Path:
        replicated = {name: part for name, part in stateful.items() if run_state.is_replicated(part)}
        states = run_state.states_of(replicated)
        own = {
            "step": step,
            "parts": list(stateful),
            "counts": run_state.counts(stateful),
            "surroundings": run_state.surroundings(self.comm, virtual_shards(self.comm)),
        }
        arrays, text = pack({**parts, **states, OWN: own}, "parts")
        path = self.folder.next_path(step)
        if not self.async_save:
            self.folder.write(path, arrays, text)
            return path
        copied = {id(tensor.array) for name in states for tensor in run_state.copies(stateful[name], states[name])}
        copies = {name: array if id(array) in copied else array.copy() for name, array in arrays.items()}
        self._writing = _Writing(path, lambda: self.folder.write(path, copies, text))
        return path

    def _finish(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.finish()

    def _read(self) -> tuple[Path, dict[str, Any]] | None:
        """The path and the content of the newest valid checkpoint, on every rank."""
        here: list[_Content] = []

        def read() -> tuple[Path, str, list[tuple[str, Any, Any]]] | None:
            content = self.folder.newest(_read)
            if content is None:
                return None
            here.append(content)
            return content.path, content.text, [(name, a.dtype, a.shape) for name, a in content.arrays.items()]

        found = on_first_rank(self.comm, read)
        if found is None:
            return None
        path, text, kinds = found
        arrays = here[0].arrays if here else {name: np.empty(shape, dtype) for name, dtype, shape in kinds}
        for array in arrays.values():
            self.comm.broadcast(array)
        return path, here[0].value if here else unpack(arrays, text)


class _Content(NamedTuple):
    """A checkpoint: the arrays and the text of its file, and the value that they encode."""

    path: Path
    arrays: dict[str, tensorfile.Array]
    text: str
    value: dict[str, Any]


def _read(path: Path) -> _Content:
    """The checkpoint in a file; ValueError if the file is damaged or not a checkpoint."""
    arrays, text = tensorfile.read(path)
    value = unpack(arrays, text)
    own = value.get(OWN) if isinstance(value, dict) else None
    if not isinstance(own, dict) or not {"step", "parts", "counts", "surroundings"} <= own.keys():
        raise ValueError("it is a file of sorix_dist, but not a checkpoint")
    names = own["parts"]
    if not isinstance(names, list) or not all(isinstance(name, str) and name in value for name in names):
        raise ValueError("it does not contain the parts that it names")
    if len(set(names) - {OWN}) < len(names) or not run_state.are_counts(own["counts"]):
        raise ValueError("its own entries are not those of a checkpoint")
    return _Content(path, arrays, text, value)


class _Writing:
    """A thread that writes a checkpoint. It is not a daemon, so the end of the program waits for it."""

    def __init__(self, path: Path, write: Callable[[], None]) -> None:
        self._path = path
        self._write = write
        self._error: BaseException | None = None
        self._pieces = 0
        self._thread = threading.Thread(target=self._run, name=f"saves {path.name}")
        self._thread.start()

    def finish(self) -> None:
        """Waits until the file is on the disk; raises the error if it could not be written."""
        while self._thread.is_alive():
            pieces = self._pieces
            self._thread.join(0.1)
            if self._pieces > pieces:
                files.on_progress()
        error, self._error = self._error, None
        if error is not None:
            atexit.unregister(self._fail)
            raise error

    def _run(self) -> None:
        try:
            with on_progress(self._count):
                self._write()
        except BaseException as error:  # noqa: BLE001 - `finish` raises it
            self._error = error
            atexit.register(self._fail)
            # Warns at once, because the next call may be far away.
            warnings.warn(f"the checkpoint {self._path} could not be saved: {error}", RuntimeWarning, stacklevel=2)

    def _count(self) -> None:
        self._pieces += 1

    def _fail(self) -> None:
        """The program has come to its end without asking for the error: exit code 0 would say that all is saved."""
        error = self._error
        if error is not None:
            sys.excepthook(type(error), error, error.__traceback__)  # on several ranks it ends all of them
            report.flush()
            os._exit(1)
