"""`sorix-dist run` under this environment's own MPI, as a user calls it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sorix_dist.cli import main
from tests.support.jobs import LIMIT, RANK, SORIX_DIST, announced, finished, job, survivors
from tests.support.launching import needs_mpirun

pytestmark = needs_mpirun

# One write each, so that the lines of several ranks do not mix.
SLEEPS = "import os, time; os.write(1, b'%d\\n' % os.getpid()); time.sleep(60)"
AWKWARD = [
    "-n",
    "7",
    "--dry-run",
    "--",
    "",
    "a b",
    "it's",
    '"q"',
    "$HOME",
    "*",
    "\\n",
    "a\nb",
    ":",
    "--np",
    "é",
]


@pytest.fixture
def no_mpi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment, and a PATH, without any mpirun."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_arguments_arrive_untouched_at_every_rank(script: Path, ranks: int) -> None:
    script.write_text(
        f"import os, sys\nopen(f'arguments-{{{RANK}}}', 'w', encoding='utf-8', newline='').write(repr(sys.argv))",
        encoding="utf-8",
    )
    code, output = finished([*SORIX_DIST, "run", "-n", str(ranks), "train.py", *AWKWARD])
    assert code == 0, output
    written = {path.name: path.read_text(encoding="utf-8") for path in script.parent.glob("arguments-*")}
    assert written == {f"arguments-{rank}": repr(["train.py", *AWKWARD]) for rank in range(ranks)}


def test_the_ranks_are_one_mpi_world(script: Path) -> None:
    script.write_text(
        "from mpi4py import MPI\nworld = MPI.COMM_WORLD\n"
        "ranks = world.gather(world.rank)\nif ranks: print('world', ranks)",
        encoding="utf-8",
    )
    code, output = finished([*SORIX_DIST, "run", "-n", "4", "train.py"])
    assert code == 0, output
    assert "world [0, 1, 2, 3]" in output


@pytest.mark.parametrize("ranks", ["1", "2"])
@pytest.mark.parametrize("code", [0, 1, 7])
def test_the_exit_code_is_the_scripts(script: Path, ranks: str, code: int) -> None:
    script.write_text(f"raise SystemExit({code})", encoding="utf-8")
    assert finished([*SORIX_DIST, "run", "-n", ranks, "train.py"])[0] == code


def test_one_failing_rank_fails_the_job(script: Path) -> None:
    script.write_text(f"import os\nif {RANK} == 1: raise SystemExit(7)", encoding="utf-8")
    assert finished([*SORIX_DIST, "run", "-n", "3", "train.py"])[0] == 7


def test_a_killed_rank_ends_the_job(script: Path) -> None:
    script.write_text(SLEEPS, encoding="utf-8")
    with job([*SORIX_DIST, "run", "-n", "2", "train.py"]) as process:
        pids = announced(process, 2)
        os.kill(pids[1], signal.SIGKILL)
        assert process.wait(LIMIT) in (9, 137)  # MPICH says 9, Open MPI 137
        assert survivors(pids) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_killing_the_command_ends_its_ranks(script: Path) -> None:
    script.write_text(SLEEPS, encoding="utf-8")
    with job([*SORIX_DIST, "run", "-n", "2", "train.py"]) as process:
        pids = announced(process, 2)
        process.kill()
        assert survivors(pids) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_ranks(script: Path, number: signal.Signals) -> None:
    script.write_text(SLEEPS, encoding="utf-8")
    with job([*SORIX_DIST, "run", "-n", "3", "train.py"]) as process:
        pids = announced(process, 3)
        process.send_signal(number)
        assert process.wait(LIMIT) == 128 + number
        assert survivors(pids) == []


def test_a_second_interrupt_ends_ranks_that_are_stuck_in_mpi(script: Path) -> None:
    script.write_text(
        "import os, time\nfrom mpi4py import MPI\nos.write(1, b'%d\\n' % os.getpid())\n"
        "if MPI.COMM_WORLD.rank == 0: time.sleep(60)\nMPI.COMM_WORLD.barrier()",
        encoding="utf-8",
    )
    with job([*SORIX_DIST, "run", "-n", "2", "train.py"]) as process:
        pids = announced(process, 2)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:  # MPICH waits for the rank that is in the barrier
            process.send_signal(signal.SIGINT)
        assert process.wait(20) in (130, 137)
        assert survivors(pids) == []


def test_a_module_runs_as_python_m_does(script: Path) -> None:
    script.rename("trainer.py").write_text("import sys\nprint(__name__, sys.argv[1:])", encoding="utf-8")
    assert finished([*SORIX_DIST, "run", "-n", "1", "-m", "trainer", "-m", "x"]) == (
        0,
        "__main__ ['-m', 'x']\n",
    )


def test_standard_input_reaches_the_first_rank(script: Path) -> None:
    # A line, not all there is: mpirun of Open MPI 5 passes on what is typed but not the end of it.
    script.write_text(f"import os\nif {RANK} == 0: print('read ' + input() + '.')", encoding="utf-8")
    with job([*SORIX_DIST, "run", "-n", "2", "train.py"], stdin=subprocess.PIPE) as process:
        output, _ = process.communicate("typed\n", timeout=LIMIT)
        assert (process.returncode, output) == (0, "read typed.\n")


def test_the_dry_run_can_be_pasted_into_a_shell(script: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script.write_text("import os, sys\nos.write(1, repr(sys.argv[1:]).encode())", encoding="utf-8")
    assert main(["run", "-n", "2", "--dry-run", "train.py", *AWKWARD]) == 0
    line = capfd.readouterr().out
    assert shlex.quote(sys.executable) in line
    code, output = finished(["/bin/sh", "-c", line])
    assert code == 0, output
    assert output.count(repr(AWKWARD)) == 2


def test_the_dry_run_runs_nothing(script: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script.write_text("print('ran')", encoding="utf-8")
    assert main(["run", "-n", "1", "--dry-run", "train.py"]) == 0
    assert capfd.readouterr().out == f"{sys.executable} train.py\n"


def test_the_default_is_one_rank_a_core(
    script: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sorix_dist.cli.run.usable_cores", lambda: 6)
    assert main(["run", "--dry-run", "train.py"]) == 0
    assert " -n 6 " in capfd.readouterr().out


@pytest.mark.usefixtures("no_mpi")
def test_one_rank_runs_without_mpi(script: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script.write_text("print('alone')", encoding="utf-8")
    assert main(["run", "-n", "1", "train.py"]) == 0
    assert capfd.readouterr().out == "alone\n"


@pytest.mark.usefixtures("script")
class TestErrors:
    """Each is one line on stderr and exit code 2."""

    @staticmethod
    def error(capfd: pytest.CaptureFixture[str], *argv: str) -> str:
        assert main(argv) == 2
        out, error = capfd.readouterr()
        assert out == ""
        assert error.count("\n") == 1
        return error.rstrip()

    @pytest.mark.parametrize("ranks", ["0", "-1", "two", "1.5"])
    def test_ranks(self, capfd: pytest.CaptureFixture[str], ranks: str) -> None:
        assert self.error(capfd, "run", f"-n={ranks}", "train.py") == (
            f"sorix-dist run: error: argument -n/--ranks: expected a whole number of at least 1, got '{ranks}'"
        )

    def test_missing_script(self, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        assert self.error(capfd, "run", "-n", "2", "trian.py") == (
            f"sorix-dist run: error: there is no script 'trian.py' in '{tmp_path}'"
        )

    def test_no_script(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert self.error(capfd, "run", "-n", "2") == (
            "sorix-dist run: error: the following arguments are required: SCRIPT"
        )

    @pytest.mark.usefixtures("no_mpi")
    def test_no_mpirun(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert 'pip install "sorix_dist[mpi]"' in self.error(capfd, "run", "-n", "2", "train.py")

    def test_unknown_option(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert "--dry" in self.error(capfd, "run", "--dry", "train.py")

    def test_an_allocation_without_ranks(
        self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", "1")
        assert self.error(capfd, "run", "train.py").endswith("give the number of ranks with -n")
