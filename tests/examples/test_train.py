"""examples/train.py takes the same steps on one process and on four ranks; examples/compare.py tells."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist.train.recorder import read_records
from tests.support.launching import ROOT, Ended, needs_mpirun, run_command, run_ranks

TRAIN = str(ROOT / "examples" / "train.py")
COMPARE = str(ROOT / "examples" / "compare.py")

# On a busy machine two BLAS threads wait for each other, and these small products take 50 times as long.
ONE_BLAS_THREAD = {"OPENBLAS_NUM_THREADS": "1"}

EPOCH = re.compile(r"^epoch +(\d+)  loss (\d+\.\d{6})  test accuracy (\d+\.\d\d)%  [\d,]+ samples/s$", re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs save their weights."""
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def alone(folder: Path) -> Ended:
    """A run on one process."""
    return run_command(
        [sys.executable, TRAIN, "--save", str(folder / "1.npz"), "--record", str(folder / "1")], env=ONE_BLAS_THREAD
    )


@pytest.fixture(scope="module")
def on_four_ranks(folder: Path) -> Ended:
    """The same run on four ranks."""
    return run_ranks(4, TRAIN, "--save", str(folder / "4.npz"), "--record", str(folder / "4"), limit=100)


def numbers(ended: Ended, ranks: int) -> np.ndarray:
    """Number, loss and test accuracy of every epoch, of a run that printed these and nothing else."""
    assert ended.code == 0, ended.err
    first, *epochs = ended.out.splitlines()
    assert first == f"1438 digits to train on, 359 to test, ranks: {ranks}"
    assert all(EPOCH.match(line) for line in epochs), ended.out
    return np.array(EPOCH.findall(ended.out), dtype=float)


def test_records(folder: Path, alone: Ended, on_four_ranks: Ended) -> None:
    """Both runs record what they print."""
    for ended, ranks in ((alone, 1), (on_four_ranks, 4)):
        records = read_records(folder / str(ranks))
        recorded = [(i + 1, each["loss"], 100 * each["test_accuracy"]) for i, each in enumerate(records)]
        np.testing.assert_allclose(numbers(ended, ranks), recorded, rtol=0, atol=0.0051)
        assert [each["step"] for each in records] == [23 * epoch for epoch in range(1, 21)]


def compared(first: Path, second: Path) -> Ended:
    return run_command([sys.executable, COMPARE, str(first), str(second)])


def test_it_learns(alone: Ended) -> None:
    epoch, loss, accuracy = numbers(alone, 1).T
    np.testing.assert_array_equal(epoch, range(1, 21))
    assert loss[0] > 1
    assert loss[-1] < 0.01
    assert accuracy[-1] >= 97


@needs_mpirun
def test_four_ranks_print_the_same(alone: Ended, on_four_ranks: Ended) -> None:
    # a loss in the middle between two printed ones may be rounded to either
    np.testing.assert_allclose(numbers(on_four_ranks, 4), numbers(alone, 1), rtol=0, atol=1.5e-6)


@needs_mpirun
def test_the_launcher_of_the_package_prints_the_same(alone: Ended) -> None:
    ended = run_command([sys.executable, "-m", "sorix_dist", "run", "-n", "2", TRAIN, "--epochs", "1"])
    np.testing.assert_allclose(numbers(ended, 2), numbers(alone, 1)[:1], rtol=0, atol=1.5e-6)


@needs_mpirun
@pytest.mark.usefixtures("alone", "on_four_ranks")
def test_four_ranks_save_the_same_weights(folder: Path) -> None:
    ended = compared(folder / "4.npz", folder / "1.npz")
    assert ended.code == 0, ended.out + ended.err
    assert "17,226 weights up to 1.5" in ended.out


@pytest.mark.usefixtures("alone")
def test_one_weight_that_is_off_is_found(folder: Path, tmp_path: Path) -> None:
    with np.load(folder / "1.npz") as file:
        weights = dict(file)
    last = list(weights)[-1]
    for wrong in (weights[last].flat[0] + np.float32(2e-5), np.float32("nan")):
        weights[last].flat[0] = wrong
        np.savez(tmp_path / "off.npz", **weights)
        ended = compared(tmp_path / "off.npz", folder / "1.npz")
        assert ended.code == 1
        assert "NOT the same" in ended.out


@pytest.mark.usefixtures("alone")
def test_what_cannot_be_compared_is_said_in_one_line(folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "empty.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    (tmp_path / "cut.npz").write_bytes((folder / "1.npz").read_bytes()[:5000])
    for name in ("empty.npz", "other.npz", "cut.npz", "missing.npz"):
        ended = compared(tmp_path / name, folder / "1.npz")
        assert ended.code == 1
        assert (ended.out + ended.err).count("\n") == 1, ended.err


@needs_mpirun
def test_it_goes_on_on_another_number_of_ranks_with_the_same_bits(tmp_path: Path) -> None:
    options = ["--virtual-shards", "8", "--checkpoint", str(tmp_path / "runs"), "--epochs"]
    first = run_ranks(3, TRAIN, *options, "2")
    assert first.code == 0, first.err
    second = run_ranks(2, TRAIN, *options, "4", "--save", str(tmp_path / "stopped.npz"))
    assert second.code == 0, second.err
    assert "goes on from step 46" in second.out
    assert [int(epoch) for epoch, *_ in EPOCH.findall(second.out)] == [3, 4]
    whole = ["--virtual-shards", "8", "--epochs", "4", "--save", str(tmp_path / "whole.npz")]
    assert run_command([sys.executable, TRAIN, *whole], env=ONE_BLAS_THREAD).code == 0
    with np.load(tmp_path / "stopped.npz") as one, np.load(tmp_path / "whole.npz") as other:
        assert all(one[name].tobytes() == other[name].tobytes() for name in other)


def test_stopped_in_an_epoch_it_goes_on_in_the_middle(tmp_path: Path) -> None:
    epochs, options = "60", ("--save", str(tmp_path / "weights.npz"))
    whole = run_command([sys.executable, TRAIN, "--epochs", epochs, *options], env=ONE_BLAS_THREAD)
    with np.load(tmp_path / "weights.npz") as weights:
        expected = dict(weights)
    command = [sys.executable, TRAIN, "--epochs", epochs, *options, "--checkpoint", str(tmp_path / "run")]
    env = {**os.environ, **ONE_BLAS_THREAD}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        limit = threading.Timer(60, process.kill)
        limit.start()
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("epoch  3 "):
                process.send_signal(signal.SIGUSR1)
        limit.cancel()
    assert process.returncode == sx.EXIT_PREEMPTED, lines
    stopped = re.fullmatch(r"preempted, saved at step (\d+)\n", lines[-1])
    assert stopped is not None, lines
    assert int(stopped[1]) > 3 * 23
    rest = run_command(command, env=ONE_BLAS_THREAD)
    assert rest.code == 0, rest.err
    assert f"goes on from step {stopped[1]}\n" in rest.out
    # the loss of the epoch that was stopped counts the batches before and after
    assert printed("".join(lines)) + printed(rest.out) == printed(whole.out)
    with np.load(tmp_path / "weights.npz") as weights:
        assert all(weights[name].tobytes() == expected[name].tobytes() for name in expected)


def printed(out: str) -> list[tuple[str, str, str]]:
    found: list[tuple[str, str, str]] = EPOCH.findall(out)
    return found


def test_one_process_needs_no_mpi4py(alone: Ended, tmp_path: Path) -> None:
    (tmp_path / "mpi4py.py").write_text("raise ModuleNotFoundError(\"No module named 'mpi4py'\", name='mpi4py')\n")
    without = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    assert run_command([sys.executable, "-c", "import mpi4py"], env=without).code == 1
    ended = run_command([sys.executable, TRAIN, "--epochs", "1"], env=without)
    np.testing.assert_array_equal(numbers(ended, 1), numbers(alone, 1)[:1])


@pytest.mark.parametrize("wrong", [["--epochs", "two"], ["--unknown"]])
def test_a_wrong_option_is_named(wrong: list[str]) -> None:
    ended = run_command([sys.executable, TRAIN, *wrong], env=ONE_BLAS_THREAD)
    assert ended.code == 2
    assert wrong[0] in ended.err
