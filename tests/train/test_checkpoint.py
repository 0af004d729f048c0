"""Checkpointer: what comes back, what is kept, and how everything that goes wrong is said, on every rank."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.comm import current, run_threads
from sorix_dist.store import tensorfile
from sorix_dist.store.structure import pack
from sorix_dist.train.folder import Folder
from tests.train.faults import Counting
from tests.train.saving import Part


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def saved(folder: Path, steps: int, **options: Any) -> sx.Checkpointer:
    checkpointer = sx.Checkpointer(folder, **options)
    for step in range(steps):
        checkpointer.save(step, part=Part(step, 100))
    return checkpointer


def damage(path: Path, at: int = -5) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 16
    path.write_bytes(content)


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
    with pytest.raises(ValueError, match=r"holds model, optimizer, not loader"):
        checkpointer.load_latest(model=model, loader=Part())
    with pytest.raises(ValueError, match="not best"):
        checkpointer.load_latest(best=Part())
    with pytest.raises(TypeError, match="best must have load_state_dict, got int"):
        checkpointer.load_latest(best=3)
    with pytest.raises(ValueError, match="must have shape") as caught:
        checkpointer.load_latest(model=nn.Linear(3, 1))
    assert "while the checkpoint's model was loaded" in caught.value.__notes__


@pytest.mark.parametrize("keep", [0, -1, True, 2.0, None])
def test_keep(keep: Any, folder: Path) -> None:
    with pytest.raises(ValueError, match="keep must be an integer >= 1"):
        sx.Checkpointer(folder, keep)


@pytest.mark.parametrize("step", [-1, 1.0, True, None, "1"])
def test_step(step: Any, folder: Path) -> None:
    with pytest.raises(ValueError, match="step must be an integer >= 0"):
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
    ]  # fmt: skip
    for i, value in enumerate(forged, 1):
        path = folder / f"{i:06}-step-1.safetensors"
        path.write_bytes(b"".join(tensorfile.parts(*pack(value))))
        with pytest.warns(RuntimeWarning, match=f"{path.name} can't be used"):
            assert checkpointer.load_latest() == {"step": 0}
        path.unlink()


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


def fails(number: int) -> Callable[[], None]:
    def fail() -> None:
        raise OSError(number, os.strerror(number))

    return fail


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


# -- in a thread


class Slow(Counting):
    """A disk that takes its time."""

    def flush(self, descriptor: int) -> None:
        time.sleep(0.3)
        super().flush(descriptor)


def test_a_thread_saves_what_was_there(folder: Path) -> None:
    part = Part(1, 1000)
    checkpointer = sx.Checkpointer(folder, async_save=True)
    checkpointer.folder.files = Slow()
    path = checkpointer.save(1, part=part, value=part.array)
    part.array[:] = -1  # training goes on
    assert not path.exists()
    checkpointer.wait()
    assert path.exists()
    back = checkpointer.load_latest(part=part)
    assert back is not None
    assert (part.array == 1).all()
    assert (back["value"] == 1).all()
    checkpointer.wait()


@pytest.mark.parametrize("ask", ["wait", "save", "load"])
def test_errors_of_the_thread(ask: str, folder: Path) -> None:
    saved(folder, 1)
    checkpointer = sx.Checkpointer(folder, async_save=True)
    checkpointer.folder.files = Counting(1, fails(errno.ENOSPC))
    calls = {"wait": checkpointer.wait, "save": lambda: checkpointer.save(2), "load": checkpointer.load_latest}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpointer.save(1, part=Part(1, 100))
        with pytest.raises(OSError, match="No space left"):
            calls[ask]()
    checkpointer.wait()
    assert checkpointer.load_latest() == {"step": 0}
    checkpointer.save(1)
    checkpointer.wait()
    assert checkpointer.load_latest() == {"step": 1}


def test_the_end_of_the_program_waits(folder: Path) -> None:
    script = (
        "import sys, sorix_dist as sx\n"
        "from tests.train.test_checkpoint import Slow, Part, Counting, fails\n"
        "checkpointer = sx.Checkpointer(sys.argv[1], async_save=True)\n"
        "checkpointer.folder.files = Counting(2, fails(28)) if len(sys.argv) > 2 else Slow()\n"
        "checkpointer.save(1, part=Part(1, 1000))\n"
    )
    root = Path(__file__).parents[2]
    failed = subprocess.run([sys.executable, "-c", script, folder, "fail"], cwd=root, capture_output=True, text=True)
    assert "step-1.safetensors could not be saved: [Errno 28]" in failed.stderr
    assert sx.Checkpointer(folder).load_latest() is None
    subprocess.run([sys.executable, "-c", script, folder], cwd=root, check=True, timeout=60)
    assert sx.Checkpointer(folder).load_latest() == {"step": 1}


# -- what has changed since


def test_other_surroundings_are_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpointer = saved(folder, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checkpointer.load_latest() == {"step": 0}
    monkeypatch.setattr("sorix_dist.utils.machine.cpu", lambda: "another CPU")
    monkeypatch.setattr("sorix_dist.utils.machine.blas", lambda: [("a BLAS", 7)])
    with pytest.warns(RuntimeWarning, match="last bits") as told:
        assert checkpointer.load_latest() == {"step": 0}
    message = str(told[0].message)
    assert "another CPU now" in message
    assert "a BLAS now" in message
    assert "7 now" in message
    assert "NumPy" not in message


# -- ranks


def on_ranks(folder: Path) -> None:
    rank, size = current().rank, current().size
    model = sx.DistributedDataParallel(nn.Linear(3, 2))
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    checkpointer = sx.Checkpointer(folder, keep=2)
    assert checkpointer.load_latest(model=model) is None
    paths = {str(checkpointer.save(step, model=model, optimizer=optimizer, best=step / 2)) for step in range(3)}
    assert sx.all_gather(sorted(paths)) == [sorted(paths)] * size
    weights = model.module.W.numpy().copy()
    model.module.W.data[...] = rank
    assert checkpointer.load_latest(model=model, optimizer=optimizer) == {"step": 2, "best": 1.0}
    assert np.array_equal(model.module.W.numpy(), weights)
    assert checkpointer.steps() == [1, 2]

    # Errors that only rank 0 meets are everybody's.
    if rank == 0:
        checkpointer.folder.files = Counting(1, fails(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left") as caught:
        checkpointer.save(3, model=model)
    assert caught.value.errno == errno.ENOSPC
    assert rank == 0 or f"raised on rank 0 of {size}" in caught.value.__notes__
    with pytest.raises(TypeError, match="got set"):
        checkpointer.save(3, value={1} if rank == 0 else 3)
    assert checkpointer.steps() == [1, 2]

    # Nor do ranks part when only one of them has the error.
    if size > 1:
        with pytest.raises(ValueError, match=r"rank 0 has step 0, rank 1 has step 1"):
            checkpointer.save(rank)
        with pytest.raises(ValueError, match=r"rank 0 has 'a0', rank 1 has 'a1'"):
            checkpointer.save(3, **{f"a{rank}": 1})
        with pytest.raises(ValueError, match="does not fit rank 1"):
            checkpointer.load_latest(model=Picky(rank))

    sx.barrier()
    if rank == 0:
        for path in sorted(folder.iterdir())[-1:]:
            damage(path)
    sx.barrier()
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        assert checkpointer.load_latest(model=model) == {"step": 1, "best": 0.5}
        sx.barrier()
    if rank == 0:
        for path in folder.iterdir():
            damage(path, -9)
    sx.barrier()
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        with pytest.raises(ValueError, match="none of the checkpoints in"):
            checkpointer.load_latest(model=model)
        sx.barrier()


class Picky(Part):
    """A part that rank 1 can't load."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.rank == 1:
            raise ValueError("does not fit rank 1")


def threads_on_ranks(folder: Path) -> None:
    rank = current().rank
    checkpointer = sx.Checkpointer(folder, async_save=True)
    checkpointer.save(1, part=Part(1, 100))
    checkpointer.wait()
    if rank == 0:
        checkpointer.folder.files = Counting(1, fails(errno.ENOSPC))
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        checkpointer.save(2, part=Part(2, 100))
        with pytest.raises(OSError, match="No space left"):
            checkpointer.save(3, part=Part(3, 100))
        sx.barrier()
    checkpointer.wait()
    assert checkpointer.load_latest() == {"step": 1}


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("work", [on_ranks, threads_on_ranks])
def test_on_ranks(work: Callable[[Path], None], size: int, folder: Path) -> None:
    run_threads(work, size, args=(folder,), timeout=60)


def own_error() -> Exception:
    class Own(Exception):
        """One that can't be pickled."""

    return Own("of a user's own")


def test_errors_that_can_not_be_sent(folder: Path) -> None:
    def work() -> None:
        class Bad(Part):
            def state_dict(self) -> dict[str, Any]:
                if current().rank == 1:
                    raise own_error()
                return super().state_dict()

        checkpointer = sx.Checkpointer(folder)
        with pytest.raises(Exception, match="of a user's own"):
            checkpointer.save(1, part=Bad())

    run_threads(work, 2, timeout=60)


def test_a_folder_reads_each_file_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(folder, 3)
    read: list[Path] = []
    monkeypatch.setattr(tensorfile, "verify", read.append)
    checkpointer = saved(folder, 2)
    assert len(read) == 2
    assert checkpointer.steps() == [2, 0, 1]
    assert [entry.number for entry in Folder(folder, 3).entries()] == [2, 3, 4]
