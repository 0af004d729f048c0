"""What ranks print, shown by the process that started them: whole lines, each behind its rank."""

from __future__ import annotations

import os
import selectors
import sys
from collections.abc import Sequence
from typing import IO

KEPT = 20_000
"""Characters of the launcher's own words that are kept for an error message."""


class Output:
    """One pipe a rank, and the launcher's own output. pipes: their descriptors, which are closed in the end."""

    def __init__(self, pipes: Sequence[int]) -> None:
        self.ranks = range(len(pipes))
        self.unprefixed = ""
        self._selector = selectors.DefaultSelector()
        self._rests: dict[int | None, bytes] = {}
        self._pipes = pipes
        for rank, pipe in enumerate(pipes):
            self._selector.register(pipe, selectors.EVENT_READ, rank)

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
