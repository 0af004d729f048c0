"""Progress, printing and logging of a run: from rank 0, live on a terminal, line by line elsewhere."""

from __future__ import annotations

import builtins
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

from sorix_dist.comm.waiting import comparison, waited_on_this_host
from sorix_dist.core.arguments import as_bool, as_number, described, int_or_none, require_methods
from sorix_dist.core.placement import Shard
from sorix_dist.launch.output import columns, is_live
from sorix_dist.parallel.world import is_main_process, rank, size
from sorix_dist.utils.data import DataLoader
from sorix_dist.utils.data.nested import tensors

P = ParamSpec("P")
T = TypeVar("T")

INTERVAL = 10.0  # seconds between two lines in a file, at least; in a long epoch, a twentieth of what it has taken
ENOUGH = 1.0  # seconds of an epoch from which on its waiting is shown: shorter ones are mostly starts

COSTLY = 0.1
"""The share of their time that others wait for a rank, beyond its own waiting, from which on the line names it."""


def print(*values: Any, **options: Any) -> None:
    """As Python's `print`, only on rank 0, unbuffered, and above a live progress line."""
    if is_main_process():
        with _above_bars(options.get("file")):
            builtins.print(*values, **{"flush": True, **options})


def _above_bars(stream: Any) -> AbstractContextManager[Any]:
    """A context in which text goes above live bars, which there can be only where tqdm is loaded."""
    loaded = sys.modules.get("tqdm")
    return nullcontext() if loaded is None else loaded.tqdm.external_write_mode(stream)


def main_process_only(function: Callable[P, T]) -> Callable[P, T | None]:
    """A decorator: only rank 0 calls the function, the other ranks get None.

    What all ranks do together (`metric.compute()`, `sx.all_reduce`, `checkpointer.save`) does not belong in it.
    """
    if not callable(function):
        raise TypeError(f"main_process_only decorates a function, got {described(function)}")

    @wraps(function)
    def on_rank_0(*args: P.args, **options: P.kwargs) -> T | None:
        return function(*args, **options) if is_main_process() else None

    return on_rank_0


def get_logger(name: str = "train", level: int = logging.INFO) -> logging.Logger:
    """A logger of the standard library: from rank 0 all messages of `level`, from the others warnings with the rank.

    Where no logging is set up it writes to standard error, `12:34:56 message`, or `12:34:56 [rank 2] WARNING message`.
    """
    logger = logging.getLogger(name)
    logger.setLevel(level)
    if _of_this_rank not in logger.filters:
        logger.addFilter(_of_this_rank)
    if not logger.hasHandlers():
        handler = _Handler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(origin)s%(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
    return logger


def _of_this_rank(record: logging.LogRecord) -> bool:
    """The filter of the logger, which also sets the origin of a record."""
    severe = record.levelno >= logging.WARNING
    where = f"[rank {rank()}] " if size() > 1 and severe else ""
    record.origin = f"{where}{record.levelname} " if severe else where
    return severe or is_main_process()


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    def emit(self, record: logging.LogRecord) -> None:
        with _above_bars(self.stream):
            super().emit(record)


class Progress:
    """A loader that shows how far its loops are; see `progress`. A part of a checkpoint."""

    def __init__(self, loader: Iterable[Any], epochs: int | None = None, shown: bool = True) -> None:
        require_methods("progress: loader", loader, "__iter__", kind="a DataLoader or another iterable")
        self.loader, self.epochs = loader, int_or_none("progress: epochs", epochs, 1)
        self.shown = as_bool("progress: shown", shown) and is_main_process()
        self.epoch = 0
        """The number of the epoch, from 0."""
        self._first_began, self._steps_before = 0.0, 0
        self._resumed: dict[str, tuple[float, int]] = {}
        self._start()

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    @property
    def means(self) -> dict[str, float]:
        """The means of what was logged in this epoch."""
        return {name: total / max(weight, 1) for name, (total, weight) in self._sums.items()}

    @property
    def samples_per_second(self) -> float:
        """The samples of all ranks in this epoch, divided by the time since it began; 0 of batches without rows."""
        return self._samples / max(time.monotonic() - self._began, 1e-9)

    def log(self, **values: Any) -> None:
        """Shows numbers beside the progress, as their mean over the epoch so far: `bar.log(loss=loss)`.

        A loss is that of the global batch after `loss.backward()`. Batches count by their rows. A call of this rank.
        """
        for name, value in values.items():
            total, weight = self._sums.get(name, (0.0, 0))
            number = as_number(f"bar.log: {name}", value)
            self._sums[name] = total + number * self._rows, weight + self._rows

    def state_dict(self) -> dict[str, Any]:
        """What was logged in this epoch."""
        return {"sums": {name: [*sums] for name, sums in self._sums.items()}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Counts what was logged before the stop to the means of the next loop, if that is the rest of its epoch."""
        self._resumed = {name: (total, int(weight)) for name, (total, weight) in state_dict["sums"].items()}

    def __iter__(self) -> Iterator[Any]:
        self._start()
        self._resumed = {}
        bar = self._bar() if self.shown and is_live() else None
        try:
            for batch in self.loader:
                rows = _rows(batch)
                self._rows = rows or 1
                yield batch
                self.step += 1
                self._samples += rows
                if bar is not None:
                    bar.numbers = self._numbers()
                    bar.update()
                elif self.shown and time.monotonic() > self._next_line and self.step != self.steps:
                    self._show()
        finally:
            if bar is not None:
                bar.close()
        if self.shown:
            self._show(self._slow_rank())
        self._steps_before += self.step - self._skipped
        self.epoch += 1

    def _start(self) -> None:
        """Resets everything to the beginning of an epoch, or to the batch where a loaded state resumes."""
        self._began = time.monotonic()
        self._first_began = self._first_began or self._began
        self._next_line = self._began + INTERVAL
        self._waited = waited_on_this_host(size()) if self.shown and size() > 1 else {}
        self._rows, self._samples, self._skipped = 1, 0, 0
        if isinstance(self.loader, DataLoader):
            self.epoch, self._skipped = self.loader.epoch, self.loader.first_batch
        self._sums = self._resumed if self._skipped else {}
        try:
            self.steps: int | None = len(self)
        except TypeError:  # a stream
            self.steps = None
        self.step = self._skipped

    def _bar(self) -> Any:
        return _bar_class()(
            total=self.steps,
            initial=self.step,
            desc=self._name(),
            bar_format="{desc}  {n_fmt}" + ("/{total_fmt} |{bar}|  {numbers}" if self.steps else "  {numbers}"),
            file=sys.stdout,
            leave=False,
            ncols=columns(),
            nrows=24,  # else a terminal that says 0 hides the bar
        )

    def _show(self, *words: str) -> None:
        steps = f"{self.step:,}" + (f"/{self.steps:,}" if self.steps else "")
        print("  ".join(filter(None, [f"{self._name()}  step {steps}", self._numbers(), *words])))
        now = time.monotonic()
        self._next_line = now + max(INTERVAL, (now - self._began) / 20)

    def _name(self) -> str:
        return f"epoch {self.epoch + 1}" + (f"/{self.epochs}" if self.epochs else "")

    def _shares(self) -> dict[int, float]:
        """For each rank of this host, if known, the fraction of this epoch that it has waited for others."""
        seconds = time.monotonic() - self._began
        if not self._waited or seconds < ENOUGH:
            return {}
        now = waited_on_this_host(size())
        return {rank: min(1.0, (now[rank] - before) / seconds) for rank, before in self._waited.items() if rank in now}

    def _slow_rank(self) -> str:
        """The rank that the others wait for, if it costs them much."""
        shares = self._shares()
        if len(shares) < 2:
            return ""
        slow = min(shares, key=lambda rank: shares[rank])
        others = (sum(shares.values()) - shares[slow]) / (len(shares) - 1)
        return f"({comparison(shares, slow)})" if others - shares[slow] > COSTLY else ""

    def _numbers(self) -> str:
        words = [f"{name} {mean:.4g}" for name, mean in self.means.items()]
        if self._samples:
            words.append(f"{self.samples_per_second:,.0f} samples/s")
        if (shares := self._shares()) and (mean := sum(shares.values()) / len(shares)) >= 0.01:
            words.append(f"{mean:.0%} waiting")
        done = self._steps_before + self.step - self._skipped
        if self.steps is not None and done:
            missing = self.steps - self.step + self.steps * (max(self.epochs or 0, self.epoch + 1) - self.epoch - 1)
            left = missing * (time.monotonic() - self._first_began) / done
            words.append(f"{_clock(left)} left" if missing else f"took {_clock(time.monotonic() - self._first_began)}")
        return "  ".join(words)


def progress(loader: Iterable[Any], epochs: int | None = None, shown: bool = True) -> Progress:
    """The loader, whose loops show epoch, step, samples per second over all ranks, and the time left.

    On a terminal (under `sorix-dist run` too) or in a notebook it is one live line; in a file, or under mpirun and a
    scheduler, a line at the end of each epoch and now and then in a long one. Rank 0 shows it. epochs: how many there
    will be, for the time left; shown: False only counts. The line shows how much of their time the ranks of rank 0's
    host wait for each other. At the end of an epoch it names a rank that costs the others more than a tenth of it.

        bar = sx.progress(loader, epochs=10)
        for epoch in range(10):
            for xb, yb in bar:
                ...
                bar.log(loss=loss)    # shown as the mean over the epoch, also in bar.means
    """
    return Progress(loader, epochs, shown)


@cache
def _bar_class() -> Any:
    """tqdm's bar, with numbers beside it that its format shows. Importing tqdm takes a tenth of the time of `import
    sorix_dist`."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        monitor_interval = 0  # no thread: every batch comes by here anyway
        numbers = ""

        @property
        def format_dict(self) -> dict[str, Any]:
            return {**super().format_dict, "numbers": self.numbers, "ncols": columns()}

    return Bar


def _rows(batch: Any) -> int:
    """The rows of a global batch, 0 where no loader made it: asking the other ranks would cost a message a batch."""
    places = (tensor.place for tensor in tensors(batch))
    return next((place.total for place in places if isinstance(place, Shard)), 0)


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
