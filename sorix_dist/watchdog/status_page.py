"""Shared memory in which the ranks of one host publish their status: one page a rank, which only that rank writes.

Numbers are single aligned words, which cannot tear; a text has a checksum. The guard and the other ranks read. This
module needs no NumPy and no MPI: the pages exist before either is loaded.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

from sorix_dist.watchdog import leftovers
from sorix_dist.watchdog.process import lives, start_time

PAGE = 8192
WORD = 8
CHANNELS = 40  # communicators of a rank that have a channel at a time
STARTUP = 1  # the key of collectives before the first communicator; later keys are random and larger
DEPTH = 4  # collectives of a communicator that are remembered, a power of two
LOCK_SECONDS = 10.0  # seconds that a process waits for another one that has locked the pages
LONGEST = 1e9  # longer time-outs, in seconds, are cut to this

# Words of the first page.
_GUARD, _GUARD_START, _TIMEOUT, _REPORTED, _HEARTBEAT, _WORLD_SIZE, _OTHER_HOSTS, _PROGRESS = range(8)
# Words of a rank's page; WAITED: nanoseconds that it has waited for others; TEXT: the slot of its latest text.
PID, START, STATE, ENTERED, EXITED, CURRENT, STEP, STACK, SCRIPT_OVER, WAITED, TEXT = range(11)
_CLAIMED = 512  # the first byte, in the first page, of a bit for each rank whose page is claimed
_FIRST_CHANNEL = 16
KEY, COUNT, SIGNATURES, NAMES = 0, 1, 2, 2 + DEPTH  # words of a channel
_CHANNEL = 2 + 2 * DEPTH
_TEXT = (_FIRST_CHANNEL + CHANNELS * _CHANNEL) * WORD
_HEAD = struct.Struct("=IH")  # checksum, length
_SLOT = (PAGE - _TEXT) // (DEPTH + 1)  # bytes of a text: one for each of the last collectives, and one for the rest


class State(IntEnum):
    """The life of a rank."""

    UNUSED = 0
    IMPORTED = 1
    STARTING = 2  # it waits for all ranks in the start of MPI
    RUNNING = 3
    FAILED = 4  # it raised, and wrote its report to `StatusPages.last_words`
    ENDED = 5  # its script came to its end


@dataclass(frozen=True)
class Status:
    """A rank's page, as another process read it."""

    rank: int
    pid: int
    state: State
    entered: int
    exited: int
    step: int  # -1 if unknown
    stack: int  # its descriptor of the file to which SIGUSR2 makes it write its stack, -1 if there is none
    key: int  # of the communicator of its last collective
    count: int  # the number of that collective there
    signature: int  # a hash of its call
    counts: dict[int, int]  # collectives entered, by communicator
    text: tuple[str, str]  # its last collective or operation in words, and the user's file and line
    refused: frozenset[int] = frozenset()
    """Communicators in which it makes no further calls, because a collective failed there."""
    script_over: bool = False  # whether its script is over, and its threads and atexit functions still run

    @property
    def waits(self) -> bool:
        """Whether it is in a collective."""
        return self.entered > self.exited


def _word(number: int) -> Any:
    """A property of `StatusPages`: a number in the first page, 0 at first."""
    return property(lambda pages: pages.words[number], lambda pages, value: pages.words.__setitem__(number, value))


class StatusPages:
    """The status pages of the ranks that one launcher process started on this host: one file for all of them."""

    heartbeat = _word(_HEARTBEAT)  # changes as long as the guard works
    world_size = _word(_WORLD_SIZE)  # the number of ranks if all are on this host, else 0
    other_hosts = _word(_OTHER_HOSTS)  # not 0 if some ranks are known to be on other hosts
    progress = _word(_PROGRESS)  # changes as long as a rank goes on with long work, such as a file
    reported = _word(_REPORTED)  # not 0 once the fault that ends the job has been reported

    def __init__(self, path: Path, file: int, ranks: int) -> None:
        self.path = path
        self.shared = file >= 0  # whether other processes can read them
        self.ranks = ranks
        self.file = file
        self.identity = os.fstat(file)[1:3] if self.shared else ()
        """Of the file: two containers may each have one of this name."""
        self.memory = mmap.mmap(file, PAGE * (1 + ranks))
        self.words = memoryview(self.memory).cast("q")

    @classmethod
    def join(cls, path: Path, ranks: int) -> StatusPages:
        """The pages at `path`, made if there are none yet; OSError if that fails or they are another user's."""
        while True:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                if os.fstat(file).st_uid != os.getuid():
                    raise PermissionError(f"{path} belongs to another user")
                with _locked(file, LOCK_SECONDS, fcntl.flock):
                    status = os.fstat(file)
                    if status.st_nlink:
                        if status.st_size < PAGE * (1 + ranks):
                            os.ftruncate(file, PAGE * (1 + ranks))
                        pages = cls(path, file, ranks)
                        pages._allocate(0)
                        return pages
            except BaseException:
                os.close(file)
                raise
            os.close(file)  # it was removed before it could be locked

    @classmethod
    def existing(cls, path: Path, file: int | None = None) -> StatusPages:
        """The pages at `path`, whether locked or not; or those that are open as `file`, even if they were removed."""
        if file is None:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        return cls(path, file, os.fstat(file).st_size // PAGE - 1)

    @classmethod
    def private(cls, ranks: int) -> StatusPages:
        """Pages of this process only."""
        return cls(Path(os.devnull, "none"), -1, ranks)

    @property
    def last_words(self) -> Path:
        """The report of the first rank that raised; the rank that creates this file is the first."""
        return self.path.with_name(self.path.name + ".words")

    @property
    def leftovers(self) -> Path:
        """The file in which ranks record the shared memory that would remain if they were killed."""
        return self.path.with_name(self.path.name + ".leftovers")

    @property
    def socket_path(self) -> str:
        """The guard's socket. A rank stays connected until its process closes its files, early in its end."""
        return f"{self.path}.socket"

    def locked(self, patience: float = LOCK_SECONDS) -> AbstractContextManager[None]:
        """A block that one process at a time is in. TimeoutError if another one stays there for `patience` seconds."""
        return _locked(self.file, patience, fcntl.flock)

    def starting_guard(self, patience: float) -> AbstractContextManager[None]:
        """The same, with another lock: a guard may take long to start, and ranks claim their pages meanwhile."""
        return _locked(self.file, patience, fcntl.lockf)

    @property
    def guard(self) -> tuple[int, int]:
        """Number and start time of the guard process."""
        return self.words[_GUARD], self.words[_GUARD_START]

    def set_guard(self, pid: int) -> None:
        self.words[_GUARD], self.words[_GUARD_START] = pid, start_time(pid)

    def guarded(self) -> bool:
        """Whether the guard process lives."""
        pid, start = self.guard
        return pid > 0 and lives(pid, start)

    @property
    def timeout(self) -> float:
        """Seconds that a rank may be late, 0 until a rank has set it."""
        return self.words[_TIMEOUT] / 1000

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self.words[_TIMEOUT] = round(min(max(seconds, 0.001), LONGEST) * 1000)

    def claim_report(self) -> bool:
        """Whether this process is the one to report what ends the job: True for one process only."""
        try:
            with self.locked(LOCK_SECONDS / 10):
                first = not self.reported
                self.reported = 1
                return first
        except OSError:  # a process that is stopped has the lock, or the program has closed the file
            return not self.reported

    def at(self, rank: int) -> int:
        """The number of the first word of a rank's page."""
        return (1 + rank) * PAGE // WORD

    def claim(self, rank: int, pid: int) -> None:
        """Clear the page of `rank` and give it to the process `pid`; one process at a time."""
        at = self.at(rank)
        self._allocate(1 + rank)
        if (byte := _CLAIMED + rank // 8) < PAGE:
            self.memory[byte] |= 1 << rank % 8
        self.words[at + PID] = 0
        self.memory[(1 + rank) * PAGE : (2 + rank) * PAGE] = bytes(PAGE)
        self.words[at + START], self.words[at + STATE] = start_time(pid), State.IMPORTED
        self.words[at + STEP] = self.words[at + STACK] = -1
        self.words[at + PID] = pid

    def _allocate(self, page: int) -> None:
        """Allocate a page's memory, or raise OSError: without, a first write to a full disk ends the process."""
        if not self.shared:
            return
        try:
            os.posix_fallocate(self.file, page * PAGE, PAGE)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{self.path.parent} has {shutil.disk_usage(self.path.parent).free >> 10} KB left, and "
                f"{PAGE >> 10} KB are needed for each rank, MPI's own shared memory aside ({error.strerror})",
            ) from error

    def _is_claimed(self, rank: int) -> bool:
        """Whether the page of `rank` has memory: reading one without would take some, or be a SIGBUS."""
        byte = _CLAIMED + rank // 8
        return byte >= PAGE or bool(self.memory[byte] >> rank % 8 & 1)

    def owner(self, rank: int) -> tuple[int, int]:
        """Number and start time of the process that has the page of `rank`; (0, 0) if none has claimed it."""
        if not self._is_claimed(rank):
            return 0, 0
        at = self.at(rank)
        return self.words[at + PID], self.words[at + START]

    def text_at(self, rank: int, slot: int) -> int:
        """The number of the first byte of one of a rank's texts, which `pack_text` makes."""
        return (1 + rank) * PAGE + _TEXT + slot * _SLOT

    def calls(self, rank: int, entered: int) -> list[tuple[str, str]]:
        """The texts of a rank's collective number `entered`, of any communicator, and of those before, newest first."""
        return [self._text(rank, (entered - ago) % DEPTH) for ago in range(DEPTH)]

    def read(self, rank: int) -> Status | None:
        """The page of `rank`, None if no process has claimed it."""
        if not self._is_claimed(rank):
            return None
        at = self.at(rank)
        words = self.words[at : at + _TEXT // WORD].tolist()
        if words[PID] == 0:
            return None
        channels = range(_FIRST_CHANNEL, _FIRST_CHANNEL + CHANNELS * _CHANNEL, _CHANNEL)
        used = [(words[channel + KEY], words[channel + COUNT]) for channel in channels if words[channel + KEY]]
        key = count = signature = 0
        if words[CURRENT]:
            channel = words[CURRENT] - at
            key, count = abs(words[channel + KEY]), words[channel + COUNT]
            signature = words[channel + SIGNATURES + count % DEPTH]
        return Status(
            rank=rank,
            pid=words[PID],
            state=State(words[STATE]),
            entered=words[ENTERED],
            exited=words[EXITED],
            step=words[STEP],
            stack=words[STACK],
            key=key,
            count=count,
            signature=signature,
            counts={abs(each): entered for each, entered in used},
            text=self._text(rank, words[TEXT]),
            refused=frozenset(-each for each, _ in used if each < 0),
            script_over=words[SCRIPT_OVER] != 0,
        )

    def _text(self, rank: int, slot: int) -> tuple[str, str]:
        start = self.text_at(rank, slot)
        for _ in range(100):  # the rank may be writing it
            checksum, size = _HEAD.unpack_from(self.memory, start)
            body = self.memory[start + _HEAD.size : start + _HEAD.size + min(size, _SLOT - _HEAD.size)]
            if len(body) == size and zlib.crc32(body) == checksum:
                what, _, where = body.decode(errors="replace").partition("\n")
                return what, where
        return "", ""

    def channel(self, rank: int, number: int) -> int:
        """The number of the first word of a channel."""
        return self.at(rank) + _FIRST_CHANNEL + number * _CHANNEL

    def remove(self) -> None:
        """Remove the files, and what the ranks left in shared memory. Processes that have opened the pages can still
        use them."""
        leftovers.remove_recorded(self.leftovers)
        for path in (self.path, self.last_words, self.socket_path):
            with suppress(FileNotFoundError):
                os.unlink(path)


@lru_cache(maxsize=1024)
def pack_text(what: str, where: str) -> bytes:
    """An operation and where the user called it, with a checksum. Of a long file name, the end is kept."""
    room = _SLOT - _HEAD.size
    where_bytes = where.encode(errors="replace")[-room // 2 :]
    body = what.encode(errors="replace")[: room - len(where_bytes) - 1] + b"\n" + where_bytes
    return _HEAD.pack(zlib.crc32(body), len(body)) + body


@contextmanager
def _locked(file: int, patience: float, lock: Callable[[int, int], None]) -> Iterator[None]:
    """TimeoutError if another process, which may be stopped, does not unlock the file."""
    if file < 0:
        yield
        return
    limit = time.monotonic() + patience
    while True:
        try:
            lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > limit:
                raise TimeoutError(f"another process has locked the ranks' status pages for {patience:g} s") from None
            time.sleep(0.002)
    try:
        yield
    finally:
        lock(file, fcntl.LOCK_UN)
