"""Nothing that was acknowledged is lost: kills before every operation and at any instant, and losses of power."""

from __future__ import annotations

import os
import random
import shutil
import sys
from pathlib import Path

import pytest

import sorix_dist as sx
from sorix_dist.store.files import Disk
from tests.support.launching import run_command
from tests.support.train import saving
from tests.support.train.faults import Counting, PowerLoss, Volatile

KILLS = 400 if os.environ.get("SORIX_DIST_LONG") == "1" else 60
ONE_BLAS_THREAD = {"OPENBLAS_NUM_THREADS": "1"}


@pytest.mark.timeout(240)
def test_a_kill_before_each_operation(tmp_path: Path) -> None:
    ended = run_command(
        [sys.executable, "-m", "tests.support.train.saving", "each", str(tmp_path)], limit=200, env=ONE_BLAS_THREAD
    )
    assert ended.code == 0, ended.err
    assert int(ended.err.split()[0]) > 40, ended.err


@pytest.mark.timeout(60 + 4 * KILLS)
@pytest.mark.parametrize("how", [(), ("async",)], ids=["at once", "in a thread"])
def test_kills_at_any_instant(how: tuple[str, ...], tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "tests.support.train.saving", "any", str(tmp_path), str(KILLS // 2), *how]
    ended = run_command(argv, limit=30 + 2 * KILLS, env=ONE_BLAS_THREAD)
    assert ended.code == 0, ended.err
    assert int(ended.err.split()[0]) > 0, "no kill met a file that was being written"


def loss_of_power(folder: Path, at: int, seed: int, kind: type[Volatile]) -> bool:
    """Saves until the power goes before operation `at`; whether it did. The folder holds the first two steps."""
    disk = kind(at, random.Random(seed))
    checkpointer = sx.Checkpointer(folder, saving.KEEP)
    checkpointer.folder.files = disk
    acknowledged = 1
    try:
        for step in range(2, 5):
            checkpointer.save(step, part=saving.Part(step, 200), twice=2 * step)
            acknowledged = step
    except PowerLoss:
        pass
    disk.restart()
    saving.check(folder, acknowledged)
    return disk.lost


def losses_of_power(root: Path, kind: type[Volatile]) -> int:
    saving.save_on(root / "before", 0, 2)
    at = 0
    while all(
        loss_of_power(shutil.copytree(root / "before", root / f"{at}-{seed}"), at, seed, kind) for seed in range(4)
    ):
        at += 1
    return at


@pytest.mark.filterwarnings("ignore:the checkpoint .* can't be used:RuntimeWarning")
def test_losses_of_power(tmp_path: Path) -> None:
    assert losses_of_power(tmp_path, Volatile) > 20


class WithoutFlush(Volatile):
    """A program that does not flush its files."""

    def flush(self, descriptor: int) -> None:
        return None


class WithoutFolderFlush(Volatile):
    """A program that does not flush its folders."""

    def flush_folder(self, folder: Path) -> None:
        return None


@pytest.mark.filterwarnings("ignore:the checkpoint .* can't be used:RuntimeWarning")
@pytest.mark.parametrize("kind", [WithoutFlush, WithoutFolderFlush])
def test_losses_of_power_would_be_noticed(kind: type[Volatile], tmp_path: Path) -> None:
    with pytest.raises((AssertionError, ValueError)):
        losses_of_power(tmp_path, kind)


def test_the_order_of_operations(tmp_path: Path) -> None:
    """Old checkpoints go when the new one is on the disk under its name, not before."""
    checkpointer = sx.Checkpointer(tmp_path / "a" / "b", keep=1)
    counting = checkpointer.folder.files = Counting()
    for step in range(2):
        checkpointer.save(step)
    once = ["flush", "close", "replace", "flush_folder"]
    made = ["make_folder", "flush_folder"] * 2
    assert [name for name in counting.log if name not in ("create", "write")] == [*made, *once, *once, "remove"]
    assert isinstance(counting, Disk)
