"""sx.Pool: ranks that stay alive between calls, and end when they must."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import sorix_dist as sx
from tests.support.launching import ROOT, needs_mpirun

pytestmark = [needs_mpirun, pytest.mark.timeout(120)]


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Where private folders come to be; in the end none is left."""
    pytest.importorskip("mpi4py")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    folder = tmp_path / "private"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    assert list(folder.glob("sorix_dist-*")) == []


def lives(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids: list[int]) -> bool:
    """Whether all processes have ended within seconds."""
    deadline = time.monotonic() + 15
    while any(map(lives, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(lives, pids))


def test_ranks_stay_and_remember() -> None:
    def remember(value: float) -> tuple[int, int]:
        sx.core.kept_by_a_test = value  # type: ignore[attr-defined]
        return os.getpid(), sx.all_reduce(1)

    def recall(factor: int = 1) -> float:
        return factor * sx.core.kept_by_a_test + sx.rank()  # type: ignore[attr-defined]

    with sx.Pool(2) as pool:
        first = pool.run(remember, (5,))
        assert [count for _, count in first] == [2, 2]
        assert pool.run(recall, kwargs={"factor": 2}) == [10, 11]
        assert pool.run(os.getpid) == [pid for pid, _ in first]
        if (child := os.fork()) == 0:  # its end is not the end of the ranks
            pool.close()
            os._exit(0)
        os.waitpid(child, 0)
        pids = pool.run(os.getpid)
        assert pids == [pid for pid, _ in first]
    assert gone(pids)
    assert pool.run(sx.rank) == [0, 1]  # ranks that are started anew
    pool.close()


def test_a_call_that_fails_ends_the_ranks_and_the_next_starts_new_ones(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        print("before")
        if sx.rank() == 1:
            raise KeyError("lost")
        sx.barrier()

    with sx.Pool(2) as pool:
        pids = pool.run(os.getpid)
        with pytest.raises(KeyError, match="lost") as caught:
            pool.run(fails)
        assert caught.value.__notes__ == ["raised on rank 1 of 2"]
        assert "[0] before" in capsys.readouterr().out
        assert gone(pids)
        assert not set(pool.run(os.getpid)) & set(pids)


def test_a_call_that_takes_too_long_or_is_interrupted() -> None:
    with sx.Pool(2) as pool:
        pids = pool.run(os.getpid)
        with pytest.raises(TimeoutError, match=r"not done after 0.5 s"):
            pool.run(time.sleep, (60,), timeout=0.5)
        assert gone(pids)
        pids = pool.run(os.getpid)
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            pool.run(time.sleep, (60,))
        assert gone(pids)


def test_the_end_of_the_program_ends_the_ranks() -> None:
    script = "import os, sorix_dist as sx\npool = sx.Pool(2)\nprint(*pool.run(os.getpid), flush=True)\n"
    for end in ("", "os.kill(os.getpid(), 9)"):
        done = subprocess.run(
            [sys.executable, "-c", script + end], capture_output=True, text=True, timeout=60, check=False
        )
        assert gone([int(pid) for pid in done.stdout.split()])
        assert bool(done.returncode) == bool(end), done.stderr


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="num_proc must be a whole number of at least 1, got 0"):
        sx.Pool(0)
    with pytest.raises(TypeError, match="fn must be a function, got int"):
        sx.Pool(1).run(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"args must be a tuple of the function's arguments, such as \(x,\), got 3"):
        sx.Pool(1).run(print, 3)  # type: ignore[arg-type]
