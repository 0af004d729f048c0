"""`sorix-dist job` as a user calls it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sorix_dist.cli import main


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with a script in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").touch()


def lines(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    """What the command prints."""
    assert main(["job", *argv]) == 0
    return capsys.readouterr().out.splitlines()


def error(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line that it says when it refuses."""
    assert main(["job", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_this_folder_and_this_interpreter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = lines(
        capsys, "slurm", "--nodes", "2", "--ranks-per-node", "4", "--time", "1:00:00", "train.py", "--lr", "0.1"
    )
    assert {
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --time=1:00:00",
        f"DIRECTORY={tmp_path}",
        f"PYTHON=({sys.executable})",
        "COMMAND=(train.py --lr 0.1)",
    } <= {*printed}


def test_an_environment_set_up_by_commands_brings_its_python(capsys: pytest.CaptureFixture[str]) -> None:
    printed = lines(capsys, "pbs", "--env-setup", "source .venv/bin/activate", "train.py")
    assert {"SETUP='source .venv/bin/activate'", "PYTHON=(python)"} <= {*printed}


def test_an_interpreter_of_several_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert "PYTHON=(apptainer exec image.sif python)" in lines(
        capsys, "slurm", "--python", "apptainer exec image.sif python", "train.py"
    )
    Path("my env").mkdir()
    Path("my env/python").touch()
    assert "PYTHON=('my env/python')" in lines(capsys, "slurm", "--python", "my env/python", "train.py")


def test_options_of_run_and_of_the_scheduler(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--bind", "core", "--threads", "2", "--env", "A=b c", "--checkpoint", "saved", "--max-restarts", "3"]
    printed = lines(capsys, "slurm", *options, "--log-dir", "logs", "--tee", "--directive=--exclusive", "train.py")
    assert {
        "RUN_OPTIONS=(--threads 2 --bind core '--env=A=b c' --log-dir logs --tee --checkpoint saved --max-restarts 3)",
        "#SBATCH --exclusive",
        "#SBATCH --open-mode=append",
    } <= {*printed}


def test_a_module_needs_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert "COMMAND=(-m my.training --x)" in lines(capsys, "lsf", "-m", "my.training", "--x")


def test_a_container_has_its_own_folders(capsys: pytest.CaptureFixture[str]) -> None:
    printed = lines(capsys, "kubernetes", "--image", "r/i:1", "in-the-image.py")
    assert '              workingDir: &directory "/workspace"' in printed
    assert '              args: &command ["in-the-image.py"]' in printed


def test_a_new_file_and_how_to_submit_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["job", "lsf", "--output", "my job.bsub", "train.py"]) == 0
    assert capsys.readouterr() == ("", "wrote my job.bsub; submit it with: bsub < 'my job.bsub'\n")
    assert (tmp_path / "my job.bsub").read_text().startswith("#!/bin/bash\n")
    before = (tmp_path / "my job.bsub").read_bytes()
    assert "'my job.bsub' exists already" in error(capsys, "pbs", "--output", "my job.bsub", "train.py")
    assert (tmp_path / "my job.bsub").read_bytes() == before
    assert "cannot be written: No such file" in error(capsys, "pbs", "--output", "no/where", "train.py")


@pytest.mark.parametrize(("text", "in_slurm"), [("0:00:30", "0:00:30"), ("2-03:04:05", "51:04:05"), ("99:59:59",) * 2])
def test_times(text: str, in_slurm: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = lines(capsys, "slurm", "--warning", "20", "--time", text, "train.py")
    assert f"#SBATCH --time={in_slurm}" in printed


@pytest.mark.parametrize("text", ["1h", "60", "1:00", "1:60:00", "0:00:00", "-1:00:00", "1:00:00 ", ""])
def test_a_wrong_time(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = error(capsys, "slurm", f"--time={text}", "train.py")
    assert f"argument --time: expected [DAYS-]H:MM:SS above zero, for instance 1:30:00, got {text!r}" in said


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["slurm", "--nodes", "0", "train.py"], "argument --nodes: expected a whole number of at least 1, got '0'"),
        (["slurm", "--memory", "16", "train.py"], "argument --memory: expected a whole number with the unit"),
        (["slurm", "other.py"], "there is no script 'other.py' in "),
        (["slurm", "--directory", "nowhere", "train.py"], "--directory: there is no folder "),
        (["moab", "train.py"], "argument KIND: invalid choice: 'moab'"),
        (["slurm"], "the following arguments are required: SCRIPT"),
        (["slurm", "--tee", "train.py"], "--tee needs --log-dir DIR"),
        (["slurm", "--max-restarts", "2", "train.py"], "--max-restarts needs --checkpoint DIR"),
        (["slurm", "--ranks-per-node", "-1", "train.py"], "argument --ranks-per-node: expected a whole number"),
        (["slurm", "--python", "'", "train.py"], "--python: expected the words of a command"),
        (["local", "--nodes", "2", "train.py"], "--nodes: a local job script runs on this host"),
    ],
)
def test_bad_input(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in error(capsys, *argv)
