"""The pages that the ranks of a host share: what is written is what is status, whenever one looks."""

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

from sorix_dist.watchdog import page_folder
from sorix_dist.watchdog import status_page as layout
from sorix_dist.watchdog.guard import Guard
from sorix_dist.watchdog.process import Process, end_status, start_time, state
from sorix_dist.watchdog.status_page import PAGE, State, StatusPages, pack_text
from sorix_dist.watchdog.watch import Channel, RankPage

OTHER = 12345
"""A user who is not this one."""

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")


@pytest.fixture
def pages(tmp_path: Path) -> StatusPages:
    return StatusPages.join(tmp_path / "pages", 4)


def gone_process() -> tuple[int, int]:
    """Number and start time of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = start_time(child.pid)
    child.communicate(b"\n")
    return child.pid, start


def test_a_row_is_seen_by_whoever_opens_the_table(pages: StatusPages) -> None:
    page = RankPage(pages, 2)
    channel = Channel(page, 77)
    page.say("all_reduce of float32 (3,)", "train.py:12")
    page.words[page.at + layout.STEP] = 5
    channel.enter(111)
    channel.leave()
    channel.enter(222)
    other = StatusPages.existing(pages.path)
    assert other.ranks == 4
    assert other.read(0) is None
    status = other.read(2)
    assert status is not None
    assert (status.rank, status.pid, status.state) == (2, os.getpid(), State.IMPORTED)
    assert pages.owner(2) == (os.getpid(), start_time(os.getpid()))
    assert (status.key, status.count, status.signature, status.counts) == (77, 2, 222, {77: 2})
    assert (status.step, status.waits, status.stack) == (5, True, -1)
    assert status.text == ("all_reduce of float32 (3,)", "train.py:12")
    channel.leave()
    assert not other.read(2).waits  # type: ignore[union-attr]


def test_rows_fit_into_their_pages(pages: StatusPages) -> None:
    own_pages = [RankPage(pages, rank) for rank in range(4)]
    channels = [[Channel(page, 1 + number) for number in range(layout.CHANNELS)] for page in own_pages]
    for page, own in zip(own_pages, channels):
        page.say("w" * PAGE, "x" * PAGE)
        for channel in own:
            for _ in range(layout.DEPTH):
                channel.enter(page.rank + 1, page.rank + 1)
    for rank in range(4):
        status = pages.read(rank)
        assert status is not None
        assert status.pid == os.getpid()
        assert status.signature == rank + 1
        assert status.counts == dict.fromkeys(range(1, 1 + layout.CHANNELS), layout.DEPTH)
        assert set(status.text[0]) == {"w"}
        assert set(status.text[1]) == {"x"}
    assert pages.timeout == 0
    assert not pages.reported


def test_too_many_communicators_are_counted_all_the_same_and_pages_are_given_back(pages: StatusPages) -> None:
    page = RankPage(pages, 0)
    channels = [Channel(page, 1 + number) for number in range(layout.CHANNELS + 2)]
    assert [channel.at >= 0 for channel in channels] == [True] * layout.CHANNELS + [False] * 2
    assert [channels[-1].enter(1), channels[-1].enter(1)] == [1, 2]
    assert pages.read(0).waits  # type: ignore[union-attr]
    assert pages.read(0).key == 0  # type: ignore[union-attr]
    del channels[:3]
    assert len(pages.read(0).counts) == layout.CHANNELS - 3  # type: ignore[union-attr]
    new = Channel(page, 99)
    assert new.at >= 0
    assert 99 in pages.read(0).counts  # type: ignore[union-attr]


def test_a_text_is_never_seen_half_written(pages: StatusPages) -> None:
    page = RankPage(pages, 1)
    pairs = [(letter * (20 + 13 * place), f"{letter}.py") for place, letter in enumerate("abcdefgh")]
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            for pair in pairs:
                page.say(*pair)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        status = {pages.read(1).text for _ in range(5000)}  # type: ignore[union-attr]
    finally:
        done.set()
        writer.join()
    assert status <= {*pairs, ("", "")}
    assert len(status & set(pairs)) > 1


def test_a_damaged_text_is_no_text(pages: StatusPages) -> None:
    RankPage(pages, 1).say("all_reduce", "train.py:1")
    at = pages.memory.find(b"all_reduce")
    pages.memory[at : at + 1] = b"X"
    assert pages.read(1).text == ("", "")  # type: ignore[union-attr]


def test_long_texts_keep_the_line_number() -> None:
    assert pack_text("all_reduce", "/a" * PAGE + "/train.py:12").endswith(b"/train.py:12")


def test_another_process_takes_a_row_over_whole(pages: StatusPages) -> None:
    first = RankPage(pages, 0)
    Channel(first, 5).enter(1)
    first.say("all_reduce", "")
    first.words[first.at + layout.STEP] = 9
    RankPage(pages, 0)
    status = pages.read(0)
    assert status is not None
    assert (status.entered, status.counts, status.step, status.text) == (0, {}, -1, ("", ""))


def test_a_child_process_says_nothing_for_its_parent(pages: StatusPages) -> None:
    page = RankPage(pages, 0)
    page.set(State.RUNNING)
    child = os.fork()
    if child == 0:
        page.set(State.ENDED)
        os._exit(0)
    os.waitpid(child, 0)
    assert pages.read(0).state == State.RUNNING  # type: ignore[union-attr]


def test_what_is_another_users_or_a_link_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="link"):
        StatusPages.join(tmp_path / "link", 2)
    assert not (tmp_path / "elsewhere").exists()


def test_a_removed_table_is_made_anew(tmp_path: Path) -> None:
    first = StatusPages.join(tmp_path / "pages", 2)
    first.last_words.touch()
    first.remove()
    assert list(tmp_path.iterdir()) == []
    second = StatusPages.join(tmp_path / "pages", 2)
    RankPage(second, 0)
    assert first.read(0) is None


def test_stale_tables_are_removed_and_living_ones_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_folder, "directory", lambda: tmp_path)
    pid, start = gone_process()
    living = page_folder.path_for(os.getpid())
    reused = tmp_path / f"sorix_dist-{os.getuid()}-{os.getpid()}-{start_time(os.getpid()) - 1}"
    stale = tmp_path / f"sorix_dist-{os.getuid()}-{pid}-{start}"
    foreign = tmp_path / f"sorix_dist-{os.getuid()}-notes"
    container = stale.with_name(stale.name + "-12345")  # where these numbers are those of other processes
    for path in (living, reused, stale, stale.with_name(stale.name + ".words"), foreign, container):
        path.touch()
    page_folder.remove_stale()
    assert sorted(tmp_path.iterdir()) == sorted([living, foreign, container])
    assert page_folder.launcher_of(living) == (os.getpid(), start_time(os.getpid()))


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
    monkeypatch.setattr(page_folder, "Path", lambda path: tmp_path if path == "/dev/shm" else Path(path))
    first = page_folder.directory()
    assert first.parent == tmp_path
    assert first.stat().st_mode & 0o777 == 0o700
    with monkeypatch.context() as patched:
        patched.setattr(page_folder.tempfile, "gettempdir", lambda: 1 / 0)  # it needs no temporary folder
        assert page_folder.directory() == first  # as for the next rank
    first.rmdir()
    squatted(first, how)
    second = page_folder.directory()
    assert second not in (first, tmp_path)
    assert second.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(page_folder, "FOLDERS", 1)
    monkeypatch.setattr(page_folder.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(PermissionError, match="no private folder of this user"):
        page_folder.directory()


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
        pages = StatusPages.join(Path(folder, "pages"), 2)
        line.bind(pages.socket_path)
        line.listen(8)
        for path in (folder, pages.socket_path):
            os.chmod(path, 0o777)  # else nobody would come so far
        guard = Guard(pages, line)
        before = os.listdir("/proc/self/fd")
        connect_as(OTHER, pages.socket_path, 5)
        for _ in range(5):
            guard._handle_events([handle for handle, _ in guard.events.poll(1)])
        assert (guard.connections, guard.disconnected, os.listdir("/proc/self/fd")) == ({}, {}, before)
        connect_as(os.getuid(), pages.socket_path, 1)
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
