"""A file for each rank, written by a shell in front of the program that leaves it its process, signals and code."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from sorix_dist.launch.output import logged
from tests.support.jobs import LIMIT, finished, job, survivors

SPEAKS = "import os, sys; print('out', os.getpid()); print('err', file=sys.stderr); sys.exit(int(sys.argv[1]))"


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("tee", [False, True])
@pytest.mark.parametrize("variable", ["", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID"])
def test_both_outputs_go_to_the_ranks_file(
    tmp_path: Path, tee: bool, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv(variable, "3")
    folder = tmp_path / "new" / "a b"
    argv = logged([sys.executable, "-c", SPEAKS, "7", "", "it's $HOME"], folder, tee=tee)
    code, output = finished(argv)
    assert code == 7
    (path,) = folder.iterdir()
    assert path.name == ("rank-3.log" if variable else "rank-0.log")
    text = path.read_text()
    assert text.startswith("out ")
    assert text.endswith("\nerr\n")
    rank = 3 if variable else 0
    assert output == ("".join(f"[{rank}] {line}\n" for line in text.splitlines()) if tee else "")
    assert finished(argv)[0] == 7
    first, second = re.split(r"---- started again at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\n", path.read_text())
    assert first == text
    assert second.endswith("\nerr\n")


def test_a_full_disk_for_the_file_does_not_end_the_rank(tmp_path: Path) -> None:
    (tmp_path / "rank-0.log").symlink_to("/dev/full")
    script = "import time\nfor step in range(3):\n    print(step, flush=True)\n    time.sleep(0.1)"
    code, output = finished(logged([sys.executable, "-c", script], tmp_path, tee=True))
    assert code == 0
    first, said, *rest = output.splitlines()
    assert [first, *rest] == ["[0] 0", "[0] 1", "[0] 2"]
    assert said.endswith("rank-0.log can't be written: No space left on device")


@pytest.mark.parametrize("tee", [False, True])
def test_signals_reach_the_program_and_what_it_said_is_kept(tmp_path: Path, tee: bool) -> None:
    script = "import os, time; os.write(1, b'%d\\n' % os.getpid()); time.sleep(60)"
    with job(logged([sys.executable, "-c", script], tmp_path, tee=tee)) as process:
        if tee:
            assert process.stdout is not None
            pid = int(process.stdout.readline().removeprefix("[0] "))
        else:
            limit = time.monotonic() + LIMIT
            path = tmp_path / "rank-0.log"
            while not path.exists() or not path.read_text().endswith("\n"):
                assert time.monotonic() < limit
                time.sleep(0.02)
            pid = int(path.read_text())
        assert pid == process.pid
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(LIMIT) == -signal.SIGTERM
        assert survivors([pid]) == []
    assert (tmp_path / "rank-0.log").read_text() == f"{pid}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["rank-0.log"]


def test_much_output_is_complete_in_both(tmp_path: Path) -> None:
    script = "for number in range(20000): print('line', number)"
    code, output = finished(logged([sys.executable, "-c", script], tmp_path, tee=True))
    assert (code, output.count("\n")) == (0, 20000)
    assert (tmp_path / "rank-0.log").read_text() == output.replace("[0] ", "")


def test_lines_that_come_in_pieces_are_shown_whole(tmp_path: Path) -> None:
    script = "import sys, time\nfor piece in ('a', 'b', '\\n', 'c'): time.sleep(0.1); sys.stdout.write(piece)"
    with job(logged([sys.executable, "-c", script], tmp_path, tee=True)) as process:
        assert process.stdout is not None
        assert os.read(process.stdout.fileno(), 100) == b"[0] ab\n"
        assert os.read(process.stdout.fileno(), 100) == b"[0] c\n"
        assert process.wait(LIMIT) == 0
    assert (tmp_path / "rank-0.log").read_text() == "ab\nc"


def test_a_folder_or_file_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, output = finished(logged([sys.executable, "-c", "print('ran')"], tmp_path / "file"))
    assert code == 1
    assert "file" in output
    assert "ran" not in output
    os.mkfifo(tmp_path / "rank-0.log")
    code, output = finished(logged([sys.executable, "-c", "print('ran')"], tmp_path))
    assert (code, output) == (1, f"{tmp_path}/rank-0.log is a pipe, not a file\n")
