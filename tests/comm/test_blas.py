"""The BLAS threads of ranks that share a host."""

from __future__ import annotations

import json
import re
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sorix_dist.comm import Solo, blas, current, run_threads
from tests.support.launching import needs_mpirun, run_command, run_ranks

TWO_HERE = {"PMI_RANK": "0", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"}


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Keep the threads of this process as they are; return what would have been set."""
    limits: list[int] = []
    monkeypatch.setattr("threadpoolctl.threadpool_limits", lambda limits, user_api: _record(limits, user_api))
    monkeypatch.setattr(blas, "_set_here", {})

    def _record(number: int, user_api: str) -> None:
        assert user_api == "blas"
        limits.append(number)

    return limits


def with_cpus(monkeypatch: pytest.MonkeyPatch, *cpus: int) -> None:
    monkeypatch.setattr(blas, "own_cpus", lambda: set(cpus))


def test_early_cap(monkeypatch: pytest.MonkeyPatch, nothing_is_set: list[int]) -> None:
    with_cpus(monkeypatch, *range(8))
    environ = dict(TWO_HERE)
    assert blas.cap_early(environ) == 4
    assert {environ[name] for name in blas.VARIABLES} == {"4"}
    assert nothing_is_set == [4]  # NumPy is loaded here
    assert blas.cap_early(environ) == 4  # what it has set itself is not the user's


@pytest.mark.parametrize("name", blas.VARIABLES)
def test_the_users_number_is_respected(monkeypatch: pytest.MonkeyPatch, name: str, nothing_is_set: list[int]) -> None:
    with_cpus(monkeypatch, 0, 1)
    environ = TWO_HERE | {name: "1"}
    assert blas.cap_early(environ) is None
    assert blas.cap(Solo(), "auto", environ) is None
    assert environ == TWO_HERE | {name: "1"}
    assert nothing_is_set == []


def test_a_users_number_that_is_too_large_is_respected_with_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_cpus(monkeypatch, 0, 1)
    with pytest.warns(RuntimeWarning, match="OMP_NUM_THREADS=2 gives 2 ranks of this host 2 BLAS threads each on 2"):
        assert blas.cap(Solo(), "auto", TWO_HERE | {"OMP_NUM_THREADS": "2"}) is None


@pytest.mark.parametrize("cores", [1, 2])
def test_one_thread_is_never_too_many(monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    with_cpus(monkeypatch, *range(cores))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert blas.cap(Solo(), "auto", TWO_HERE | {"OMP_NUM_THREADS": "1"}) is None


def test_an_int_is_obeyed(monkeypatch: pytest.MonkeyPatch, nothing_is_set: list[int]) -> None:
    with_cpus(monkeypatch, 0, 1)
    environ = {"OMP_NUM_THREADS": "1"}
    with pytest.warns(RuntimeWarning, match="threads=3 gives this process 3 BLAS threads on 2 cores, which is slow"):
        assert blas.cap(Solo(), 3, environ) == 3
    assert environ == dict.fromkeys(blas.VARIABLES, "3")
    assert nothing_is_set == [3]


def test_one_rank_alone_is_not_capped(nothing_is_set: list[int]) -> None:
    environ: dict[str, str] = {}
    assert blas.cap_early(environ) is None
    assert blas.cap_early({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}) is None
    assert blas.cap_early({"FLUX_TASK_RANK": "0", "FLUX_JOB_SIZE": "4"}) is None  # says nothing of this host
    assert blas.cap(Solo(), "auto", environ) is None
    assert environ == {}
    assert nothing_is_set == []


@pytest.mark.parametrize(
    ("cpus", "hosts", "expected"),
    [
        ([[0, 1, 2, 3]] * 2, 1, [2, 2]),  # unbound: the host's cores are shared
        ([[0, 1, 2, 3]] * 3, 1, [1, 1, 1]),
        ([[0], [1], [0]], 1, [1, 1, 1]),
        ([[0, 1], [2, 3]], 1, [2, 2]),  # bound to two each: all of them
        ([[0], [1, 2, 3, 4, 5]], 1, [1, 3]),  # never more than a rank may use
        ([[0, 1], [0, 1], [0, 1, 2, 3]], 2, [1, 1, None]),  # alone on the second host
        ([[0, 1, 2, 3]] * 4, 2, [2, 2, 2, 2]),
    ],
)
def test_cores_are_counted_once_per_host(
    monkeypatch: pytest.MonkeyPatch, cpus: list[list[int]], hosts: int, expected: list[int | None]
) -> None:
    monkeypatch.setattr(blas, "own_cpus", lambda: set(cpus[current().rank]))

    def rank() -> int | None:
        return blas.cap(current(), "auto", {})

    assert run_threads(rank, len(cpus), hosts=hosts) == expected


def test_a_containers_quota_is_shared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with_cpus(monkeypatch, *range(64))
    monkeypatch.setattr(blas, "cut_to_quota", lambda cpus: min(cpus, 4))
    assert blas.cap_early(dict(TWO_HERE)) == 2
    assert run_threads(lambda: blas.cap(current(), "auto", {}), 2) == [2, 2]
    assert blas.cap(Solo(), "auto", {}) == 4  # 64 threads would take turns in the time of 4 CPUs


PRINT_THREADS = """
import json, os, sys
if sys.argv[1] == "numpy first":
    import numpy
import sorix_dist.comm
early = os.environ.get("OMP_NUM_THREADS")
import numpy, threadpoolctl

def threads():
    return [each["num_threads"] for each in threadpoolctl.threadpool_info() if each["user_api"] == "blas"]

before = threads()
sorix_dist.comm.init()
sys.stdout.write(json.dumps([early, before, threads(), len(os.sched_getaffinity(0))]) + "\\n")
"""


@needs_mpirun
@pytest.mark.parametrize("order", ["numpy first", "numpy later"])
def test_ranks_are_capped_from_the_import_on(order: str) -> None:
    ended = run_ranks(2, "-c", PRINT_THREADS, order)
    assert ended.code == 0, ended.err
    lines = [json.loads(line) for line in ended.out.splitlines()]
    assert len(lines) == 2
    for early, before, after, cpus in lines:
        assert early == str(max(1, cpus // 2))
        assert before == [int(early)]
        assert len(after) == 1
        assert 1 <= after[0] <= cpus


def test_without_a_launcher_it_costs_nothing() -> None:
    environ: dict[str, str] = {"HOME": "/"}
    began = time.perf_counter()
    for _ in range(100):
        blas.cap_early(environ)
    assert time.perf_counter() - began < 0.1
    loaded = "import sys, sorix_dist.comm; print('threadpoolctl' in sys.modules, 'mpi4py' in sys.modules)"
    ended = run_command([sys.executable, "-c", loaded])
    assert ended.out.split() == ["False", "False"], ended.err


def test_ranks_outside_the_communicator_count(monkeypatch: pytest.MonkeyPatch) -> None:
    with_cpus(monkeypatch, *range(8))
    assert blas.cap(Solo(), "auto", dict(TWO_HERE)) == 4


@needs_mpirun
@pytest.mark.parametrize(
    ("variable", "says"),
    [
        ("OPENBLAS_CORETYPE='SandyBridge'", "rank 1 has .*kernel Sandybridge"),
        ("NPY_DISABLE_CPU_FEATURES='X86_V3,AVX2,AVX512F'", "rank 1 has NumPy"),
    ],
)
def test_other_kernels_on_a_rank_are_refused_in_reproducible_mode(variable: str, says: str) -> None:
    """The same shapes and the same threads give other bits with them."""
    name, _, value = variable.partition("=")
    script = (
        "import os\nif os.environ.get('PMI_RANK', os.environ.get('OMPI_COMM_WORLD_RANK')) == '1':\n"
        f"    os.environ[{name!r}] = {value}\nimport sorix_dist as sx\nsx.init(virtual_shards=8)"
    )
    ended = run_ranks(2, "-W", "ignore", "-c", script)
    assert ended.code != 0
    assert re.search(f"virtual_shards, .*kernels must be the same on every rank.* {says}", ended.err), ended.err
    assert run_ranks(2, "-W", "ignore", "-c", script.replace("virtual_shards=8", "")).code == 0


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone takes the wish")
def test_long_slices_leave_policy_and_priority() -> None:
    def ask() -> tuple[bool, str]:
        return blas.ask_for_long_slices(), Path("/proc/thread-self/sched").read_text()

    def found(name: str, text: str) -> str:
        return next((line.split()[-1] for line in text.splitlines() if line.split()[:1] == [name]), "")

    before = Path("/proc/thread-self/sched").read_text()
    agreed, after = ThreadPoolExecutor(1).submit(ask).result()  # it counts for one thread
    assert [found(name, after) for name in ("policy", "prio")] == [found(name, before) for name in ("policy", "prio")]
    if agreed and found("se.slice", before):  # Linux 6.12 and later show it, earlier ones ignore the wish
        assert int(found("se.slice", after)) == 20_000_000
