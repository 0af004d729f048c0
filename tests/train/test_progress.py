"""What a run says: once, from rank 0, live on a terminal and in lines elsewhere."""

from __future__ import annotations

import logging
import os
import pty
import re
import subprocess
import sys
import termios
import time
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist.comm import run_threads
from sorix_dist.launch import output
from sorix_dist.train import progress
from sorix_dist.utils.data import DataLoader, Dataset, IterableDataset
from tests.support.launching import ROOT, needs_mpirun, run_ranks

SCRIPT = """
import numpy as np, sorix_dist as sx
from sorix_dist.utils.data import DataLoader, Dataset
loader = DataLoader(Dataset(np.zeros((10, 3), np.float32)), batch_size=4)
bar = sx.progress(loader, epochs=2)
for epoch in range(2):
    for step, xb in enumerate(bar):
        bar.log(loss=[1.0, 2.0, 6.0][step])
        if step == 1:
            sx.print(f"in the middle of {epoch}")
    sx.get_logger().info("after epoch %d", epoch)
"""
LINES = [
    r"in the middle of 0",
    r"epoch 1/2  step 3/3  loss 2.4  [\d,]+ samples/s  0:0\d left",  # (4 * 1 + 4 * 2 + 2 * 6) / 10
    r"in the middle of 1",
    r"epoch 2/2  step 3/3  loss 2.4  [\d,]+ samples/s  took 0:0\d",
]


def loader(rows: int = 10) -> DataLoader:
    return DataLoader(Dataset(np.zeros((rows, 3), np.float32)), batch_size=4)


def test_lines_in_a_file() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    for line, wanted in zip(done.stdout.splitlines(), LINES, strict=True):
        assert re.fullmatch(wanted, line)
    assert [line.split(" ", 1)[1] for line in done.stderr.splitlines()] == ["after epoch 0", "after epoch 1"]


@needs_mpirun
def test_lines_once_on_ranks() -> None:
    pytest.importorskip("mpi4py")
    ended = run_ranks(3, "-c", SCRIPT)
    assert ended.code == 0, ended.err
    for line, wanted in zip(ended.out.splitlines(), LINES, strict=True):
        assert re.fullmatch(wanted, line)
    assert ended.err.count("after epoch") == 2


WAITING = """
import time, numpy as np, sorix_dist as sx
from sorix_dist.utils.data import DataLoader, Dataset
for xb in sx.progress(DataLoader(Dataset(np.zeros((12, 3), np.float32)), batch_size=1)):
    time.sleep(0.2 * (sx.rank() == 1))
    sx.barrier()
"""


@needs_mpirun
def test_the_rank_that_the_others_wait_for_is_named() -> None:
    pytest.importorskip("mpi4py")
    ended = run_ranks(2, "-c", WAITING)
    assert ended.code == 0, ended.err
    found = re.search(r"  (\d+)% waiting .* \(rank 1: (\d+)% waiting, the others (\d+)%\)$", ended.out, re.MULTILINE)
    assert found, ended.out
    mean, slow, others = map(int, found.groups())
    assert slow < mean < others
    assert others > 50


def test_a_terminal_that_a_launcher_gives_its_ranks_is_not_live(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Open MPI does, also where it writes their output into a file."""
    ours, theirs = pty.openpty()
    with open(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        assert output.is_live()
        for name in ("PMI_RANK", "PMI_SIZE", "PMI_LOCAL_RANK"):
            monkeypatch.setenv(name, "1")
        assert not output.is_live()
        monkeypatch.setenv(output.LIVE, "1")  # of `sorix-dist run`, or `sx.run`
        assert output.is_live()
    os.close(ours)


@pytest.mark.parametrize("size", [(30, 100), (0, 0)])
def test_a_live_line_on_a_terminal(size: tuple[int, int]) -> None:
    """What is on the screen in the end are the lines; before them, one line was written over again."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, size)
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    written = b""
    try:
        while data := os.read(ours, 1 << 16):
            written += data
    except OSError:  # nobody has the terminal open any more
        assert process.wait(60) == 0
    finally:
        os.close(ours)
    text = written.decode()
    assert re.search(r"epoch 1/2  0/3 \|\s+\|", text)
    assert len(re.findall(r"\repoch ", text)) >= 2
    shown = [line.rpartition("\r")[2].strip() for line in text.replace("\r\n", "\n").split("\n")]
    shown = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in shown if line]
    for line, wanted in zip(shown, [*LINES[:2], "after epoch 0", *LINES[2:], "after epoch 1"], strict=True):
        assert re.fullmatch(wanted, line)


def test_lines_in_a_long_epoch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0)
    bar = sx.progress(loader(20))
    for _ in bar:
        time.sleep(0.01)  # more than a twentieth of the epoch
    steps = [line.split()[3] for line in capsys.readouterr().out.splitlines()]
    assert steps[-1] == "5/5"
    assert steps == sorted(set(steps))
    assert len(steps) > 2


def test_goes_on_in_the_middle_of_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = loader(), loader()
    for _ in first:
        break
    second.load_state_dict(first.state_dict())
    bar = sx.progress(second, epochs=3)
    for _ in range(3):
        for _ in bar:
            bar.log(loss=sx.tensor(2.0))
    assert bar.means == {"loss": 2.0}
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  loss 2  ")[0] for line in lines] == [f"epoch {i}/3  step 3/3" for i in (1, 2, 3)]


def test_other_iterables(capsys: pytest.CaptureFixture[str]) -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            yield from np.zeros((6, 2))

    for _ in sx.progress(DataLoader(Stream(), batch_size=4)):
        pass
    for _ in sx.progress([1, 2, 3]):
        pass
    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"epoch 1  step 2  [\d,]+ samples/s", first)
    assert re.fullmatch(r"epoch 1  step 3/3  took 0:00", second)


def test_no_line_of_a_loop_that_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    bar = sx.progress(loader())
    for _ in bar:
        break
    assert capsys.readouterr().out == ""


def test_rank_0_alone(capsys: pytest.CaptureFixture[str]) -> None:
    @sx.main_process_only
    def twice(number: int) -> int:
        return 2 * number

    def work() -> Any:
        sx.print("once")
        return twice(sx.rank() + 1)

    assert run_threads(work, 3, timeout=60) == [2, None, None]
    assert capsys.readouterr().out == "once\n"
    assert twice.__name__ == "twice"


def test_logger_of_ranks(caplog: pytest.LogCaptureFixture) -> None:
    def work() -> None:
        log = sx.get_logger("sorix_dist_test")
        log.info("hello from %d", sx.rank())
        log.debug("hidden")
        log.warning("careful")

    run_threads(work, 2, timeout=60)
    said = sorted((record.levelno, record.getMessage(), record.origin) for record in caplog.records)
    assert said == [
        (logging.INFO, "hello from 0", ""),
        (logging.WARNING, "careful", "[rank 0] WARNING "),
        (logging.WARNING, "careful", "[rank 1] WARNING "),
    ]
    assert len(logging.getLogger("sorix_dist_test").filters) == 1


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match="loader must be a DataLoader or another iterable, got int"):
        sx.progress(3)  # type: ignore[arg-type]
    for epochs in (0, 1.5, True):
        with pytest.raises(ValueError, match="epochs must be an integer >= 1 or None, got"):
            sx.progress([], epochs=epochs)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="main_process_only decorates a function, got int"):
        sx.main_process_only(3)  # type: ignore[arg-type]
