"""`benchmarks compare`: that it compares the same work, says who is missing, leaves nothing behind. Never how fast."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sorix_dist.launch import LaunchError
from sorix_dist.watchdog.process import descendants
from tests.benchmarks.__main__ import main
from tests.benchmarks.compare.arena import Arena, measures_memory, proportional
from tests.benchmarks.compare.contest import Plan, _Contest, measure
from tests.benchmarks.compare.contestants import OF_DDP, OURS, Contestant, Interpreters, field
from tests.benchmarks.compare.installed import installed
from tests.benchmarks.compare.table import tables
from tests.benchmarks.workloads import WORKLOADS, store, training_step
from tests.support.jobs import ROOT, job, survivors
from tests.support.launching import needs_mpirun, run_command

BENCHMARKS = (sys.executable, "-m", "tests.benchmarks")
TINY = Plan(workloads=("W3",), turn=0.001, seconds=0.01, rounds=2, sizes=(4096,), crowded=False, memory=(), imports=1)
FIRST = field(2)[0]
TWO = Contestant("two ranks", OURS, ranks=2)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def arena(*contestants: Contestant) -> Arena:
    return Arena(contestants, Interpreters())


def test_it_runs_in_an_environment_without_pytest() -> None:
    code = "import sys; sys.modules['pytest'] = None; import tests.benchmarks.__main__, tests.benchmarks.local_sgd"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@needs_mpirun
@pytest.mark.timeout(400)
def test_alone_it_says_who_is_missing() -> None:
    said: list[str] = []
    results = measure(replace(TINY, libraries=("nobody",), crowded=True, memory=("W3",)), said.append)
    assert said == ["training steps of W3", "more ranks than cores", "sums over ranks", "memory of W3", "imports"]
    assert json.loads(json.dumps(results)) == results
    assert {*results} == {
        "version", "ranks", "date", "machine", "libraries", "left out", "workloads", "training", "crowded", "sums",
        "memory", "imports", "installed", "seconds",
    }  # fmt: skip
    assert {*results["machine"]} == {"cpu", "cores", "blas", "numpy", "python", "mpi", "system", "load"}
    assert results["left out"] == {"nobody": "ModuleNotFoundError: No module named 'nobody'"}
    assert [*results["libraries"]] == [OURS]
    ours = [contestant.name for contestant in field(2) if contestant.peer == OURS]
    found = results["training"]["W3"]
    assert {act: [*names] for act, names in found.items()} == {
        "step": ours, "products": ours[:2], "weak step": ours[:1]
    }  # fmt: skip
    for times in (each for names in found.values() for each in names.values()):
        assert 0 < times["p10"] <= times["median"]
        assert times["count"] >= 4
    assert [*results["crowded"]] == [ours[0], "sorix_dist, 4 ranks", "sorix_dist, 4 ranks, default start"]
    assert [*results["sums"]["4096"]] == ["backward", "all_reduce", "memcpy"]
    assert [*results["imports"]] == ["numpy", OURS]
    if measures_memory():
        assert 10e6 < results["memory"]["W3"][ours[0]] < 1e9
    text = tables(results)
    for word in ("Left out: nobody (ModuleNotFoundError", "nobody else", "weak scaling", "4 KB", "default start"):
        assert word in text
    assert "torch DDP" not in text


@needs_mpirun
@pytest.mark.timeout(400)
def test_torch_does_the_same_work() -> None:
    pytest.importorskip("torch")
    names = ("W3", "W4", "W5", "W6", "W7", "W8", "W9")
    results = measure(replace(TINY, workloads=names, libraries=("torch",), rounds=1), lambda what: None)
    assert results["left out"] == {}  # and their losses were those of this package, else LaunchError
    for name, found in results["training"].items():
        assert [*found["step"]] == [
            each.name for each in field(2) if each.peer in (OURS, "torch") and each.trains(name)
        ]
        assert ("torch DDP (gloo), 2 ranks" in found["weak step"]) == (name in OF_DDP)
    assert "torch DDP (gloo), 2 ranks" in results["sums"]["4096"]["all_reduce"]
    assert "torch DDP: strong scaling" in tables(results)


@needs_mpirun
@pytest.mark.timeout(400)
@pytest.mark.parametrize("library", ["jax", "sorix"])
def test_others_do_the_same_work(library: str) -> None:
    pytest.importorskip(library)
    names = ("W3", *(("W6", "W9") if library == "jax" else ()))
    results = measure(replace(TINY, workloads=names, libraries=(library,), sizes=()), lambda what: None)
    assert all(f"{library}, 1 thread" in found["step"] for found in results["training"].values())


@needs_mpirun
@pytest.mark.timeout(400)
def test_the_command_writes_results_and_chart(tmp_path: Path) -> None:
    results, chart = tmp_path / "bench.json", tmp_path / "bench.png"
    options = ["--quick", "--workloads", "W3", "--json", str(results), "--chart", str(chart)]
    ended = run_command([*BENCHMARKS, "compare", *options], limit=300)  # it may be busy with many libraries
    output = ended.out + ended.err
    assert ended.code == 0, output
    assert ended.left == ()
    assert "W3: MLP 64-64-10, batch 64" in output
    assert [*json.loads(results.read_text())["training"]] == ["W3"]
    if importlib.util.find_spec("matplotlib"):
        assert chart.read_bytes().startswith(b"\x89PNG")
        assert "no chart" not in output
    else:
        assert f"no chart: ModuleNotFoundError: No module named 'matplotlib' (in {sys.executable})" in output
    assert {path.name for path in tmp_path.iterdir()} <= {"bench.json", "bench.png"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--json", "/nowhere/bench.json"], "--json: '/nowhere/bench.json' is not a file that can be written"),
        (["--chart", "."], "--chart: '.' is not a file that can be written"),
        (["--peers", "/nowhere/python"], "/nowhere/python could not be started: No such file or directory"),
        (["--sorix", "/nowhere/python"], "/nowhere/python could not be started: No such file or directory"),
        (["--workloads", "W10"], "invalid choice: 'W10'"),
        (["--ranks", "1"], "--ranks: expected a number from 2 on that divides the batches, got 1"),
        (["--ranks", "3"], "--ranks: expected a number from 2 on that divides the batches, got 3"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("benchmarks compare: error: ")
    assert said in error


@needs_mpirun
@pytest.mark.timeout(400)
def test_a_signal_ends_all_processes() -> None:
    with job([*BENCHMARKS, "compare", "--workloads", "W3"]) as process:
        assert process.stdout is not None
        while "training steps" not in process.stdout.readline():
            assert process.poll() is None
        end = time.monotonic() + 20
        while len(started := descendants(process.pid)) < 4 and time.monotonic() < end:
            time.sleep(0.05)
        assert len(started) >= 4
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(40) == 128 + signal.SIGTERM
        assert survivors(started) == []


@needs_mpirun
@pytest.mark.timeout(400)
@pytest.mark.skipif(not measures_memory(), reason="needs /proc")
def test_ranks_that_wait_use_no_core() -> None:
    with arena(TWO) as waiting:
        waiting.prepare(TWO.name, "all_reduce", numbers=1)
        waiting.turn(TWO.name, "all_reduce", 3)
        pids = [rank.pid for rank in waiting.seats[TWO.name].ranks]
        time.sleep(0.3)
        before = [_used(pid) for pid in pids]
        time.sleep(1)
        assert all(_used(pid) - used < 0.2 for pid, used in zip(pids, before, strict=True))


def _used(pid: int) -> float:
    """Seconds of all cores that a process has used."""
    times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")


@needs_mpirun
@pytest.mark.timeout(400)
def test_a_rank_that_dies_is_an_error_and_leaves_nobody() -> None:
    with arena(TWO) as killed:
        seat = killed.seats[TWO.name]
        left = descendants(os.getpid())
        os.kill(seat.ranks[1].pid, signal.SIGKILL)
        with pytest.raises(LaunchError, match=r"two ranks (failed: the process has ended|has ended)"):
            seat.ask(prepare="all_reduce", act="all_reduce", numbers=1)
    assert survivors(left) == []


def test_who_does_not_start_is_left_out_but_not_this_package() -> None:
    one = Contestant("one rank", OURS)
    with arena(one, Contestant("somebody", "nobody")) as opened:
        assert [*opened.seats] == ["one rank"]
        assert "somebody did not start; " in opened.failed["somebody"]
        assert "No module named 'with_nobody'" in opened.failed["somebody"]
        with pytest.raises(LaunchError, match="one rank failed: AttributeError"):
            opened.prepare("one rank", "dance")
    with pytest.raises(LaunchError, match="idle did not start"), arena(replace(one, name="idle", threads=-1)):
        pass


@pytest.mark.parametrize("difference", [0.0, 1e-3])
def test_other_work_is_an_error(difference: float, tmp_path: Path) -> None:
    class Two:
        seats = ("one", "two")

        def prepare(self, *_: Any, **options: Any) -> None:
            assert Path(options["path"]).exists()

        def losses(self, name: str, act: str, count: int) -> list[float]:
            return [2.0 + difference * (name == "two")] * count

    contest: Any = _Contest(replace(TINY, libraries=()), print, tmp_path)
    if difference:
        with pytest.raises(LaunchError, match="two computes something else: its losses of W3 are"):
            contest._steps(Two(), "W3")
    else:
        assert contest._steps(Two(), "W3") == [("one", "step"), ("two", "step")]


def test_others_get_the_weights_and_batches_of_a_step(tmp_path: Path) -> None:
    """The first loss by hand from the file, whose weights have the layout of PyTorch."""
    store(WORKLOADS["W3"], tmp_path / "W3.npz")
    stored = np.load(tmp_path / "W3.npz")
    w1, b1, w2, b2 = (stored[f"arr_{i}"] for i in range(4))
    assert (w1.shape, b1.shape) == ((64, 64), (64,))
    assert (w2.shape, b2.shape) == ((10, 64), (10,))
    assert stored["sizes"].tolist() == [64, 64, 10]
    scores = np.maximum(stored["x"][0] @ w1.T + b1, 0) @ w2.T + b2
    labels = stored["y"][0]
    wanted = np.mean(np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(labels)), labels])
    assert training_step(WORKLOADS["W3"])().item() == pytest.approx(wanted, rel=1e-5)


def test_installed_counts_what_is_required() -> None:
    sizes = installed("MPICH Version: 5")
    numpy = sum(path.stat().st_size for path in Path(np.__file__).parent.rglob("*.so"))
    assert numpy < sizes["sorix_dist[mpi]"] < 1e9


@pytest.mark.skipif(not measures_memory(), reason="needs /proc")
def test_memory_is_that_of_the_process() -> None:
    before = proportional(os.getpid())
    held = np.ones(400_000_000, np.uint8)
    assert proportional(os.getpid()) - before == pytest.approx(held.size, rel=0.1)
    assert held[0] == 1
