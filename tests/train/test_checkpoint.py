"""Checkpointer: what comes back, what is kept, and what has changed since."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.store import tensorfile
from sorix_dist.store.checkpoint_folder import CheckpointFolder, newest_steps
from tests.support.train.saving import Part, damage, files, saved


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


# -- what comes back


def test_values_come_back(folder: Path) -> None:
    values = {
        "epoch": 3,
        "best": 0.1,
        "name": "ünïcödé",
        "nothing": None,
        "history": [1, (2, [True, None])],
        "nested": {"a": {"b": np.arange(3)}, 5: sx.tensor([1.5])},
        "number": np.float32(0.5),
        "not": float("nan"),
    }
    checkpointer = sx.Checkpointer(folder)
    assert checkpointer.load_latest() is None
    assert checkpointer.steps() == []
    path = checkpointer.save(7, **values)
    assert isinstance(path, Path)
    assert path.parent == folder
    back = sx.Checkpointer(folder).load_latest()
    assert back is not None
    assert list(back) == ["step", *values]
    assert back["step"] == 7
    assert back["history"] == [1, (2, [True, None])]
    assert np.array_equal(back["nested"]["a"]["b"], [0, 1, 2])
    assert isinstance(back["nested"][5], sx.Tensor)
    assert back["number"] == 0.5
    assert np.isnan(back["not"])
    assert [back[name] for name in ("epoch", "best", "name", "nothing")] == [3, 0.1, "ünïcödé", None]


def test_other_tools_read_the_arrays(folder: Path) -> None:
    model = nn.Linear(3, 2)
    path = sx.Checkpointer(folder).save(1, model=model)
    theirs = load_file(path)
    assert np.array_equal(theirs["model.W"], model.W.numpy())


class Epochs:
    """A sampler as others write them."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def test_what_only_counts_epochs(folder: Path) -> None:
    sampler, other = Epochs(), Epochs()
    sampler.set_epoch(5)
    checkpointer = sx.Checkpointer(folder)
    checkpointer.save(0, sampler=sampler)
    assert checkpointer.load_latest(sampler=other) == {"step": 0}
    assert other.epoch == 5


def test_parts_may_be_left_out_or_lacking(folder: Path) -> None:
    model = nn.Linear(2, 1)
    checkpointer = sx.Checkpointer(folder)
    checkpointer.save(0, model=model, optimizer=optim.SGD(model.parameters(), lr=0.1), best=1, scheduler=None)
    assert checkpointer.load_latest(model=model, scheduler=None) == {"step": 0, "best": 1, "scheduler": None}
    with pytest.raises(ValueError, match=r"contains model, optimizer, not loader"):
        checkpointer.load_latest(model=model, loader=Part())
    with pytest.raises(ValueError, match="not best"):
        checkpointer.load_latest(best=Part())
    with pytest.raises(TypeError, match="best must have load_state_dict, got int"):
        checkpointer.load_latest(best=3)
    with pytest.raises(ValueError, match="must have shape") as caught:
        checkpointer.load_latest(model=nn.Linear(3, 1))
    assert "while the checkpoint's model was loaded; a changed run needs a folder of its own" in caught.value.__notes__


@pytest.mark.parametrize("keep", [0, -1, True, 2.0, None])
def test_keep(keep: Any, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"keep must be (an integer )?>= 1"):
        sx.Checkpointer(folder, keep)


@pytest.mark.parametrize("step", [-1, 1.0, True, None, "1"])
def test_step(step: Any, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"step must be (an integer )?>= 0"):
        sx.Checkpointer(folder).save(step)
    assert not folder.exists()


def test_values_that_can_not_be_saved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpointer = saved(folder, 1)
    monkeypatch.setattr(tensorfile, "VALUES_LIMIT", 1000)
    before = files(folder)
    for value, message in [
        ({1, 2}, r"parts\['x'\] must be .*, got set"),
        ({"f": [print]}, r"parts\['x'\]\['f'\]\[0\] must be .*, got builtin"),
        (np.array([None]), r"parts\['x'\] must have one of the dtypes .*, got object"),
        ([0] * 1000, None),
    ]:
        with pytest.raises(ValueError if message is None else TypeError, match=message or "long lists of numbers"):
            checkpointer.save(1, x=value)
    with pytest.raises(ValueError, match="the name 'sorix_dist' is taken"):
        checkpointer.save(1, sorix_dist=3)
    assert files(folder) == before


# -- what is kept


def test_the_newest_are_kept(folder: Path) -> None:
    checkpointer = saved(folder, 6)
    assert checkpointer.steps() == [3, 4, 5]
    assert saved(folder / "other", 3, keep=1).steps() == [2]


def test_a_run_that_begins_anew_in_the_folder(folder: Path) -> None:
    """The latest is what was saved last, not what has the largest step."""
    saved(folder, 5)
    checkpointer = saved(folder, 2)
    assert checkpointer.steps() == [4, 0, 1]
    assert checkpointer.load_latest() == {"step": 1}


def test_a_step_that_is_saved_again(folder: Path) -> None:
    checkpointer = saved(folder, 3)
    checkpointer.save(2, part=Part(2, 100), again=True)
    assert checkpointer.steps() == [0, 1, 2]
    assert checkpointer.load_latest() == {"step": 2, "again": True}


def test_damaged_ones_do_not_count(folder: Path) -> None:
    """keep=2, of which one has been damaged since: the two newest valid ones stay."""
    checkpointer = saved(folder, 2, keep=2)
    damage(folder / files(folder)[1])
    checkpointer.save(2, part=Part(2, 100))
    assert checkpointer.steps() == [0, 1, 2]
    checkpointer = sx.Checkpointer(folder, keep=2)  # one that has never seen these files
    checkpointer.save(3, part=Part(3, 100))
    assert checkpointer.steps() == [2, 3]


def test_other_files_stay(folder: Path) -> None:
    folder.mkdir()
    checkpoint = "000001-step-2.safetensors"
    for name in ("notes.txt", checkpoint[5:], f"{checkpoint}.bak", f"{checkpoint}.zz.tmp"):
        (folder / name).write_text("mine")
    (folder / "000000-step-0.safetensors.0badf00d.tmp").write_text("left behind")
    saved(folder, 4, keep=1)
    assert [name for name in files(folder) if "bad" in name] == []
    assert len(files(folder)) == 5


def test_a_folder_reads_each_file_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(folder, 3)
    read: list[Path] = []
    monkeypatch.setattr(tensorfile, "verify", read.append)
    checkpointer = saved(folder, 2)
    assert [path.suffix for path in read].count(".tmp") == 2  # those that it has written itself
    assert len(read) == 4
    assert checkpointer.steps() == [2, 0, 1]
    assert [entry.number for entry in CheckpointFolder(folder, 3).entries()] == [2, 3, 4]


# -- what has changed since


def test_other_surroundings_are_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpointer = saved(folder, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checkpointer.load_latest() == {"step": 0}
    monkeypatch.setattr("sorix_dist.train.run_state.cpu", lambda: "another CPU")
    monkeypatch.setattr("sorix_dist.comm.blas.libraries", lambda: [("a BLAS", 7)])
    with pytest.warns(RuntimeWarning, match="last bits") as told:
        assert checkpointer.load_latest() == {"step": 0}
    assert told[0].filename == __file__  # where it was called
    message = str(told[0].message)
    assert "another CPU now" in message
    assert "a BLAS now" in message
    assert "7 now" in message
    assert "NumPy" not in message


# -- which step was saved last


def test_the_newest_step_of_each_folder(folder: Path) -> None:
    assert newest_steps(folder) == {}
    saved(folder, 3)
    saved(folder / "below" / "deep", 2)
    assert newest_steps(folder) == {folder: 2, folder / "below" / "deep": 1}
    damage(folder / files(folder)[2])
    assert newest_steps(folder) == {folder: 1, folder / "below" / "deep": 1}


def test_what_is_no_newer_step(folder: Path) -> None:
    """Times, unfinished and empty files, links in a circle, pipes and folders; none of them is waited for."""
    saved(folder, 2)
    before = newest_steps(folder)
    later = "000009-step-9.safetensors"
    for name in ("log.txt", f"{later}.0badf00d.tmp", later):
        (folder / name).touch()
        os.utime(folder / name, (2e9, 2e9))
    (folder / "000010-step-10.safetensors").symlink_to(folder / "000010-step-10.safetensors")
    (folder / "loop").symlink_to("loop")
    (folder / "above").symlink_to("..")
    os.mkfifo(folder / "000011-step-11.safetensors")
    (folder / "000012-step-12.safetensors").mkdir()
    assert newest_steps(folder) == before == {folder: 1}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert sx.Checkpointer(folder).load_latest() == {"step": 1}
    assert [re.findall(r"step-(\d+)", str(warning.message))[0] for warning in told] == ["12", "11", "10", "9"]
    assert "it is not a regular file, but a pipe or device" in str(told[1].message)
    sx.Checkpointer(folder).save(13)
    assert newest_steps(folder) == {folder: 13}
