"""What ranks print, shown by the process that started them: whole lines, each behind its rank."""

from __future__ import annotations

import os
import selectors
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

KEPT = 20_000
"""Characters of the launcher's own words that are kept for an error message."""


class Output:
    """One named pipe a rank, made here, and the launcher's own output."""

    def __init__(self, pipes: Sequence[Path]) -> None:
        self.ranks = range(len(pipes))
        self.unprefixed = ""
        self._selector = selectors.DefaultSelector()
        self._rests: dict[int | None, bytes] = {}
        self._pipes = []
        for rank, path in enumerate(pipes):
            os.mkfifo(path, 0o600)
            # For reading and writing: it never ends while a rank has not opened it yet, or has closed it.
            self._pipes.append(os.open(path, os.O_RDWR | os.O_NONBLOCK))
            self._selector.register(self._pipes[-1], selectors.EVENT_READ, rank)

    def add(self, stream: IO[bytes]) -> None:
        """Also reads what the launcher itself says, or a rank before it has found its pipe."""
        os.set_blocking(stream.fileno(), False)
        self._selector.register(stream.fileno(), selectors.EVENT_READ, None)

    def show(self, seconds: float) -> None:
        """Prints all lines that are there, after waiting for the first at most so long."""
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

    def _take(self, rank: int | None, data: bytes) -> None:
        *lines, self._rests[rank] = (self._rests.get(rank, b"") + data).split(b"\n")
        for line in lines:
            self._print(rank, line)

    def _print(self, rank: int | None, line: bytes) -> None:
        # Of a progress bar, which returns to the start of its line, what a terminal would show.
        text = line.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", "replace")
        if rank is None:
            self.unprefixed = (self.unprefixed + text + "\n")[-KEPT:]
        else:
            sys.stdout.write(f"[{rank}] {text}\n")
            sys.stdout.flush()

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        for rank, rest in self._rests.items():
            if rest:
                self._print(rank, rest)
        self._selector.close()
        for pipe in self._pipes:
            os.close(pipe)
