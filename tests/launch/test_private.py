"""The folder between a caller and its ranks: nobody else can put anything into it, or another one in its place."""

from __future__ import annotations

import os
import pickle
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

import sorix_dist as sx
from sorix_dist.launch import LaunchError
from sorix_dist.launch.private import PrivateFolder
from tests.support.jobs import ROOT
from tests.support.launching import run_command

OTHER = 12345
"""A user who is not this one."""

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where private folders come to be."""
    place = tmp_path / "shared" / "deep"
    place.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return place


class Marks:
    """A pickle that runs something."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def exchanged(path: Path, marked: Path, owner: int, mode: int = 0o700) -> None:
    """Another user renames a folder, and puts one of its own with a pickle there."""
    path.rename(path.with_name("taken"))
    path.mkdir(mode=0o700)
    for name in ("call", "result-0", "result-1", "failure-0"):
        (path / name).write_bytes(pickle.dumps(Marks(marked)))
        os.chown(path / name, owner, -1)
    path.chmod(mode)
    os.chown(path, owner, -1)


def test_what_is_written_is_read(place: Path) -> None:
    folder = PrivateFolder.make()
    assert folder.path.parent == place
    folder.write("call", pickle.dumps([1, 2]))
    assert PrivateFolder(folder.path).read("call") == [1, 2]
    with pytest.raises(FileExistsError):
        os.close(folder.open("call", os.O_CREAT | os.O_EXCL))
    pipe = folder.pipe("output-0")
    assert sorted(folder.names()) == ["call", "output-0"]
    assert {stat.S_IMODE(each.stat().st_mode) for each in folder.path.iterdir()} == {0o600}
    os.close(pipe)
    before = len(os.listdir("/proc/self/fd"))
    folder.remove()
    assert len(os.listdir("/proc/self/fd")) == before - 1
    assert list(place.iterdir()) == []


def test_a_forked_child_of_the_caller_keeps_no_rank(place: Path) -> None:
    folder = PrivateFolder.make()
    lock = folder.lock()
    child = subprocess.Popen(["sleep", "60"], pass_fds=[lock])  # has the descriptor, as a forked one has
    code = (
        "import sys; from pathlib import Path; from sorix_dist.launch.private import PrivateFolder\n"
        "PrivateFolder(Path(sys.argv[1])).wait_for_end_of_caller()"
    )
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            subprocess.run([sys.executable, "-c", code, str(folder.path)], timeout=2)
        os.close(lock)
        subprocess.run([sys.executable, "-c", code, str(folder.path)], timeout=20, check=True)
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("above", [False, True])
@pytest.mark.parametrize("mode", [0o777, 0o757, 0o733])
def test_places_where_others_can_rename_are_refused(mode: int, above: bool, place: Path) -> None:
    shared = place.parent if above else place
    shared.chmod(mode)
    for call in (PrivateFolder.make, lambda: sx.run(os.getpid)):
        with pytest.raises(LaunchError, match=rf"other users can exchange what lies in {shared} .*{mode:04o}.* TMPDIR"):
            call()
    assert list(place.iterdir()) == []
    for safe in (mode | stat.S_ISVTX, 0o755, 0o700):
        shared.chmod(safe)
        PrivateFolder.make().remove()


@needs_root
def test_a_group_is_others_too(place: Path) -> None:
    place.chmod(0o770)
    PrivateFolder.make().remove()  # of this user's own group, as with umask 002
    os.chown(place, -1, OTHER)
    with pytest.raises(LaunchError, match="other users can exchange"):
        PrivateFolder.make()


@needs_root
@pytest.mark.parametrize(("owner", "mode"), [(OTHER, 0o700), (OTHER, 0o777), (0, 0o777), (0, 0o750)])
def test_a_folder_that_was_exchanged_is_not_read(owner: int, mode: int, place: Path, tmp_path: Path) -> None:
    folder = PrivateFolder.make()
    folder.write("call", pickle.dumps(3))
    exchanged(folder.path, tmp_path / "run", owner, mode)
    with pytest.raises(PermissionError, match="nothing in it is read"):
        PrivateFolder(folder.path)
    assert folder.names() == ["call"]  # whoever has it open still has the right one
    assert folder.read("call") == 3
    code = "import sys; from sorix_dist.launch.private import main; main(sys.argv[1])"
    ended = run_command([sys.executable, "-c", code, str(folder.path)])
    assert ended.code != 0
    assert "nothing in it is read" in ended.err
    assert not (tmp_path / "run").exists()
    folder.remove()
    assert sorted(path.name for path in folder.path.iterdir()) == ["call", "failure-0", "result-0", "result-1"]


def test_links_are_not_followed(place: Path, tmp_path: Path) -> None:
    folder = PrivateFolder.make()
    (tmp_path / "theirs").write_bytes(pickle.dumps(Marks(tmp_path / "run")))
    (folder.path / "call").symlink_to(tmp_path / "theirs")
    with pytest.raises(OSError, match="symbolic"):
        folder.read("call")
    link = tmp_path / "link"
    link.symlink_to(folder.path)
    with pytest.raises(OSError, match=r"symbolic|Not a directory"):
        PrivateFolder(link)
    folder.remove()
    assert (tmp_path / "theirs").exists()


@needs_root
def test_results_of_an_exchanged_folder_are_not_read(place: Path, tmp_path: Path) -> None:
    """While the rank runs, somebody exchanges the folder: the caller still reads what its rank has written."""

    def exchange(path: Path, marked: Path) -> int:
        (folder,) = path.glob("sorix_dist-*")
        exchanged(folder, marked, OTHER)
        return 7

    assert sx.run(exchange, (place, tmp_path / "run"), num_proc=1) == [7]
    assert not (tmp_path / "run").exists()
