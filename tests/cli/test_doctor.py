"""The doctor's page, for people and for programs."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sorix_dist.cli import doctor, main
from sorix_dist.launch.doctor import Finding
from tests.support.jobs import ROOT, SORIX_DIST, finished
from tests.support.launching import needs_mpirun, run_ranks

GREEN = Finding("Python", "ok", "3.11", data={"version": "3.11"})
YELLOW = Finding("Left-overs", "warning", "3 segments", "remove them")
RED = Finding("mpirun", "error", "another MPI", "install one")


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """What there is to find."""
    findings: list[Finding] = []
    monkeypatch.setattr(doctor, "examine", lambda: iter(findings))
    return findings


def test_the_page(found: list[Finding], capsys: pytest.CaptureFixture[str]) -> None:
    found += [GREEN, YELLOW]
    assert main(["doctor"]) == 0  # a warning is in nobody's way
    assert capsys.readouterr().out == (
        "ok  Python          3.11\n!!  Left-overs      3 segments\n                    -> remove them\n"
    )
    found.append(RED)
    assert main(["doctor"]) == 1
    assert "XX  mpirun          another MPI\n                    -> install one\n" in capsys.readouterr().out


def test_the_page_for_programs(found: list[Finding], capsys: pytest.CaptureFixture[str]) -> None:
    found += [GREEN, RED]
    assert main(["doctor", "--json"]) == 1
    page = json.loads(capsys.readouterr().out)
    assert page["healthy"] is False
    assert page["findings"][0] == {
        "subject": "Python",
        "level": "ok",
        "text": "3.11",
        "mend": "",
        "data": {"version": "3.11"},
    }
    assert page["findings"][1]["mend"] == "install one"


@pytest.mark.parametrize(
    ("environ", "colour"), [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)]
)
def test_colours_only_at_a_terminal_that_may_have_them(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], colour: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert not doctor.coloured()
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stdout", terminal)
        assert doctor.coloured() == colour
        monkeypatch.undo()
    os.close(ours)
    assert doctor.line(RED, colour=True).startswith("\x1b[31mXX\x1b[0m  mpirun ")


def test_the_left_overs_can_be_removed(found: list[Finding], monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[float] = []
    monkeypatch.setattr(doctor.leftovers, "clean_up", lambda after: removed.append(after))
    assert main(["doctor"]) == 0
    assert removed == []
    assert main(["doctor", "--clean"]) == 0
    assert removed == [0.0]


@pytest.mark.parametrize("arguments", [["job", "slurm", "t.py"], ["plot", "run"]])
def test_a_reader_that_goes_away_is_no_error(tmp_path: Path, arguments: list[str]) -> None:
    """As in `sorix-dist doctor --json | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    script = f"import sys\nfrom sorix_dist.cli import main\nsys.exit(main({arguments}))"
    (tmp_path / "t.py").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "records.jsonl").write_text(
        '{"step": 1, "time": 0, "loss": 2}\n{"step": 2, "time": 1, "loss": 1}\n'
    )
    with os.fdopen(writing, "wb") as nobody_reads:
        ended = subprocess.run(
            [sys.executable, "-c", script], stdout=nobody_reads, stderr=subprocess.PIPE, cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=60,
        )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, b"")


@needs_mpirun
def test_this_environment_is_well() -> None:
    code, output = finished([*SORIX_DIST, "doctor"])
    assert code == 0, output
    assert "all-reduce is right: 4 KB in " in output
    assert "\x1b" not in output


@needs_mpirun
def test_under_mpirun_one_rank_speaks_for_all() -> None:
    ended = run_ranks(2, *SORIX_DIST[1:], "doctor", "--json")
    assert ended.code == 0, ended.out + ended.err
    page = json.loads(ended.out)
    (ranks,) = [finding for finding in page["findings"] if finding["subject"] == "Ranks"]
    assert (ranks["data"]["rank"], ranks["data"]["size"]) == (0, 2)
    assert any(finding["subject"] == "2 ranks" for finding in page["findings"])


@needs_mpirun
def test_files_of_the_current_folder_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("json", "time", "signal", "numpy", "mpi4py", "threadpoolctl"):
        (tmp_path / f"{name}.py").write_text(f"open('run', 'a').write('{name} ')\nraise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    code, output = finished([*SORIX_DIST, "doctor"])
    assert code == 0, output
    assert "all-reduce is right" in output
    assert not Path("run").exists(), Path("run").read_text()
