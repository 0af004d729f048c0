"""The output of ranks: printed line by line, each behind its rank, or in log files on the ranks' own hosts.

As a program (`output.py FILE RANK`) it copies standard input to the file and, each line behind its rank, to standard
output. tee(1) would mix the pieces of lines of several ranks.
"""

from __future__ import annotations

import os
import selectors
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

LAST = 20_000  # the number of characters of the launcher's own output that an error message can show
LIVE = "SORIX_DIST_LIVE"  # this variable is set if a parent process shows unfinished lines

PREFIX = len("[10] ")


def is_live() -> bool:
    """Whether this process may write over a line that it has printed: on a terminal, in a notebook, or in a rank that
    was started there by `sx.run` or `sorix-dist run`."""
    from sorix_dist.watchdog.launcher import detect  # as a program, this file finds no package

    if LIVE in os.environ or type(sys.stdout).__module__.startswith("ipykernel"):
        return True
    at_terminal = getattr(sys.stdout, "isatty", None)  # a program may have put anything there, or nothing
    # Open MPI gives ranks terminals that lead into files.
    return at_terminal is not None and at_terminal() and detect(os.environ) is None


def live_environment() -> dict[str, str]:
    """The variables for ranks whose output `Output` shows; empty where it is shown line by line."""
    return {LIVE: "1", "COLUMNS": str(columns() - PREFIX)} if is_live() else {}


def columns() -> int:
    """The width of a line that does not wrap: a wrapped one can't be written over."""
    return shutil.get_terminal_size((100, 24)).columns - 1  # notebooks have no width: 100 fits into most


class Output:
    """One pipe a rank, and the launcher's own output. pipes: their descriptors, which are closed in the end."""

    def __init__(self, pipes: Sequence[int]) -> None:
        self.ranks = range(len(pipes))
        self.unprefixed = ""
        self._selector = selectors.DefaultSelector()
        self._rests: dict[int | None, bytes] = {}
        self._pipes = pipes
        self._live = is_live()
        self._unfinished = 0  # the length of the unfinished line that is shown
        for rank, pipe in enumerate(pipes):
            self._selector.register(pipe, selectors.EVENT_READ, rank)

    def add(self, stream: IO[bytes]) -> None:
        """Also reads the launcher's own output, and that of ranks that have not opened their pipe yet."""
        os.set_blocking(stream.fileno(), False)
        self._selector.register(stream.fileno(), selectors.EVENT_READ, None)

    def show(self, seconds: float) -> None:
        """Prints all available lines; waits for the first at most this many seconds."""
        while events := self._selector.select(seconds):
            for key, _ in events:
                try:
                    data = os.read(key.fd, 1 << 16)
                except BlockingIOError:
                    continue
                if data:
                    self._take(key.data, data)
                else:  # the launcher has closed its output
                    self._selector.unregister(key.fd)
            seconds = 0
            if self._live:
                self._show_unfinished()

    def _take(self, rank: int | None, data: bytes) -> None:
        *lines, self._rests[rank] = (self._rests.get(rank, b"") + data).split(b"\n")
        for line in lines:
            self._print(rank, line)

    def _print(self, rank: int | None, line: bytes) -> None:
        if rank is None:
            self.unprefixed = (self.unprefixed + _as_seen(line) + "\n")[-LAST:]
        else:
            self._write(f"[{rank}] {_as_seen(line)}", "\n")

    def _show_unfinished(self) -> None:
        """Shows the first rank's unfinished line, such as a progress bar; a whole line takes its place."""
        rank, rest = next(((r, rest) for r, rest in self._rests.items() if rest and r is not None), (None, b""))
        if rank is not None:
            self._write(f"[{rank}] {_as_seen(rest)}"[: columns()], "")

    def _write(self, line: str, end: str) -> None:
        """Writes over the unfinished line that is shown."""
        clear = f"\r{' ' * self._unfinished}\r" if self._unfinished else ""
        print(f"{clear}{line}", end=end, flush=hasattr(sys.stdout, "flush"))
        self._unfinished = 0 if end else len(line)

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        for rank, rest in self._rests.items():
            if rest:
                self._print(rank, rest)
        self._selector.close()
        for pipe in self._pipes:
            os.close(pipe)


def _as_seen(line: bytes) -> str:
    """What a terminal shows of a line with carriage returns."""
    return line.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", "replace")


_RANK = "r=${OMPI_COMM_WORLD_RANK:-${PMI_RANK:-${PMIX_RANK:-${SLURM_PROCID:-0}}}}"
_FILE = (
    f'{_RANK}; mkdir -p "$1" && f="$1/rank-$r.log" || exit 1; '
    'if [ -p "$f" ]; then echo "$f is a pipe, not a file" >&2; exit 1; fi; : >>"$f" || exit 1; shift; '
    '[ ! -s "$f" ] || echo "---- started again at $(date "+%Y-%m-%d %H:%M:%S")" >>"$f"; '
)
_TO_FILE = _FILE + 'exec "$@" >>"$f" 2>&1'
# The program keeps the shell's process id, so that signals and exit codes are its own; the copy ends with its input.
_TO_BOTH = _FILE + (
    'p="$f.$$"; mkfifo "$p" || exit 1; '
    f'{shlex.quote(sys.executable)} -I -S {shlex.quote(str(Path(__file__)))} "$f" "$r" <"$p" & '
    'exec 3>"$p"; rm "$p"; exec "$@" >&3 2>&1 3>&-'
)  # fmt: skip


def logged(program: Sequence[str], folder: Path, *, tee: bool = False) -> list[str]:
    """The argv of one rank that appends both its outputs to `folder`/rank-R.log.

    With `tee` it prints them too, line by line, each behind its rank, `[0] ...`.
    """
    return ["/bin/sh", "-c", _TO_BOTH if tee else _TO_FILE, "sh", str(folder), *program]


def copy(path: str, rank: str) -> None:
    """Copies standard input to its end, also while signals end the job, and to one of both where the other can't be
    written: the end of this process would end the rank."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    with open(path, "ab", buffering=0) as log, open(1, "wb", buffering=0) as screen:
        is_lossy = False
        for line in sys.stdin.buffer:
            try:
                log.write(line)
            except OSError as error:
                line += f"[{rank}] {path} can't be written: {error.strerror}\n".encode() * (not is_lossy)
                is_lossy = True
            with suppress(OSError):
                screen.write(f"[{rank}] ".encode() + line.rstrip(b"\n") + b"\n")


if __name__ == "__main__":
    copy(*sys.argv[1:])
