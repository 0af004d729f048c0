"""Damaged files are named and the ones before used; disks that fail leave what was there."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.store import tensorfile
from sorix_dist.store.packing import pack
from tests.support.train.faults import Counting, fails
from tests.support.train.saving import Part, damage, files, saved


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


# -- damage


def test_a_damaged_one_is_named_and_the_one_before_used(folder: Path) -> None:
    checkpointer = saved(folder, 3)
    names = files(folder)
    damage(folder / names[2])
    (folder / names[1]).write_bytes((folder / names[1]).read_bytes()[:-1])
    part = Part()
    with pytest.warns(RuntimeWarning) as told:
        assert checkpointer.load_latest(part=part) == {"step": 0}
    assert (part.array == 0).all()
    messages = [str(warning.message) for warning in told]
    assert len(messages) == 2
    assert f"{names[2]} can't be used, the one before is: the digest of the array " in messages[0]
    assert names[1] in messages[1]
    assert files(folder) == names


def test_only_damaged_ones(folder: Path) -> None:
    checkpointer = saved(folder, 2)
    for name in files(folder):
        damage(folder / name)
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(ValueError, match=r"none of the checkpoints in .* 000001.* 000000.*"),
    ):
        checkpointer.load_latest()


def test_files_that_are_no_checkpoints(folder: Path) -> None:
    checkpointer = saved(folder, 1)
    forged: list[Any] = [
        3, {}, {"sorix_dist": 3}, {"sorix_dist": {"step": 1}},
        {"sorix_dist": {"step": 1, "parts": ["x"], "counts": {}, "surroundings": {}}},
        {"sorix_dist": {"step": 1, "parts": [[]], "counts": {}, "surroundings": {}}},
        {"sorix_dist": {"step": 1, "parts": [], "counts": {}, "surroundings": {}}},
        {"sorix_dist": {"step": 1, "parts": [], "counts": 3, "surroundings": {}}},
        {"sorix_dist": {"step": 1, "parts": ["sorix_dist"], "counts": COUNTS, "surroundings": {}}},
        {"sorix_dist": {"step": 1, "parts": ["x", "x"], "counts": COUNTS, "surroundings": {}}, "x": 1},
    ]  # fmt: skip
    for i, value in enumerate(forged, 1):
        path = folder / f"{i:06}-step-1.safetensors"
        tensorfile.write(path, *pack(value))
        with pytest.warns(RuntimeWarning, match=f"{path.name} can't be used"):
            assert checkpointer.load_latest() == {"step": 0}
        path.unlink()


def test_a_parameter_that_can_not_be_one(folder: Path) -> None:
    checkpointer = saved(folder, 2)
    path = folder / files(folder)[1]
    _, text = tensorfile.read(path)
    path.unlink()
    tensorfile.write(
        path,
        {"part.array": np.arange(3)},
        text.replace('{"array":', '{"parameter":').replace('"part.array"}', '["part.array",true]}'),
    )
    with pytest.warns(
        RuntimeWarning, match="can't be used, the one before is: its structure can.t be understood: RuntimeError"
    ):
        assert checkpointer.load_latest() == {"step": 0}


COUNTS = {"random": {}, "calls": 0, "draws": {}}


def test_a_thousand_damages(folder: Path) -> None:
    """Bits are flipped and files cut at random; each time the one before is loaded instead."""
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    checkpointer = sx.Checkpointer(folder)
    checkpointer.save(1, model=model, optimizer=optimizer)
    path = checkpointer.save(2, model=model, optimizer=optimizer, note="newest")
    whole = path.read_bytes()
    numbers = random.Random(0)
    for i in range(1000):
        damaged = bytearray(whole)
        if i % 4:
            damaged[numbers.randrange(len(whole))] ^= 1 << numbers.randrange(8)
        else:
            del damaged[numbers.randrange(len(whole)) :]
        path.write_bytes(damaged)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            assert checkpointer.load_latest(model=model) == {"step": 1}
        assert path.name in str(told[0].message)
    path.write_bytes(whole)
    assert checkpointer.load_latest(model=model) == {"step": 2, "note": "newest"}


# -- disks that fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_an_error_of_each_operation(number: int, folder: Path) -> None:
    """Earlier checkpoints are as they were, nothing else is left, and the next save works."""
    checkpointer = saved(folder, 2)
    before = {name: (folder / name).read_bytes() for name in files(folder)}
    counting = checkpointer.folder.files = Counting()
    checkpointer.save(2, part=Part(2, 100))
    os.unlink(folder / files(folder)[-1])
    for at in range(len(counting.log)):
        checkpointer.folder.files = Counting(at, fails(number))
        with pytest.raises(OSError, match="can't be saved, earlier ones are as they were") as caught:
            checkpointer.save(2, part=Part(2, 100))
        assert caught.value.errno == number
        assert "step-2" in str(caught.value.filename)
        after = {name: (folder / name).read_bytes() for name in files(folder)}
        assert before.items() <= after.items()
        if counting.log[at] != "flush_folder":  # then it is there, but may be gone when the power is
            assert before == after
    checkpointer.save(2, part=Part(2, 100))
    assert checkpointer.load_latest() == {"step": 2}


class Lossy(Counting):
    """A disk that reports a success and writes zeros."""

    def write(self, descriptor: int, part: memoryview, at: int) -> int:
        return super().write(descriptor, memoryview(bytes(part.nbytes)), at)


def test_a_job_that_saves_to_the_folder_of_another_one(folder: Path) -> None:
    """Each removes the unfinished files that it finds there."""
    checkpointer = saved(folder, 1)

    def other_job() -> None:
        for path in folder.glob("*.tmp"):
            path.unlink()

    checkpointer.folder.files = Counting(3, other_job)
    with pytest.raises(FileNotFoundError, match=r"earlier ones are as they were.*does another job save to this folder"):
        checkpointer.save(1)
    assert checkpointer.load_latest() == {"step": 0}


def test_another_job_that_has_saved_to_the_folder(folder: Path) -> None:
    checkpointer = saved(folder, 2)
    code = "import sys; import sorix_dist as sx; sx.Checkpointer(sys.argv[1]).save(7)"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, timeout=60)
    before = files(folder)
    with pytest.raises(FileExistsError, match=r"as they were: another job saves to this folder.*step-7"):
        checkpointer.save(2)
    assert files(folder) == before


def test_a_checkpoint_of_another_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpointer = saved(folder, 1)
    monkeypatch.setattr(tensorfile, "_read_back", lambda path: None)
    with monkeypatch.context() as newer:
        newer.setattr(tensorfile, "FORMAT", "sorix_dist 3")
        checkpointer.save(1)
    with pytest.raises(ValueError, match=r"step-1\S+ needs another version of sorix_dist.*format is 'sorix_dist 3'"):
        checkpointer.load_latest()


def test_a_disk_that_does_not_keep_what_it_is_given(folder: Path) -> None:
    """The checkpoint is read back before older ones go."""
    checkpointer = saved(folder, 2, keep=1)
    before = files(folder)
    checkpointer.folder.files = Lossy()
    with pytest.raises(OSError, match="earlier ones are as they were: what was read back is not what was written"):
        checkpointer.save(2, part=Part(2, 100))
    assert files(folder) == before
    assert checkpointer.load_latest() == {"step": 1}


def test_arrays_that_change_while_they_are_saved(folder: Path) -> None:
    part = Part(0, 1000)
    checkpointer = sx.Checkpointer(folder, keep=1)
    for at in range(8):  # before each operation of the disk in turn
        checkpointer.folder.files = Counting(at, lambda: np.copyto(part.array, part.array + 1))
        checkpointer.save(at, part=part)
        assert checkpointer.load_latest() == {"step": at}


def test_old_ones_that_can_not_be_removed(folder: Path) -> None:
    checkpointer = saved(folder, 3, keep=1)
    counting = checkpointer.folder.files = Counting()
    checkpointer.save(3, part=Part(3, 100))
    assert counting.log[-1] == "remove"
    checkpointer.folder.files = Counting(len(counting.log) - 1, fails(errno.EACCES))
    with pytest.warns(RuntimeWarning, match="step-3.safetensors, which is not needed any more, can't be removed"):
        checkpointer.save(4, part=Part(4, 100))
    assert checkpointer.load_latest() == {"step": 4}


def test_a_folder_that_can_not_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        checkpointer = sx.Checkpointer(path)
        with pytest.raises(NotADirectoryError):
            checkpointer.save(0)
        with pytest.raises(NotADirectoryError):
            checkpointer.load_latest()
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """A file system of 1 MB where we may mount one, else a limit of 500 kB for each file."""
    folder = tmp_path / "small"
    folder.mkdir()
    script = (
        "import resource, sys, numpy as np, sorix_dist as sx\n"
        "checkpointer = sx.Checkpointer(sys.argv[1])\n"
        "checkpointer.save(0, x=np.zeros(10_000))\n"
        "if sys.argv[2] == 'limit':\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))\n"
        "try:\n"
        "    checkpointer.save(1, x=np.zeros(1_000_000))\n"
        "except OSError as error:\n"
        "    print(error.errno, error)\n"
        "print(checkpointer.steps(), len(checkpointer.load_latest()['x']))\n"
        "checkpointer.save(2, x=np.zeros(10_000))\n"
        "print(checkpointer.steps())\n"
    )
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    mounted = mount.returncode == 0
    try:
        argv = [sys.executable, "-c", script, str(folder), "mount" if mounted else "limit"]
        ended = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)
    expected = errno.ENOSPC if mounted else errno.EFBIG
    lines = ended.stdout.splitlines()
    assert ended.returncode == 0, ended.stderr
    assert lines[0].startswith(f"{expected} ")
    assert "earlier ones are as they were: " + os.strerror(expected) in lines[0]
    assert lines[1:] == ["[0] 10000", "[0, 2]"]
