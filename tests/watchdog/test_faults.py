"""Every fault ends all ranks within seconds, with its rank, step, operation and line; what is none ends nobody."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from sorix_dist.watchdog.page_folder import directory, launcher_of
from tests.support.launching import MPIRUN, Ended, needs_mpirun, run_command, run_ranks
from tests.watchdog.faults.case import RANKS, Case
from tests.watchdog.faults.cases import CASES, HEALTHY
from tests.watchdog.faults.commands import COMMANDS

LONG = bool(os.environ.get("SORIX_DIST_LONG"))

LIMIT = 20.0
"""Seconds after which a command is taken to hang."""

TOLD = re.compile(
    rf"rank \d of {RANKS} \(host \S+, pid \d+\) failed; ending all ranks\n(  (step|in|last seen in) .*\n)?"
    r"Traceback \(most recent call last\):\n(  .*\n)+[\w.]+(: .*)?\n"
)
"""The last words of a rank that raised, in one piece."""


def run(script: str, folder: Path) -> Ended:
    file = folder / "train.py"
    file.write_text("import sorix_dist as sx\n" + script)
    return run_ranks(RANKS, str(file), limit=40)


def line_of(case: Case, folder: Path) -> str:
    lines = case.script.splitlines()
    number = next((number for number, line in enumerate(lines, 2) if line.endswith("# here")), 0)
    return f'({re.escape(str(folder))}/train.py:{number}\\b|{re.escape(str(folder))}/train.py", line {number}\\b)'


@needs_mpirun
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if LONG or not case.long])
def test_a_fault_ends_all_ranks_and_is_named(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    ended = run(case.script, tmp_path)
    assert ended.code != 0, ended.err
    assert ended.seconds < case.seconds, ended.err
    for says in case.says:
        assert re.search(says.replace("LINE", line_of(case, tmp_path)), ended.err), f"{says}\n{ended.err}"
    assert ended.err.count("ending all ranks") == 1, ended.err
    tracebacks = ended.err.count("Traceback (most recent call last)") - ended.err.count("\n\nThe above exception was")
    assert tracebacks == len(TOLD.findall(ended.err)) <= 1, ended.err
    assert not ended.left, ended.left


@needs_mpirun
def test_the_traceback_is_whole_and_on_the_last_screen_beside_ranks_that_print(tmp_path: Path) -> None:
    """Open MPI lets the ranks that the guard has stopped go on for a moment before it kills them."""
    script = (
        "import sys, time\nsx.barrier()\n"
        "while sx.rank() != 2:\n    print('noise', file=sys.stderr, flush=True)\n    time.sleep(0.002)\n"
        "time.sleep(1)\nraise ValueError('a bad row')"
    )
    ended = run(script, tmp_path)
    said = TOLD.search(ended.err)
    assert said is not None, ended.err[-3000:]
    assert ended.err.count("noise") > 50
    assert ended.err[said.start() :].count("\n") < 50, ended.err[said.start() :]


@needs_mpirun
@pytest.mark.parametrize("name", HEALTHY)
def test_what_is_no_fault_ends_nobody(name: str, tmp_path: Path) -> None:
    ended = run(HEALTHY[name], tmp_path)
    assert ended.code == 0, ended.err
    assert "ending all ranks" not in ended.err
    assert not ended.left, ended.left


@needs_mpirun
@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if LONG or not command.long])
def test_a_command_ends_and_says_what_to_do(name: str, tmp_path: Path) -> None:
    command = COMMANDS[name]
    if command.needs_root and os.getuid() != 0:
        pytest.skip("needs root, for memory or folders of other users")
    folder, temporary = tmp_path / "work", tmp_path / "tmp"
    folder.mkdir()
    temporary.mkdir()
    (folder / "train.py").write_text(command.script)
    programs = {"MPIRUN": str(MPIRUN), "PYTHON": sys.executable, "SORIX_DIST": f"{sys.executable} -m sorix_dist"}
    line = f"cd {folder} && {command.line}"
    ended = run_command(["sh", "-c", line], limit=LIMIT, env={**programs, "TMPDIR": str(temporary)})
    printed = ended.out + ended.err
    assert (ended.code == 0) == command.is_healthy, printed
    for says in command.says:
        assert re.search(says, printed), f"{says}\n{printed}"
    for never in command.never:
        assert not re.search(never, printed), f"{never}\n{printed}"
    assert not ended.left, ended.left


@needs_mpirun
def test_two_programs_one_after_the_other_in_one_launch(tmp_path: Path) -> None:
    first, second = tmp_path / "prepare.py", tmp_path / "train.py"
    first.write_text("import sorix_dist")
    second.write_text("import sys\nimport sorix_dist as sx\nsx.barrier()\nsys.stdout.write('trained\\n')")
    both = f"{sys.executable} {first} && {sys.executable} {second}"
    ended = run_command([str(MPIRUN), "-n", "2", "sh", "-c", both])
    assert (ended.code, ended.out.split()) == (0, ["trained"] * 2), ended.err


@needs_mpirun
def test_a_shell_between_two_programs_is_no_end_of_a_rank(tmp_path: Path) -> None:
    """The other ranks wait in the start of MPI, while that of rank 2 has not begun yet."""
    first, second = tmp_path / "prepare.py", tmp_path / "train.py"
    first.write_text("import sorix_dist")
    second.write_text("import sys\nimport sorix_dist as sx\nsx.barrier()\nsys.stdout.write('trained\\n')")
    pause = 'if [ "${PMI_RANK:-$OMPI_COMM_WORLD_RANK}" = 2 ]; then sleep 3; fi'
    both = f"{sys.executable} {first} && {pause} && {sys.executable} {second}"
    ended = run_command([str(MPIRUN), "-n", "3", "sh", "-c", both], limit=20)
    assert (ended.code, ended.out.split()) == (0, ["trained"] * 3), ended.err


@needs_mpirun
def test_ranks_whose_launcher_is_killed_do_not_stay(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import os, signal, time\nimport sorix_dist as sx\nfrom sorix_dist.watchdog import watch\nsx.barrier()\n"
        "launcher = int(watch.page().pages.path.name.split('-')[2])\n"
        "if sx.rank() == 0: os.kill(launcher, signal.SIGKILL)\ntime.sleep(30)\nsx.barrier()"
    )
    ended = run_ranks(2, str(script), limit=25)
    assert ended.code != 0
    assert not ended.left


@needs_mpirun
def test_no_table_is_left_behind(tmp_path: Path) -> None:
    script = (
        "import sys\nimport sorix_dist as sx\nfrom sorix_dist.watchdog import watch\nsx.barrier()\n"
        "sys.stdout.write(f'{watch.page().pages.path}\\n')"
    )
    ended = run_ranks(2, "-c", script)
    (path,) = set(map(Path, ended.out.split()))
    assert path.parent == directory()
    assert launcher_of(path)[0] > 0
    assert not ended.left
    assert [other for other in path.parent.iterdir() if other.name.startswith(path.name)] == []
    assert not path.exists()


@needs_mpirun
def test_a_rank_that_fails_before_the_import_is_named(tmp_path: Path) -> None:
    """MPICH does not end the others, which wait for it in MPI_Init; Open MPI does, and names it."""
    script = tmp_path / "train.py"
    script.write_text(
        "import os, time\nrank = int(os.environ.get('PMI_RANK', os.environ.get('OMPI_COMM_WORLD_RANK')))\n"
        "if rank == 2:\n    time.sleep(0.5)\n    import no_such_module\nimport sorix_dist as sx\nsx.init(timeout=60)"
    )
    ended = run_ranks(RANKS, str(script), limit=20)
    assert ended.code != 0
    assert "No module named 'no_such_module'" in ended.err
    assert re.search(r"rank 2 has ended before it imported sorix_dist, while rank \d waits|@1,2\]", ended.err), (
        ended.err
    )
    assert not ended.left


@needs_mpirun
@pytest.mark.parametrize("fault", ["", "if sx.rank() == 0: raise ValueError('a bad row')"])
def test_a_child_that_holds_the_output_does_not_keep_the_launcher(fault: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import os, sys, time\nimport sorix_dist as sx\nsx.init(timeout=3)\nsx.barrier()\n"
        f"if sx.rank() == 1 and os.fork() == 0: time.sleep(60)\n{fault}\nsx.barrier()"
    )
    ended = run_ranks(2, str(script), limit=20)
    assert (ended.code != 0) == bool(fault)
    assert fault or "which one of them has started, keeps their output open" in ended.err
    assert not ended.left
