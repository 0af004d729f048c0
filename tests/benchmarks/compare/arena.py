"""Processes that all exist at the same time, of which one contestant at a time does something."""

from __future__ import annotations

import json
import select
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self, TextIO

from sorix_dist.launch import LaunchError
from sorix_dist.watchdog.process import kill_with_descendants
from tests.benchmarks.compare.contestants import OURS, Contestant, Interpreters

Turn = tuple[str, str]
"""Whose turn it is, and what it does."""

START = 60.0
"""Seconds within which all processes of a contestant must be there."""
ANSWER = 100.0
"""Seconds within which it must answer."""
SETTLE = 0.03
"""Seconds between two turns: the threads of a BLAS look for more work for a moment before they sleep."""


class Rank(NamedTuple):
    """A process that takes turns, and the connection to it."""

    number: int
    pid: int
    connection: socket.socket
    lines: TextIO


class Seat:
    """A contestant in the arena: its processes and a line to each of its ranks."""

    def __init__(self, contestant: Contestant, interpreter: str) -> None:
        self.contestant = contestant
        self.folder = tempfile.TemporaryDirectory(prefix="sorix_dist-bench-")
        path, meeting = Path(self.folder.name, "socket"), Path(self.folder.name, "meeting")
        self.output: BinaryIO = open(Path(self.folder.name, "output"), "w+b")  # noqa: SIM115 (closed in `close`)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.ranks: list[Rank] = []
        self.version = ""
        for command in contestant.commands(interpreter, path, meeting):
            self.processes.append(
                subprocess.Popen(
                    command.argv, env=command.env, stdin=subprocess.DEVNULL, stdout=self.output, stderr=self.output
                )
            )

    def wait(self) -> None:
        """Returns when every rank has come and waits for its turn."""
        self.listener.settimeout(0.2)
        end = time.monotonic() + START
        while len(self.ranks) < self.contestant.ranks:
            try:
                connection, _ = self.listener.accept()
            except TimeoutError:
                if any(process.poll() is not None for process in self.processes) or time.monotonic() > end:
                    raise self._failure("did not start") from None
                continue
            connection.settimeout(ANSWER)
            lines = connection.makefile("r", encoding="utf-8")
            hello = json.loads(lines.readline())
            self.ranks.append(Rank(hello["rank"], hello["pid"], connection, lines))
            self.version = hello["version"]
        self.ranks.sort()

    def ask(self, **request: Any) -> list[dict[str, Any]]:
        """The answers of all ranks, rank 0's first; LaunchError if one fails or takes too long."""
        self.send(request)
        return self.receive()

    def send(self, request: Mapping[str, Any]) -> None:
        """Asks all ranks at once."""
        message = json.dumps(request).encode() + b"\n"
        try:
            for rank in self.ranks:
                rank.connection.sendall(message)
        except OSError as error:
            raise self._failure("has ended") from error

    def receive(self) -> list[dict[str, Any]]:
        """Their answers to the last request."""
        answers = []
        for rank in self.ranks:
            try:
                said = json.loads(rank.lines.readline() or '{"error": "the process has ended"}')
            except TimeoutError as error:
                raise self._failure(f"has not answered within {ANSWER:g} s") from error
            except OSError as error:
                raise self._failure("has ended") from error
            if "error" in said:
                raise self._failure(f"failed: {said['error']}")
            answers.append(said)
        return answers

    def dismiss(self) -> None:
        """Lets its processes end."""
        for rank in self.ranks:
            rank.lines.close()
            rank.connection.close()

    def close(self) -> None:
        """Waits for the end of its processes, and ends those that go on."""
        self.dismiss()
        end = time.monotonic() + 10
        for process in self.processes:
            try:
                process.wait(max(0.0, end - time.monotonic()) if self.ranks else 0)
            except subprocess.TimeoutExpired:
                kill_with_descendants(process.pid)
                process.wait()
        self.listener.close()
        self.output.close()
        self.folder.cleanup()

    def _failure(self, what: str) -> LaunchError:
        self.output.flush()
        said = Path(self.output.name).read_text(errors="replace").strip().splitlines()
        return LaunchError("; ".join([f"{self.contestant.name} {what}", *[line for line in said if line][-9:]]))


class Arena:
    """The seats of contestants, by name, in the order of their turns; ends all processes on leaving.

    failed: who did not start, and why. LaunchError if it is this package itself.
    """

    def __init__(self, contestants: Sequence[Contestant], interpreters: Interpreters) -> None:
        self.interpreters, self.contestants = interpreters, list(contestants)
        self.seats: dict[str, Seat] = {}
        self.failed: dict[str, str] = {}

    def __enter__(self) -> Self:
        try:
            for contestant in list(self.contestants):  # one after the other: together they would be slow to start
                try:
                    self._seat(contestant, attempts=2)
                except LaunchError as error:
                    if contestant.peer == OURS:
                        raise
                    self.contestants.remove(contestant)
                    self.failed[contestant.name] = str(error)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for seat in self.seats.values():
            seat.dismiss()
        for seat in self.seats.values():
            seat.close()

    def _seat(self, contestant: Contestant, attempts: int) -> None:
        """Starts a contestant, again if a busy machine was too slow for its launcher."""
        self.seats[contestant.name] = seat = Seat(contestant, self.interpreters.of(contestant.peer))
        try:
            seat.wait()
        except LaunchError as error:
            self.seats.pop(contestant.name).close()
            if attempts == 1:
                raise
            print(f"once more: {error}", flush=True)
            self._seat(contestant, attempts - 1)

    def describe(self, name: str) -> dict[str, Any]:
        """What rank 0 of a contestant, of this package, says that it runs on."""
        description: dict[str, Any] = self.seats[name].ask(describe=True)[0]
        return description

    def prepare(self, name: str, act: str, called: str = "", **options: Any) -> None:
        """Makes a contestant ready for an act, by a name of its own if it shall be ready for several like it."""
        self.seats[name].ask(prepare=called or act, act=act, **options)

    def losses(self, name: str, act: str, count: int) -> list[float]:
        """The mean over ranks of what each of so many calls returns."""
        answers = [answer["losses"] for answer in self.seats[name].ask(losses=act, count=count)]
        return [sum(values) / len(values) for values in zip(*answers, strict=True)]

    def turn(self, name: str, act: str, count: int) -> list[float]:
        """The seconds of so many calls, as rank 0 knows them."""
        time.sleep(SETTLE)
        times: list[float] = self.seats[name].ask(time=act, count=count)[0]["times"]
        return times

    def interleaved(self, turns: Sequence[Turn], turn: float, seconds: float, rounds: int) -> dict[Turn, list[float]]:
        """The seconds of each call: in every round each has a turn of about `turn` seconds, but of two calls at least.

        As many rounds as fit into `seconds`, and at least `rounds`.
        """
        once = {each: self.turn(*each, 1)[0] for each in turns}
        counts = {each: max(2, int(turn / first)) for each, first in once.items()}
        whole = sum(SETTLE + first * (1 + counts[each]) for each, first in once.items())
        times: dict[Turn, list[float]] = {each: [] for each in turns}
        for _ in range(max(rounds, int(seconds / whole))):
            for each, count in counts.items():
                times[each] += self.turn(*each, count)
        return times

    def memory(self, name: str, act: str, count: int) -> int:
        """The most bytes that a rank uses while it makes so many calls, the mean over ranks: what several processes
        share is counted once, in equal parts."""
        seat = self.seats[name]
        seat.send({"time": act, "count": count})
        peak, waited_for = 0, [rank.connection for rank in seat.ranks]
        while waited_for:
            peak = max(peak, sum(proportional(rank.pid) for rank in seat.ranks))
            answered, _, _ = select.select(waited_for, [], [], 0.002)
            waited_for = [connection for connection in waited_for if connection not in answered]
        seat.receive()
        return peak // len(seat.ranks)


def measures_memory() -> bool:
    """Whether this system says what `proportional` asks."""
    return Path("/proc/self/smaps_rollup").exists()


def proportional(pid: int) -> int:
    """Bytes of memory that a process uses, each page divided by the number of processes that share it (PSS)."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return 1024 * next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
