"""Records of a run: numbers by step, in files that survive a crash and that a restart continues."""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from sorix_dist.core.arguments import as_int, as_path, described
from sorix_dist.core.own_numbers import warn_of_given
from sorix_dist.parallel.world import communicator
from sorix_dist.store.files import check_is_file, make_folders, write_whole

RECORDS, TABLE, CONFIG, SUPERSEDED = "records.jsonl", "records.csv", "config.json", "superseded.jsonl"
CSV_SECONDS = 30.0  # the maximal age of the CSV table during a run, in seconds


class Recorder:
    """Writes what a run measures to a folder, on rank 0: `recorder.log(step, loss=loss, accuracy=0.9)`.

    directory: the folder, such as "runs/digits", made when it is needed: `records.jsonl` with one line a call (step,
        time in seconds since 1970, and the values), `records.csv` with one row a step, and `config.json`.
    config: what the run was started with, for `config.json`; values that JSON can't hold become text.
    tensorboard: also write event files for TensorBoard there (pip install "sorix_dist[tensorboard]").

    A line is written by one system call, so a crash damages none; OSError if the disk is full. After a restart the
    first `log(step)` replaces the lines of this step and later ones, which the run takes again; they move to
    `superseded.jsonl`.
    `sorix-dist plot runs/*` draws the curves.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        config: Mapping[str, Any] | None = None,
        *,
        tensorboard: bool = False,
        comm: Any = None,
    ) -> None:
        self.directory = as_path("Recorder: directory", directory)
        if config is not None and not isinstance(config, Mapping):
            raise TypeError(f"Recorder: config must be a dict, got {described(config)}; vars(arguments) makes one")
        self._file: int | None = None
        self._events: Any = None
        self._table_written = time.monotonic()
        self._writes = communicator(comm).rank == 0
        if not self._writes:
            return
        make_folders(self.directory)
        if config is not None:
            text = json.dumps(dict(config), indent=2, default=str) + "\n"
            write_whole(self.directory / CONFIG, [(0, text.encode())])
        if tensorboard:
            self._events = _event_writer(self.directory)

    def log(self, step: int, **values: Any) -> None:
        """Records numbers (also NumPy's, or tensors of one element) and texts of a step. A call of this rank."""
        step = as_int("Recorder.log: step", step, 0)
        if "time" in values:
            raise ValueError(
                "Recorder.log: 'time' is the name of the time of the record; call the value something else"
            )
        if not self._writes:
            return
        numbers = {name: _plain(name, value) for name, value in values.items()}
        if self._file is None:
            self._file = self._go_on_from(step)
        line = json.dumps({"step": step, "time": round(time.time(), 3), **numbers}, allow_nan=False) + "\n"
        written = os.write(self._file, line.encode())
        if written < len(line):  # a part of a line would spoil the next one
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise OSError(errno.ENOSPC, "the record can't be written, earlier ones are as they were: the disk is full")
        if self._events is not None:
            for name, value in values.items():
                if value is not None and not isinstance(value, str):
                    self._events.add_scalar(name, float(value), step)
        if time.monotonic() > self._table_written + CSV_SECONDS:
            self._write_table()

    def close(self) -> None:
        """Writes the table; a later `log` opens the files again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
            self._write_table()
        if self._events is not None:
            self._events.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _go_on_from(self, step: int) -> int:
        """Opens the file of records for appending, after it has dropped those of `step` and later."""
        path = self.directory / RECORDS
        lines = list(_lines(path))
        earlier = [line for line, record in lines if record["step"] < step]
        dropped = [line for line, record in lines if record["step"] >= step]
        if dropped:
            check_is_file("Recorder", superseded := self.directory / SUPERSEDED)
            with open(superseded, "a", encoding="utf-8") as file:
                file.writelines(dropped)
        if dropped or (path.exists() and path.stat().st_size != sum(len(line.encode()) for line in earlier)):
            write_whole(path, [(0, "".join(earlier).encode())])
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)

    def _write_table(self) -> None:
        rows: dict[int, dict[str, Any]] = {}
        for record in read_records(self.directory):
            rows.setdefault(record["step"], {}).update(record)
        names = list(dict.fromkeys(name for row in rows.values() for name in row))
        text = io.StringIO()
        table = csv.DictWriter(text, names, lineterminator="\n")
        table.writeheader()
        table.writerows(rows.values())
        write_whole(self.directory / TABLE, [(0, text.getvalue().encode())])
        self._table_written = time.monotonic()


def read_records(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records in a folder, in order: dicts of step, time and values; FileNotFoundError if there are none."""
    path = Path(directory) / RECORDS
    if not path.exists():
        raise FileNotFoundError(2, "there are no records of a run", str(path))
    return [{name: _number(value) for name, value in record.items()} for _, record in _lines(path)]


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The whole lines of a file of records; the last one may have been cut by a crash of the machine."""
    check_is_file("Recorder", path)
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if line.endswith("\n") and isinstance(record, dict) and isinstance(record.get("step"), int):
            yield line, record


def _plain(name: str, value: Any) -> Any:
    """A value that JSON can hold; infinities and NaN become texts."""
    if value is None or isinstance(value, str | bool):
        return value
    warn_of_given(f"Recorder.log: {name}", value)
    try:
        number = value.item() if hasattr(value, "item") else value
        if isinstance(number, int | np.integer):
            return int(number)
        number = float(number)
    except (TypeError, ValueError) as error:
        raise TypeError(f"Recorder.log: {name} must be a number or a text, got {described(value)}") from error
    return number if math.isfinite(number) else str(number)


def _number(value: Any) -> Any:
    return float(value) if value in ("nan", "inf", "-inf") else value


def _event_writer(directory: Path) -> Any:
    try:
        from tensorboard.summary import Writer
    except ImportError as error:
        raise ImportError(
            'Recorder: tensorboard=True needs TensorBoard: pip install "sorix_dist[tensorboard]"'
        ) from error
    return Writer(str(directory))
