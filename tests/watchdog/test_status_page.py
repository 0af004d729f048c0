"""The table that the ranks of a host share: what is written is what is seen, whenever one looks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from sorix_dist.watchdog import status_page as layout
from sorix_dist.watchdog.guard import Guard
from sorix_dist.watchdog.process import Process, end_status, start_time, state
from sorix_dist.watchdog.status_page import PAGE, State, StatusPages, pack_text
from sorix_dist.watchdog.watch import Channel, RankPage

OTHER = 12345
"""A user who is not this one."""

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")


@pytest.fixture
def table(tmp_path: Path) -> StatusPages:
    return StatusPages.join(tmp_path / "table", 4)


def gone_process() -> tuple[int, int]:
    """Number and start time of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = start_time(child.pid)
    child.communicate(b"\n")
    return child.pid, start


def test_a_row_is_seen_by_whoever_opens_the_table(table: StatusPages) -> None:
    row = RankPage(table, 2)
    channel = Channel(row, 77)
    row.say("all_reduce of float32 (3,)", "train.py:12")
    row.words[row.at + layout.STEP] = 5
    channel.enter(111)
    channel.leave()
    channel.enter(222)
    other = StatusPages.existing(table.path)
    assert other.ranks == 4
    assert other.read(0) is None
    seen = other.read(2)
    assert seen is not None
    assert (seen.rank, seen.pid, seen.state) == (2, os.getpid(), State.IMPORTED)
    assert table.owner(2) == (os.getpid(), start_time(os.getpid()))
    assert (seen.key, seen.count, seen.signature, seen.counts) == (77, 2, 222, {77: 2})
    assert (seen.step, seen.waits, seen.stack) == (5, True, -1)
    assert seen.text == ("all_reduce of float32 (3,)", "train.py:12")
    channel.leave()
    assert not other.read(2).waits  # type: ignore[union-attr]


def test_rows_fit_into_their_pages(table: StatusPages) -> None:
    rows = [RankPage(table, rank) for rank in range(4)]
    channels = [[Channel(row, 1 + number) for number in range(layout.CHANNELS)] for row in rows]
    for row, own in zip(rows, channels):
        row.say("w" * PAGE, "x" * PAGE)
        for channel in own:
            for _ in range(layout.DEPTH):
                channel.enter(row.rank + 1, row.rank + 1)
    for rank in range(4):
        seen = table.read(rank)
        assert seen is not None
        assert seen.pid == os.getpid()
        assert seen.signature == rank + 1
        assert seen.counts == dict.fromkeys(range(1, 1 + layout.CHANNELS), layout.DEPTH)
        assert set(seen.text[0]) == {"w"}
        assert set(seen.text[1]) == {"x"}
    assert table.timeout == 0
    assert not table.reported


def test_too_many_communicators_are_counted_all_the_same_and_pages_are_given_back(table: StatusPages) -> None:
    row = RankPage(table, 0)
    channels = [Channel(row, 1 + number) for number in range(layout.CHANNELS + 2)]
    assert [channel.at >= 0 for channel in channels] == [True] * layout.CHANNELS + [False] * 2
    assert [channels[-1].enter(1), channels[-1].enter(1)] == [1, 2]
    assert table.read(0).waits  # type: ignore[union-attr]
    assert table.read(0).key == 0  # type: ignore[union-attr]
    del channels[:3]
    assert len(table.read(0).counts) == layout.CHANNELS - 3  # type: ignore[union-attr]
    new = Channel(row, 99)
    assert new.at >= 0
    assert 99 in table.read(0).counts  # type: ignore[union-attr]


def test_a_text_is_never_seen_half_written(table: StatusPages) -> None:
    row = RankPage(table, 1)
    pairs = [(letter * (20 + 13 * place), f"{letter}.py") for place, letter in enumerate("abcdefgh")]
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            for pair in pairs:
                row.say(*pair)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = {table.read(1).text for _ in range(5000)}  # type: ignore[union-attr]
    finally:
        done.set()
        writer.join()
    assert seen <= {*pairs, ("", "")}
    assert len(seen & set(pairs)) > 1


def test_a_damaged_text_is_no_text(table: StatusPages) -> None:
    RankPage(table, 1).say("all_reduce", "train.py:1")
    at = table.memory.find(b"all_reduce")
    table.memory[at : at + 1] = b"X"
    assert table.read(1).text == ("", "")  # type: ignore[union-attr]


def test_long_texts_keep_the_line_number() -> None:
    assert pack_text("all_reduce", "/a" * PAGE + "/train.py:12").endswith(b"/train.py:12")


def test_another_process_takes_a_row_over_whole(table: StatusPages) -> None:
    first = RankPage(table, 0)
    Channel(first, 5).enter(1)
    first.say("all_reduce", "")
    first.words[first.at + layout.STEP] = 9
    RankPage(table, 0)
    seen = table.read(0)
    assert seen is not None
    assert (seen.entered, seen.counts, seen.step, seen.text) == (0, {}, -1, ("", ""))


def test_a_child_process_says_nothing_for_its_parent(table: StatusPages) -> None:
    row = RankPage(table, 0)
    row.set(State.RUNNING)
    child = os.fork()
    if child == 0:
        row.set(State.ENDED)
        os._exit(0)
    os.waitpid(child, 0)
    assert table.read(0).state == State.RUNNING  # type: ignore[union-attr]


def test_what_is_another_users_or_a_link_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="link"):
        StatusPages.join(tmp_path / "link", 2)
    assert not (tmp_path / "elsewhere").exists()


def test_a_removed_table_is_made_anew(tmp_path: Path) -> None:
    first = StatusPages.join(tmp_path / "table", 2)
    first.last_words.touch()
    first.remove()
    assert list(tmp_path.iterdir()) == []
    second = StatusPages.join(tmp_path / "table", 2)
    RankPage(second, 0)
    assert first.read(0) is None


def test_stale_tables_are_removed_and_living_ones_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "directory", lambda: tmp_path)
    pid, start = gone_process()
    living = layout.path_for(os.getpid())
    reused = tmp_path / f"sorix_dist-{os.getuid()}-{os.getpid()}-{start_time(os.getpid()) - 1}"
    stale = tmp_path / f"sorix_dist-{os.getuid()}-{pid}-{start}"
    foreign = tmp_path / f"sorix_dist-{os.getuid()}-notes"
    container = stale.with_name(stale.name + "-12345")  # where these numbers are those of other processes
    for path in (living, reused, stale, stale.with_name(stale.name + ".words"), foreign, container):
        path.touch()
    layout.remove_stale()
    assert sorted(tmp_path.iterdir()) == sorted([living, foreign, container])
    assert layout.launcher_of(living) == (os.getpid(), start_time(os.getpid()))


def squatted(folder: Path, how: str) -> None:
    """Another user, or somebody's carelessness, is at the folder's name before us."""
    if how == "file":
        folder.write_text("squatted")
    elif how == "link":
        folder.symlink_to(folder.parent)
    else:
        folder.mkdir(mode=0o700)
        folder.chmod(0o777 if how == "open to others" else 0o700)
        if how == "another user's":
            os.chown(folder, OTHER, -1)


@pytest.mark.parametrize("how", ["file", "link", "open to others", pytest.param("another user's", marks=needs_root)])
def test_tables_are_in_a_folder_of_this_user_alone(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "Path", lambda path: tmp_path if path == "/dev/shm" else Path(path))
    first = layout.directory()
    assert first.parent == tmp_path
    assert first.stat().st_mode & 0o777 == 0o700
    assert layout.directory() == first  # as for the next rank
    first.rmdir()
    squatted(first, how)
    second = layout.directory()
    assert second not in (first, tmp_path)
    assert second.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(layout, "FOLDERS", 1)
    monkeypatch.setattr(layout.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(PermissionError, match="no folder for this user alone"):
        layout.directory()


def connect_as(user: int, path: str, count: int) -> None:
    """Another user connects to a socket, and goes."""
    child = os.fork()
    if child == 0:
        with suppress(OSError):
            os.setuid(user)
            for _ in range(count):
                socket.socket(socket.AF_UNIX).connect(path)
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@needs_root
def test_the_guard_hears_only_its_own_user() -> None:
    """Connections of another one keep no descriptor, and are no news of any rank."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as line:
        table = StatusPages.join(Path(folder, "table"), 2)
        line.bind(table.socket_path)
        line.listen(8)
        for path in (folder, table.socket_path):
            os.chmod(path, 0o777)  # else nobody would come so far
        guard = Guard(table, line)
        before = os.listdir("/proc/self/fd")
        connect_as(OTHER, table.socket_path, 5)
        for _ in range(5):
            guard._handle_events([handle for handle, _ in guard.events.poll(1)])
        assert (guard.connections, guard.disconnected, os.listdir("/proc/self/fd")) == ({}, [], before)
        connect_as(os.getuid(), table.socket_path, 1)
        for _ in range(2):
            guard._handle_events([handle for handle, _ in guard.events.poll(1)])
        assert len(guard.disconnected) == 1


def test_a_process_is_not_one_that_has_its_number_later() -> None:
    me = Process(os.getpid(), start_time(os.getpid()))
    later = Process(os.getpid(), start_time(os.getpid()) - 1)
    assert me.alive()
    assert me.handle is not None
    assert not later.alive()
    assert later.handle is None
    later.send(9)  # or this test would not come to its end
    me.close()


def test_how_a_process_has_ended_is_known_until_its_parent_asks() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import os; os._exit(3)"])
    process = Process(child.pid, start_time(child.pid))
    while process.alive():
        pass
    assert (state(child.pid), end_status(child.pid)) == ("Z", 3 << 8)
    child.wait()
    assert (state(child.pid), end_status(child.pid), start_time(child.pid)) == ("", None, 0)
    process.close()
