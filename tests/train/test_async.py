"""A thread writes what was there at the call; nothing that goes wrong in it is forgotten."""

from __future__ import annotations

import errno
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.comm.threads import run_threads
from sorix_dist.parallel import consistency
from tests.support.train.faults import Counting, Slow, fails
from tests.support.train.saving import Part, saved


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("async_save", [False, True])
def test_ranks_that_wait_for_a_slow_disk_learn_that_it_goes_on(
    folder: Path, async_save: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consistency, "NEWS_SECONDS", 0.05)

    def train() -> tuple[int, float]:
        comm, messages = sx.comm.current(), []
        broadcast = comm.broadcast_object
        comm.broadcast_object = lambda value: messages.append(value) or broadcast(value)
        checkpointer = sx.Checkpointer(folder, async_save=async_save)
        checkpointer.folder.files = Slow()
        checkpointer.save(1, value=np.ones(10))
        checkpointer.wait()
        saved = checkpointer.load_latest()
        return len(messages), saved["value"].sum()

    first, *others = run_threads(train, 3)
    assert others == [first] * 2
    assert first[0] > 2 + async_save  # calls that tell the result
    assert first[1] == 10


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


def test_a_thread_saves_what_was_there_of_a_model_that_gives_its_own_memory(folder: Path) -> None:
    class Net(nn.Linear):
        def state_dict(self) -> dict[str, sx.Tensor]:
            return dict(self.named_parameters())

    model = sx.DistributedDataParallel(Net(3, 2))
    before = model.module.W.data.copy()
    checkpointer = sx.Checkpointer(folder, async_save=True)
    checkpointer.folder.files = Slow()
    checkpointer.save(1, model=model)
    with model.edit():
        model.module.W.data[...] = -1  # training goes on
    checkpointer.wait()
    checkpointer.load_latest(model=model)
    assert (model.module.W.data == before).all()


@pytest.mark.parametrize("name", ["model.ema", "model", "model.W", "more", "model#2"])
def test_a_thread_saves_what_was_there_whatever_the_names(name: str, folder: Path) -> None:
    """Only what is a copy already is not copied: a name may begin like that of a part."""
    model, live = nn.Linear(3, 2), np.zeros((3, 2))
    parts = {"net" if name == "model" else "model": model, name: live}
    checkpointer = sx.Checkpointer(folder, async_save=True)
    checkpointer.folder.files = Slow()
    before = model.W.numpy().copy()
    checkpointer.save(1, **parts, nested={"model": [live], "tensor": sx.Tensor(live)})
    live += 1  # training goes on
    model.W.data[...] = -1
    checkpointer.wait()
    back = checkpointer.load_latest(**{key: part for key, part in parts.items() if part is model})
    assert back is not None
    assert (model.W.numpy() == before).all()
    assert not any(np.any(value) for value in (back[name], back["nested"]["model"][0], back["nested"]["tensor"]))


def test_a_thread_saves_what_was_there_of_an_option(folder: Path) -> None:
    model, option = nn.Linear(3, 2), sx.tensor([0.0, 0.0])
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    optimizer.param_groups[0]["mine"] = option
    checkpointer = sx.Checkpointer(folder, async_save=True)
    checkpointer.folder.files = Slow()
    checkpointer.save(1, optimizer=optimizer)
    option.data[...] = -1
    checkpointer.wait()
    checkpointer.load_latest(optimizer=optimizer)
    assert (optimizer.param_groups[0]["mine"].numpy() == 0).all()


def test_a_thread_saves_what_was_there_of_a_model_whose_state_dict_was_replaced(folder: Path) -> None:
    model = nn.Linear(3, 2)
    model.state_dict = lambda: dict(model.named_parameters())  # type: ignore[method-assign]
    before = model.W.numpy().copy()
    checkpointer = sx.Checkpointer(folder, async_save=True)
    checkpointer.folder.files = Slow()
    checkpointer.save(1, model=model)
    model.W.data[...] = -1
    checkpointer.wait()
    checkpointer.load_latest(model=model)
    assert (model.W.numpy() == before).all()


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
        "from tests.support.train.faults import Slow, Counting, fails\n"
        "from tests.support.train.saving import Part\n"
        "checkpointer = sx.Checkpointer(sys.argv[1], async_save=True)\n"
        "checkpointer.folder.files = Counting(2, fails(28)) if len(sys.argv) > 2 else Slow()\n"
        "checkpointer.save(1, part=Part(1, 1000))\n"
    )
    root = Path(__file__).parents[2]
    failed = subprocess.run([sys.executable, "-c", script, folder, "fail"], cwd=root, capture_output=True, text=True)
    assert "step-1.safetensors could not be saved: [Errno 28]" in failed.stderr
    assert failed.returncode == 1
    assert sx.Checkpointer(folder).load_latest() is None
    subprocess.run([sys.executable, "-c", script, folder], cwd=root, check=True, timeout=60)
    assert sx.Checkpointer(folder).load_latest() == {"step": 1}
