"""What the ranks of one host know of each other: one page of shared memory a rank, which it alone writes.

Numbers are single aligned words, which cannot be torn; a text goes with its checksum. The guard process and the other
ranks read. No NumPy and no MPI here: the table is there before either.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
import stat
import struct
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from pathlib import Path

from sorix_dist.comm import leftovers
from sorix_dist.comm.process import lives, start_time

PAGE = 4096
WORD = 8
CHANNELS = 40
"""Communicators of one rank that can be told apart at a time."""
EVERYBODY = 1
"""The key of what all ranks do before they have a communicator of ours, whose keys are random and larger."""
DEPTH = 4
"""Collectives of a communicator that are remembered, a power of two."""

FOLDERS = 8
"""Names of the folder of tables that are tried, because other users may have taken some."""

LOCKED = 10.0
"""Seconds that a process waits for another one that has locked the table."""

LONGEST = 1e9
"""Seconds of a time-out that count."""

_GUARD, _GUARD_START, _TIMEOUT, _SAID, _HEARTBEAT, _ALL_HERE, _ELSEWHERE = range(7)  # words of the first page
PID, START, STATE, ENTERED, LEFT, CURRENT, STEP, STACK, OVER = range(9)  # words of a rank's page
_FIRST_CHANNEL = 16
KEY, COUNT, SIGNATURES, CALLS = 0, 1, 2, 2 + DEPTH  # words of a channel
_CHANNEL = 2 + 2 * DEPTH
_TEXT = (_FIRST_CHANNEL + CHANNELS * _CHANNEL) * WORD
_HEAD = struct.Struct("=IH")  # checksum, length


class State(IntEnum):
    """How far a rank has come."""

    NOBODY = 0
    IMPORTED = 1
    STARTING = 2
    """It waits for all ranks in the start of MPI."""
    RUNNING = 3
    FAILED = 4
    """It raised, and its last words are in `Table.words`."""
    ENDED = 5
    """Its script has come to its end."""


@dataclass(frozen=True)
class Seen:
    """A rank's page as another process saw it."""

    rank: int
    pid: int
    state: State
    entered: int
    left: int
    step: int
    """-1 if unknown."""
    stack: int
    """Its descriptor of the file that SIGUSR2 makes it write its stack to, -1 if there is none."""
    key: int
    count: int
    signature: int
    """The communicator of its last collective, which one it was there, and what it is."""
    counts: dict[int, int]
    """Of each of its communicators, the collectives that it has entered."""
    text: tuple[str, str]
    """Its last collective or operation in words, and the user's file and line."""
    refused: frozenset[int] = frozenset()
    """The communicators in which it makes no further calls, because a collective has failed there."""
    over: bool = False
    """Whether its script is over, and its process not: threads and atexit functions are still to end."""

    @property
    def waits(self) -> bool:
        """Whether it is in a collective."""
        return self.entered > self.left


class Table:
    """The shared memory of the ranks that one launcher process started here; the same file for all of them."""

    def __init__(self, path: Path, file: int, ranks: int) -> None:
        self.path = path
        self.shared = file >= 0
        """Whether other processes see it."""
        self.ranks = ranks
        self._file = file
        self.memory = mmap.mmap(file, PAGE * (1 + ranks))
        self.words = memoryview(self.memory).cast("q")

    @classmethod
    def join(cls, path: Path, ranks: int) -> Table:
        """The table at `path`, made if it is not there yet; OSError if it cannot be or is another user's."""
        while True:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                if os.fstat(file).st_uid != os.getuid():
                    raise PermissionError(f"{path} belongs to another user")
                with _locked(file):
                    status = os.fstat(file)
                    if status.st_nlink:
                        if status.st_size < PAGE * (1 + ranks):
                            os.ftruncate(file, PAGE * (1 + ranks))
                        table = cls(path, file, ranks)
                        table._allocate(0)
                        return table
            except BaseException:
                os.close(file)
                raise
            os.close(file)  # it was removed before it could be locked

    @classmethod
    def existing(cls, path: Path) -> Table:
        """The table at `path`, whoever has locked it."""
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        return cls(path, file, os.fstat(file).st_size // PAGE - 1)

    @classmethod
    def private(cls, ranks: int) -> Table:
        """A table that this process alone sees."""
        return cls(Path(os.devnull, "none"), -1, ranks)

    @property
    def last_words(self) -> Path:
        """The file that the first rank that fails writes; whoever creates it is the first."""
        return self.path.with_name(self.path.name + ".words")

    @property
    def noted(self) -> Path:
        """The file in which ranks note the shared memory that would stay if they were killed."""
        return self.path.with_name(self.path.name + ".noted")

    @property
    def line(self) -> str:
        """The path of the guard's socket. A rank stays connected until its process closes its files, which it does
        early in its end."""
        return f"{self.path}.line"

    def locked(self) -> AbstractContextManager[None]:
        """A block that one process at a time is in."""
        return _locked(self._file)

    def set_guard(self, pid: int) -> None:
        self.words[_GUARD], self.words[_GUARD_START] = pid, start_time(pid)

    @property
    def guard(self) -> tuple[int, int]:
        """Number and start time of the guard process."""
        return self.words[_GUARD], self.words[_GUARD_START]

    def guarded(self) -> bool:
        """Whether the guard process lives."""
        pid, start = self.guard
        return pid > 0 and lives(pid, start)

    @property
    def heartbeat(self) -> int:
        """A number that changes as long as the guard looks."""
        return self.words[_HEARTBEAT]

    def beat(self) -> None:
        """The guard looks."""
        self.words[_HEARTBEAT] += 1

    @property
    def timeout(self) -> float:
        """Seconds that a rank may be late, 0 until a rank has said so."""
        return self.words[_TIMEOUT] / 1000

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self.words[_TIMEOUT] = round(min(max(seconds, 0.001), LONGEST) * 1000)

    @property
    def all_here(self) -> int:
        """The number of ranks if all are on this host, else 0."""
        return self.words[_ALL_HERE]

    @all_here.setter
    def all_here(self, ranks: int) -> None:
        self.words[_ALL_HERE] = ranks

    @property
    def elsewhere(self) -> bool:
        """Whether some ranks are known to be on other hosts."""
        return self.words[_ELSEWHERE] != 0

    def set_elsewhere(self) -> None:
        self.words[_ELSEWHERE] = 1

    @property
    def said(self) -> bool:
        """Whether the guard has said all there is to say."""
        return self.words[_SAID] != 0

    def set_said(self) -> None:
        self.words[_SAID] = 1

    def say_once(self) -> bool:
        """Whether it is up to this process to say what ends the job; no other one is told so."""
        try:
            with self.locked():
                first = not self.said
                self.set_said()
                return first
        except TimeoutError:  # held by a process that is stopped
            return not self.said

    def at(self, rank: int) -> int:
        """The number of the first word of a rank's page."""
        return (1 + rank) * PAGE // WORD

    def claim(self, rank: int, pid: int) -> None:
        """Make the page of `rank` that of the process `pid`, whatever it was before."""
        at = self.at(rank)
        self._allocate(1 + rank)
        self.words[at + PID] = 0
        self.memory[(1 + rank) * PAGE : (2 + rank) * PAGE] = bytes(PAGE)
        self.words[at + START], self.words[at + STATE] = start_time(pid), State.IMPORTED
        self.words[at + STEP] = self.words[at + STACK] = -1
        self.words[at + PID] = pid

    def _allocate(self, page: int) -> None:
        """Have memory for a page, or raise OSError: the first write would end this process by SIGBUS."""
        if not self.shared:
            return
        try:
            os.posix_fallocate(self._file, page * PAGE, PAGE)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{self.path.parent} has {shutil.disk_usage(self.path.parent).free >> 10} KB left, and "
                f"{PAGE >> 10} KB are needed for each rank, MPI's own shared memory aside ({error.strerror})",
            ) from error

    def owner(self, rank: int) -> tuple[int, int]:
        """Number and start time of the process that the page of `rank` is for."""
        at = self.at(rank)
        return self.words[at + PID], self.words[at + START]

    def put_text(self, rank: int, blob: bytes) -> None:
        """Store what `pack_text` has made."""
        start = (1 + rank) * PAGE + _TEXT
        self.memory[start : start + len(blob)] = blob

    def see(self, rank: int) -> Seen | None:
        """The page of `rank`, None if nobody has claimed it."""
        at = self.at(rank)
        words = self.words[at : at + PAGE // WORD].tolist()
        if words[PID] == 0:
            return None
        channels = range(_FIRST_CHANNEL, _FIRST_CHANNEL + CHANNELS * _CHANNEL, _CHANNEL)
        counts = {abs(words[channel + KEY]): words[channel + COUNT] for channel in channels if words[channel + KEY]}
        refused = frozenset(-words[channel + KEY] for channel in channels if words[channel + KEY] < 0)
        key = count = signature = 0
        if words[CURRENT]:
            channel = words[CURRENT] - at
            key, count = abs(words[channel + KEY]), words[channel + COUNT]
            signature = words[channel + SIGNATURES + count % DEPTH]
        return Seen(
            rank,
            words[PID],
            State(words[STATE]),
            words[ENTERED],
            words[LEFT],
            words[STEP],
            words[STACK],
            key,
            count,
            signature,
            counts,
            self._text(rank),
            refused,
            words[OVER] != 0,
        )

    def _text(self, rank: int) -> tuple[str, str]:
        start = (1 + rank) * PAGE + _TEXT
        for _ in range(100):  # until it is not being written just now
            checksum, size = _HEAD.unpack_from(self.memory, start)
            body = self.memory[start + _HEAD.size : start + _HEAD.size + min(size, PAGE - _TEXT - _HEAD.size)]
            if len(body) == size and zlib.crc32(body) == checksum:
                what, _, where = body.decode(errors="replace").partition("\n")
                return what, where
        return "", ""

    def channel(self, rank: int, number: int) -> int:
        """The number of the first word of a channel."""
        return self.at(rank) + _FIRST_CHANNEL + number * _CHANNEL

    def remove(self) -> None:
        """Remove its files, and what its ranks have left; who has it open can go on to use it."""
        leftovers.remove_noted(self.noted)
        for path in (self.path, self.last_words, self.line):
            with suppress(FileNotFoundError):
                os.unlink(path)


@lru_cache(maxsize=1024)
def pack_text(what: str, where: str) -> bytes:
    """What an operation is and where the user called it, with a checksum: too long ones are cut at their beginnings,
    which a file's name can spare best."""
    room = PAGE - _TEXT - _HEAD.size
    where_bytes = where.encode(errors="replace")[-room // 2 :]
    body = what.encode(errors="replace")[: room - len(where_bytes) - 1] + b"\n" + where_bytes
    return _HEAD.pack(zlib.crc32(body), len(body)) + body


def directory() -> Path:
    """Where tables are: a folder of this user's alone, in memory of this host if there is some.

    PermissionError if there can be none.
    """
    for above in (Path("/dev/shm"), Path(tempfile.gettempdir())):
        for number in range(FOLDERS):
            folder = above / f"sorix_dist-{os.getuid()}.{number}"
            with suppress(OSError):  # it is there already, or can't be
                os.mkdir(folder, 0o700)
            with suppress(OSError):
                about = os.lstat(folder)
                if stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid() and not about.st_mode & 0o077:
                    return folder
    raise PermissionError(f"no folder for this user alone can be made in {above}; set TMPDIR to one of your own")


def path_for(launcher: int) -> Path:
    """The file of the ranks that the process `launcher` of this host started."""
    return directory() / f"{_prefix()}{launcher}-{start_time(launcher)}-{_namespace()}"


def launcher_of(path: Path) -> tuple[int, int]:
    """Number and start time of the launcher whose ranks the file at `path` is for; (0, -1) if it is no table, or one
    of another container, where other processes have these numbers."""
    name = path.name.removeprefix(_prefix()).partition(".")[0]
    pid, start, namespace, *_ = [*name.split("-"), "", ""]
    here = namespace in ("", _namespace())
    return (int(pid), int(start)) if here and pid.isdigit() and start.isdigit() else (0, -1)


def remove_stale() -> None:
    """Remove what jobs have left whose launcher is gone and whose guard could not clear up."""
    for path in directory().glob(f"{_prefix()}*"):
        launcher, start = launcher_of(path)
        if launcher and start_time(launcher) != start:
            if path.suffix == ".noted":
                leftovers.remove_noted(path)
            with suppress(OSError):  # another job has just done it
                path.unlink()
    leftovers.remove_launchers_files()


@contextmanager
def _locked(file: int) -> Iterator[None]:
    """TimeoutError if another process, which may be stopped, does not unlock the file."""
    if file >= 0:
        limit = time.monotonic() + LOCKED
        while not _lock(file):
            if time.monotonic() > limit:
                raise TimeoutError(f"another process has held the lock of the ranks' table for {LOCKED:g} s")
            time.sleep(0.002)
    try:
        yield
    finally:
        if file >= 0:
            fcntl.flock(file, fcntl.LOCK_UN)


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _namespace() -> str:
    """What tells apart the process numbers of containers that share this folder; '' if unknown."""
    try:
        return str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        return ""


def _prefix() -> str:
    return f"sorix_dist-{os.getuid()}-"
