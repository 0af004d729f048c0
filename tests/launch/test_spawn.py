"""`sx.run`: one function on several ranks, from whatever process has defined it."""

from __future__ import annotations

import contextlib
import linecache
import os
import pickle
import pty
import re
import signal
import stat
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import parallel
from sorix_dist.launch import LaunchError, RankError, private
from sorix_dist.launch.command import HOSTS_FROM_OUTSIDE
from sorix_dist.watchdog import leftovers
from sorix_dist.watchdog.launcher import detect
from tests.support.jobs import LIMIT, ROOT, SAY_SHARED, job, shared, survivors
from tests.support.launching import needs_mpirun, run_command, run_ranks


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Where private folders come to be; in the end none is left."""
    for name in (*HOSTS_FROM_OUTSIDE, "MPI4PY_LIBMPI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    folder = tmp_path / "private"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    assert list(folder.glob("sorix_dist-*")) == []


@needs_mpirun
def test_ranks_that_stay_after_their_results_are_ended() -> None:
    def stay() -> int:
        import atexit
        import time

        atexit.register(time.sleep, 100)
        return parallel.rank()

    with pytest.warns(RuntimeWarning, match="all ranks have returned their results, but their processes did not end"):
        assert sx.run(stay, num_proc=2, timeout=60) == [0, 1]


@needs_mpirun
def test_results_come_in_rank_order(capsys: pytest.CaptureFixture[str]) -> None:
    factor = 10

    class Local:
        def __init__(self, value: float) -> None:
            self.value = value

    def work(start: int, *, step: int) -> Local:
        print(f"rank {sx.rank()} of {sx.size()}")
        total = sx.all_reduce(np.full(2, float(sx.rank())))
        print("last words", end="")
        return Local(start + factor * step * sx.rank() + float(total[0]))

    results = sx.run(work, (1,), {"step": 2}, num_proc=3)
    assert [result.value for result in results] == [4.0, 24.0, 44.0]
    assert type(results[0]).__name__ == "Local"
    lines = capsys.readouterr().out.splitlines()
    for rank in range(3):
        mine = [line for line in lines if line.startswith(f"[{rank}] ")]
        assert mine == [f"[{rank}] rank {rank} of 3", f"[{rank}] last words"]
    assert len(lines) == 6


@pytest.mark.parametrize("num_proc", [1, pytest.param(2, marks=needs_mpirun)])
def test_ranks_are_other_processes_with_variables_of_their_own(num_proc: int, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = list(sys.path)
    monkeypatch.setattr(sys, "path", [*paths, Path("beside")])
    found = sx.run(lambda: (os.getpid(), os.environ["MINE"], sys.path), num_proc=num_proc, env={"MINE": "x y"})
    assert len({os.getpid(), *(pid for pid, _, _ in found)}) == num_proc + 1
    assert [value for _, value, _ in found] == ["x y"] * num_proc
    assert all(path == paths for _, _, path in found)
    assert "MINE" not in os.environ


@needs_mpirun
def test_an_exception_comes_with_its_rank_and_the_ranks_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        if sx.rank() == 1:
            raise KeyError("the reason")
        sx.barrier()

    began = time.monotonic()
    with pytest.raises(KeyError, match="the reason") as caught:
        sx.run(fails, num_proc=3)
    assert time.monotonic() - began < 20
    assert caught.value.__notes__ == ["raised on rank 1 of 3"]
    assert re.search(r'File ".*test_spawn\.py", line \d+, in fails\n *raise KeyError', str(caught.value.__cause__))
    assert "Traceback" in str(caught.value.__cause__)
    assert "Traceback" not in capsys.readouterr().out


def test_the_traceback_has_the_lines_of_a_notebooks_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    source = "def fails(x):\n    return inner(x)\ndef inner(x):\n    return 1 / x  # in a cell\n"
    monkeypatch.setitem(linecache.cache, "<cell 1>", (len(source), None, source.splitlines(True), "<cell 1>"))
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "<cell 1>", "exec"), names)
    with pytest.raises(ZeroDivisionError) as caught:
        sx.run(names["fails"], (0,), num_proc=1)
    assert "return inner(x)\n" in str(caught.value.__cause__)
    assert "return 1 / x  # in a cell\n" in str(caught.value.__cause__)


class Picky(Exception):
    """Cannot be unpickled: it wants two arguments and remembers one."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


class Unreadable:
    def __reduce__(self) -> tuple[type, tuple[str]]:
        return int, ("one",)


def test_exceptions_that_cannot_travel_come_as_text() -> None:
    def picky() -> None:
        raise Picky("first", "second")

    with pytest.raises(RankError, match=r"rank 0 of 1 ended by .*Picky: first") as caught:
        sx.run(picky, num_proc=1)
    assert "in picky\n" in str(caught.value.__cause__)
    with pytest.raises(RankError, match=r"rank 0 of 1 ended by sys\.exit\(3\)"):
        sx.run(lambda: sys.exit(3), num_proc=1)
    with pytest.raises(TypeError, match="the result, of type generator, cannot be pickled"):
        sx.run(lambda: (number for number in range(3)), num_proc=1)
    with pytest.raises(ValueError, match="invalid literal for int") as broken:
        sx.run(Unreadable, num_proc=1)
    assert broken.value.__notes__ == ["while the result of rank 0 was unpickled"]


def test_a_figure_is_a_result_that_opens_no_window() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    figure, axis = pyplot.subplots()
    axis.plot([1, 2])
    sent = private.dumps_result(figure)
    assert len(pickle.loads(sent).axes) == 1
    assert pyplot.get_fignums() == []


@needs_mpirun
@pytest.mark.parametrize("end", [lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: os._exit(5)])
def test_a_rank_that_dies_is_an_error(end: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    def dies() -> None:
        window = parallel.world().window(1 << 16)
        exec(SAY_SHARED, {"os": os})
        window.barrier()
        if sx.rank() == 1:
            end()
        time.sleep(1)

    words = r"the launcher ended with code \d+, but there is no result of rank"
    with pytest.raises(RankError, match=words) as caught:
        sx.run(dies, num_proc=2, timeout=LIMIT)
    assert not re.search(r"={20}|-{20}", str(caught.value))  # no banner of MPI's below the cause
    output = capsys.readouterr().out
    assert "shared /dev/shm/" in output
    assert shared(output) == []


@needs_mpirun
def test_a_time_out_ends_all_ranks(tmp_path: Path) -> None:
    def sleeps() -> None:
        (tmp_path / f"pid-{os.getpid()}").touch()
        if sx.rank() == 0:
            time.sleep(100)
        sx.barrier()

    with pytest.raises(TimeoutError, match=r"not done after 4 s; there is no result of ranks 0, 1$"):
        sx.run(sleeps, num_proc=2, timeout=4)
    pids = [int(path.name[4:]) for path in tmp_path.glob("pid-*")]
    assert len(pids) == 2
    assert survivors(pids) == []


CALLER = """
import os, sys, time
import sorix_dist as sx

path = sys.argv[1]

def work():
    with open(path, "a") as file:  # not printed: their output comes to the caller alone
        print(os.getpid(), file=file)
    if sx.rank() == 0:
        time.sleep(100)
    sx.barrier()

sx.run(work, num_proc=2)
"""


@needs_mpirun
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_end_of_the_caller_is_the_end_of_its_ranks(tmp_path: Path, number: signal.Signals, folder: Path) -> None:
    began = leftovers.now()
    (tmp_path / "caller.py").write_text(CALLER)
    (tmp_path / "pids").touch()
    with job([sys.executable, str(tmp_path / "caller.py"), str(tmp_path / "pids")]) as process:
        limit = time.monotonic() + LIMIT
        while len(pids := (tmp_path / "pids").read_text().split()) < 2:
            assert time.monotonic() < limit
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        (private,) = folder.glob("sorix_dist-*")
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in private.iterdir()}
        assert modes == dict.fromkeys(["call", "caller", "output-0", "output-1"], 0o600)
        process.send_signal(number)
        code = process.wait(20)
        assert code == (-signal.SIGKILL if number == signal.SIGKILL else -signal.SIGINT)
        assert survivors([int(pid) for pid in pids]) == []
    limit = time.monotonic() + 10
    while list(folder.glob("sorix_dist-*")) and time.monotonic() < limit:  # a rank removes it after a kill
        time.sleep(0.05)
    if number == signal.SIGKILL:  # nobody was left to remove what a killed MPI leaves
        leftovers.clean_up(began)


@needs_mpirun
def test_it_works_from_standard_input_as_in_a_repl() -> None:
    typed = "import sorix_dist as sx\nclass A: x = 7\nprint(sx.run(lambda: (sx.rank(), A().x), num_proc=2))\n"
    with job([sys.executable, "-"], stdin=subprocess.PIPE) as process:
        output, _ = process.communicate(typed, timeout=LIMIT)
    assert (process.returncode, output) == (0, "[(0, 7), (1, 7)]\n")


def test_threads_need_no_mpi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    seen: list[int] = []

    def work(start: int, step: int) -> tuple[int, int]:
        seen.append(1)
        return start + step * sx.rank(), len(seen)

    assert sx.run(work, (5,), {"step": 2}, num_proc=3, backend="threads") == [(5, 1), (7, 1), (9, 1)]
    assert seen == []
    with pytest.raises(LaunchError, match=r'pip install "sorix_dist\[mpi\]".*backend="threads"'):
        sx.run(work, (5, 2))


def test_a_thread_that_exits_does_not_end_the_caller() -> None:
    with pytest.raises(RankError, match=r"a rank ended by sys\.exit\(3\)") as raised:
        sx.run(sys.exit, (3,), num_proc=2, backend="threads")
    assert re.fullmatch(r"raised on rank [01] of 2", raised.value.__cause__.__notes__[0])  # type: ignore[union-attr]


def test_a_rank_starts_no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setenv("PMI_SIZE", "2")
    assert detect(os.environ) is not None
    with pytest.raises(LaunchError, match=r"this process is one already \(rank 1 of 2, by PMI\): call the function"):
        sx.run(lambda: None)


@needs_mpirun
def test_a_rank_starts_no_ranks_for_real() -> None:
    ended = run_ranks(2, "-c", "import sorix_dist as sx\nsx.run(lambda: None)")
    assert ended.code != 0
    assert ended.err.count("run starts ranks of its own, but this process is one already") == 1


@needs_mpirun
def test_a_process_whose_own_mpi_is_alone_may_start_ranks() -> None:
    script = "from mpi4py import MPI\nimport sorix_dist as sx\nprint(sx.run(lambda: sx.size(), num_proc=2))"
    began = leftovers.now()
    ended = run_command([sys.executable, "-c", script])
    leftovers.clean_up(began)  # Open MPI alone, without mpirun, never removes its own
    assert (ended.code, ended.out) == (0, "[2, 2]\n"), ended.err


@needs_mpirun
def test_an_allocation_does_not_send_ranks_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "nowhere[1-2]")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert sx.run(lambda: (sx.size(), "SLURM_JOB_ID" in os.environ), num_proc=2) == [(2, False)] * 2


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"fn": 3}, TypeError, "fn must be a function, got int"),
        ({"args": 0.1}, TypeError, "args must be a tuple of the function's arguments, .*got 0.1"),
        ({"args": 3}, TypeError, r"such as \(x,\), got 3; num_proc=3 is the number of ranks"),
        ({"args": "ab"}, TypeError, "args must be a tuple of the function's arguments, .*got 'ab'"),
        ({"num_proc": 0}, ValueError, "num_proc must be a whole number of at least 1, got 0"),
        ({"num_proc": 2.0}, ValueError, "num_proc must be .* got 2.0"),
        (
            {"num_proc": 100_000},
            ValueError,
            r"num_proc must be at most \d+, 8 for each of the \d+ usable",
        ),
        ({"backend": "gloo"}, ValueError, "backend must be one of 'mpi', 'threads', got 'gloo'"),
        ({"timeout": 0}, ValueError, "timeout must be a number of seconds above 0, or None, got 0"),
        ({"env": {"A": 1}}, TypeError, "env must map names to strings, got 'A': 1"),
        ({"env": {"A": "1"}, "backend": "threads"}, ValueError, "env is for processes"),
    ],
)
def test_bad_arguments_are_named(settings: dict[str, object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        sx.run(**{"fn": print} | settings)  # type: ignore[arg-type]


SHADOWS = (
    "json",
    "pathlib",
    "pickle",
    "threading",
    "traceback",
    "signal",
    "re",
    "subprocess",
    "numpy",
    "mpi4py",
    "site",
)


@needs_mpirun
@pytest.mark.parametrize("added", ["", "sys.path.insert(0, ''); "], ids=["as it is", "with the folder in the path"])
def test_files_of_the_current_folder_are_not_run(added: str, tmp_path: Path) -> None:
    """A script elsewhere, called where somebody has left a json.py; or a notebook, whose folder came later."""
    place = tmp_path / "place"
    place.mkdir()
    for name in SHADOWS if not added else ("json", "pathlib", "pickle", "threading", "traceback", "signal"):
        (place / f"{name}.py").write_text(f"open({str(tmp_path / 'run')!r}, 'a').write('{name} ')\nraise SystemExit(3)")
    script = tmp_path / "script.py"
    begin = f"import os, sys; os.chdir({str(place)!r}); import sorix_dist as sx; "
    script.write_text(f"{begin}{added}print(sx.run(sx.rank))")
    ended = run_command([sys.executable, str(script)], limit=60)
    assert (ended.out, ended.code) == ("[0, 1]\n", 0), ended.err
    assert not (tmp_path / "run").exists(), (tmp_path / "run").read_text()


def test_names_what_cannot_be_sent() -> None:
    file = open(__file__, "rb")  # noqa: SIM115 - closed below
    holder = {"handle": file}

    def inner() -> object:
        return holder

    def train() -> object:
        return inner()

    with file:
        for backend in ("mpi", "threads"):
            with pytest.raises(
                TypeError,
                match=r"inner' uses the variable 'holder' \(dict\), which can't be sent to the ranks",
            ):
                sx.run(train, num_proc=1, backend=backend)
        with pytest.raises(TypeError, match=r"argument 1 of '.*' can't be sent"):
            sx.run(lambda a, b: None, (1, file), num_proc=1)
        with pytest.raises(TypeError, match=r"argument 'b' of '.*' can't be sent"):
            sx.run(lambda b: None, kwargs={"b": file}, num_proc=1)
    space: dict[str, object] = {"data": threading.Lock(), "__name__": "__main__"}
    exec("def first():\n    return second()\n\ndef second():\n    return [data for _ in range(2)]", space)
    with pytest.raises(TypeError, match=r"^'second' uses the global 'data' \(lock\), which can't be sent to the ranks"):
        sx.run(space["first"], num_proc=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("stream", [None, SimpleNamespace(write=len)])
def test_a_program_without_a_usable_output(stream: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", stream)
    assert sx.run(print, ("lost",), num_proc=1) == [None]


def test_unfinished_lines_on_a_terminal() -> None:
    """A progress bar of a rank is written over in place, above it come whole lines."""
    script = (
        "import sys, time, sorix_dist as sx\n"
        "def work():\n"
        "    import sys, time\n"
        "    for i in range(3):\n"
        "        print(f'\\rstep {i}', end='', flush=True); time.sleep(0.3)\n"
        "    print('\\rdone  ')\n"
        "sx.run(work, num_proc=1)\n"
    )
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (30, 100))
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # nobody has the terminal open any more
        while data := os.read(ours, 1 << 16):
            written += data
    os.close(ours)
    assert process.wait(60) == 0
    text = written.decode()
    assert re.search(r"\[0\] step 1\r +\r\[0\] step 2", text)
    assert text.replace("\r\n", "\n").rpartition("\r")[2] == "[0] done  \n"
