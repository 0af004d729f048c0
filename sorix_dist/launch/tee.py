"""A program of its own: standard input to a file, and line by line, each behind its rank, to standard output.

Not tee(1): a line may come in pieces, between which other ranks' pieces would be shown.
"""

from __future__ import annotations

import signal
import sys


def main(path: str, rank: str) -> None:
    """Copies until the end of the input, which signals to the job do not bring about."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    with open(path, "ab", buffering=0) as log, open(1, "wb", buffering=0) as screen:
        for line in sys.stdin.buffer:
            log.write(line)
            screen.write(f"[{rank}] ".encode() + line.rstrip(b"\n") + b"\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
