"""The command itself: version, help, what it needs, and its two names."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from sorix_dist._version import __version__
from sorix_dist.cli import main
from tests.support.jobs import ROOT, SORIX_DIST, finished


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sorix_dist {__version__}\n"


def test_python_m_is_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert finished([*SORIX_DIST, "--version"]) == (0, f"sorix_dist {__version__}\n")


def test_help_names_every_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "run a script on several ranks" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["walk"]])
def test_a_wrong_subcommand_is_one_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("sorix-dist: error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("argv", [["run", "-n", "2", "-m", "this"], ["profile", "-m", "this"]])
def test_several_of_it_would_start_several_jobs(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setattr(os, "isatty", lambda descriptor: False)
    assert main(argv) == 2
    assert "this process is one already (rank 1 of 2, by Open MPI)" in capsys.readouterr().err


def test_a_terminal_is_given_to_one_task_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in the shell of `srun --ntasks=4 --pty bash`."""
    for name, value in (("PROCID", "0"), ("STEP_NUM_TASKS", "4"), ("STEP_ID", "0")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr(os, "isatty", lambda descriptor: descriptor == 0)
    assert main(["run", "-n", "1", "--dry-run", "-m", "this"]) == 0
    assert capsys.readouterr().out.endswith("-m this\n")


def test_starting_ranks_loads_no_mpi_and_no_tensors(tmp_path: Path) -> None:
    """The process that starts ranks needs no memory of their kind, and MPI must not start in it."""
    code, output = finished(
        [sys.executable, "-c", "import sys, sorix_dist.cli; print(*sys.modules)"],
        env={"PYTHONPATH": str(ROOT)},
    )
    assert code == 0, output
    loaded = set(output.split())
    assert "sorix_dist.launch.run" in loaded
    assert not {name for name in loaded if name.partition(".")[0] == "mpi4py"}
