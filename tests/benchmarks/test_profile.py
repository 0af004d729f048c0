"""`benchmarks profile`: that it measures everything, fails in words, and leaves nothing behind. Never how fast."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sorix_dist.core.ops import matrix
from sorix_dist.watchdog.process import descendants
from tests.benchmarks.__main__ import main
from tests.benchmarks.measure import interleaved, summary
from tests.benchmarks.products import convolved, dense, multiply
from tests.benchmarks.report import report
from tests.benchmarks.run import Plan, measure, sorix_here
from tests.benchmarks.workloads import WORKLOADS, training_step
from tests.support.jobs import ROOT, finished, job, survivors
from tests.support.launching import needs_mpirun

BENCHMARKS = (sys.executable, "-m", "tests.benchmarks")


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_quick_measures_everything(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    code, output = finished([*BENCHMARKS, "profile", "--quick", "--json", str(path)])
    assert code == 0, output
    results = json.loads(path.read_text())
    assert {*results["machine"]} == {"cpu", "cores", "blas", "numpy", "python", "mpi", "system", "load"}
    assert "1 thread(s) a rank" in results["machine"]["blas"]
    for mode in ("on", "off"):
        found = results["tape"]["collector"][mode]
        assert {*found} == {"record", "walk", "numpy", "overhead"}
        _check_times(found, "record", "walk", "numpy")
    assert len(results["convolution"]) == 2
    for found in results["convolution"].values():
        _check_times(found, "convolution", "products")
        assert found["ratio"] == found["convolution"]["p10"] / found["products"]["p10"]
    assert [*results["steps"]] == [*results["workloads"]] == ["W1", "W3", "W4", "W5"]
    for by_ranks in results["steps"].values():
        assert [*by_ranks] == ["1"]
        _check_times(by_ranks["1"], "step", "products")
    assert [*results["synchronisation"]] == ["W1", "W3"]
    for by_ranks in results["synchronisation"].values():
        _check_times(by_ranks["1"], "synchronisation", "all_reduce", "agreement", "barriers")
    assert {name: [*by_ranks] for name, by_ranks in results["reproducible steps"].items()} == {
        name: ["1"] for name in results["steps"]
    }
    memory = results["memory"]["sorix_dist"]
    # Weights, gradients and momentum of W1, at least, and more while a step lasts.
    assert 3 * 4 * (784 * 512 + 512 * 512 + 512 * 10) < memory["between"] < memory["peak"]
    for name in ("W1", "W4", "Tape", "Convolution", "Memory", "DistributedDataParallel"):
        assert name in output


def _check_times(found: dict[str, Any], *names: str) -> None:
    for name in names:
        assert {*found[name]} == {"median", "p10", "count"}
        assert 0 < found[name]["p10"] <= found[name]["median"]
        assert found[name]["count"] >= 3


@needs_mpirun
@pytest.mark.timeout(400)
def test_ranks_are_compared_with_one() -> None:
    plan = Plan(workloads=("W3",), ranks=(1, 2), rounds=2, seconds=0.05, nodes=100)
    said: list[str] = []
    results = measure(plan, said.append)
    steps = [
        f"{mode} on {ranks} rank(s), round {number} of 2"
        for number in (1, 2)
        for ranks in (1, 2)
        for mode in ("steps", "reproducible steps")
    ]
    assert said == ["memory", "tape", "convolution", *steps]
    assert [*results["steps"]["W3"]] == [*results["synchronisation"]["W1"]] == ["1", "2"]
    _check_times(results["steps"]["W3"]["2"], "step", "products")
    assert "MPI" in results["machine"]["mpi"]
    table = report(results)
    assert "speed-up" in table
    assert "noisy" in report({**results, "machine": {**results["machine"], "load": 100.0}})
    assert "noisy" not in report({**results, "machine": {**results["machine"], "load": 0.0}})


def test_no_mpirun_is_said_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "prefix", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["profile"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("benchmarks profile: error: no mpirun found")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--json", "/nowhere/profile.json"], "--json: '/nowhere/profile.json' is not a file that can be written"),
        (["--json", "."], "--json: '.' is not a file that can be written"),
        (["--sorix", "/nowhere/python"], "/nowhere/python could not be started: No such file or directory"),
        (["--quick", "--long"], "not allowed with argument"),
        (["--ranks", "0"], "expected a whole number of at least 1, got '0'"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", *arguments]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("measuring")]
    assert len(error) == 1
    assert error[0].startswith("benchmarks profile: error: ")
    assert said in error[0]


@pytest.mark.skipif(sorix_here() is not None, reason="sorix is installed here")
def test_an_interpreter_without_sorix_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--quick", "--sorix", sys.executable]) == 2
    assert "the memory of sorix failed with exit code 1" in capsys.readouterr().err


def test_a_signal_ends_all_processes() -> None:
    with job([*BENCHMARKS, "profile", "--ranks", "1"]) as process:
        assert process.stdout is not None
        while "convolution" not in process.stdout.readline():
            assert process.poll() is None
        end = time.monotonic() + 10
        while not (started := descendants(process.pid)) and time.monotonic() < end:
            time.sleep(0.05)
        assert started
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
        assert survivors(started) == []


@pytest.mark.parametrize("name", [name for name in WORKLOADS if name != "W2"])
def test_products_are_those_of_the_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many multiplications as NumPy is asked for in a step, within what rounding to tiles leaves out."""
    step, made = training_step(WORKLOADS[name]), []

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(left: Any, right: Any, *out: Any, **options: Any) -> Any:
            product = function(left, right, *out, **options)
            made.append(product.size * left.shape[-1])
            return product

        return counted

    monkeypatch.setattr(np, "matmul", counting(np.matmul))
    monkeypatch.setattr(matrix, "dot", counting(matrix.dot))
    step()
    monkeypatch.undo()
    wanted = sum(p.times * p.out.size * p.left.shape[-1] for p in WORKLOADS[name].products(WORKLOADS[name].rows))
    assert sum(made) == pytest.approx(wanted, rel=1e-3)


def test_products_write_what_they_say() -> None:
    products = [*dense(5, 3, 2), *convolved(7, 3, 2, first=True)]
    values = [product.out.copy() for product in products]
    for product in products:
        product.out[...] = 0
    multiply(products)
    for product, value in zip(products, values, strict=True):
        np.testing.assert_array_equal(product.out, value)


def test_competitors_take_turns() -> None:
    calls: list[str] = []
    times = interleaved({"a": lambda: time.sleep(0.03) or calls.append("a"), "b": lambda: calls.append("b")}, 0.01)
    assert len(times["a"]) == 3
    assert len(times["b"]) > 100
    changes = [name for name, before in zip(calls, ["", *calls]) if name != before]
    assert changes == ["a", "b"] * (len(changes) // 2)
    assert len(changes) == 2 * (1 + 3)


def test_summary() -> None:
    assert summary(iter([5.0, 1.0, 2.0, 4.0, 3.0])) == {"median": 3.0, "p10": pytest.approx(1.4), "count": 5}


@needs_mpirun
@pytest.mark.timeout(400)
@pytest.mark.parametrize("ranks", ["1", "2"])
def test_where_the_time_of_a_step_goes(ranks: str, tmp_path: Path) -> None:
    path = tmp_path / "step.json"
    code, output = finished([*BENCHMARKS, "profile", "--quick", "--step", "W3", "-n", ranks, "--json", str(path)])
    assert code == 0, output
    results = json.loads(path.read_text())
    parts = {name: found["median"] for name, found in results["parts"].items()}
    assert {"step", "zero_grad", "forward", "backward", "optimizer"} == {name for name in parts if ":" not in name}
    assert {"forward: products", "backward: products"} <= parts.keys()
    for part in ("agreement, waiting for the others", "sum over the ranks", "added to grad"):
        assert parts[f"backward: {part}"] > 0
    for stage in ("forward", "backward"):
        assert 0 < sum(time for name, time in parts.items() if name.startswith(f"{stage}: ")) < 1.5 * parts[stage]
    calls = {where.rpartition(" ")[2]: count for where, count, _ in results["functions"]}
    expected = {"linear": 2, "apply": 4, "walk": 1}  # layers, operations, backwards
    found = expected.keys() & calls.keys()  # which functions are the slowest differs from run to run
    assert found
    assert {name: calls[name] for name in found} == pytest.approx({name: expected[name] for name in found})
    for word in ("W3: MLP 64-64-10, batch 64", f"on {ranks} rank(s)", "all else", " core/"):
        assert word in output
