"""The options of `sorix-dist run`, under this environment's own MPI."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest

from sorix_dist.cli import main
from tests.support.jobs import LIMIT, RANK, SAY_SHARED, SORIX_DIST, announced, finished, job, shared, survivors
from tests.support.launching import needs_mpirun

pytestmark = needs_mpirun


def run(*arguments: str) -> tuple[int, str]:
    return finished([*SORIX_DIST, "run", *arguments])


def test_logs_hold_what_each_rank_printed(script: Path) -> None:
    script.write_text(f"import os, sys\nprint('out', {RANK})\nprint('err', {RANK}, file=sys.stderr)")
    assert run("-n", "3", "--log-dir", "logs", "train.py") == (0, "")
    for rank in range(3):
        assert (script.parent / "logs" / f"rank-{rank}.log").read_text() == f"out {rank}\nerr {rank}\n"
    code, output = run("-n", "3", "--log-dir", "logs", "--tee", "train.py")
    assert code == 0, output
    assert sorted(re.findall(r"(?:out|err) \d", output)) == sorted(
        f"{word} {n}" for n in range(3) for word in ("out", "err")
    )
    assert (script.parent / "logs" / "rank-1.log").read_text().count("out 1") == 2


def test_logs_of_a_job_that_ends_well_say_nothing_else(script: Path) -> None:
    script.write_text("import sorix_dist as sx\nprint(sx.all_reduce(1.0))")
    assert run("-n", "2", "--log-dir", "logs", "train.py") == (0, "")
    time.sleep(1)  # the guard may still write into the logs after the ranks have ended
    for rank in range(2):
        assert (script.parent / "logs" / f"rank-{rank}.log").read_text() == "2.0\n"


@pytest.mark.parametrize("tee", [[], ["--tee"]])
def test_the_code_of_a_logged_script_is_its_own(script: Path, tee: list[str]) -> None:
    script.write_text(f"import os, sys\nif {RANK} == 1: sys.exit(7)")
    assert run("-n", "2", "--log-dir", "logs", *tee, "train.py")[0] == 7


@pytest.mark.parametrize("ranks", ["1", "2"])
def test_variables_and_threads(script: Path, ranks: str) -> None:
    script.write_text(
        "import os\nimport sorix_dist.comm, threadpoolctl, numpy\nsorix_dist.comm.init()\n"
        "n, = {pool['num_threads'] for pool in threadpoolctl.threadpool_info() if pool['user_api'] == 'blas'}\n"
        "os.write(1, f'{os.environ[\"A\"]}|{n}\\n'.encode())"
    )
    code, output = run("-n", ranks, "--threads", "1", "--env", "A=x=y z", "--env", "B=", "train.py")
    assert (code, output) == (0, "x=y z|1\n" * int(ranks))


def test_binding(script: Path) -> None:
    script.write_text("import os\nos.write(1, b'%d\\n' % len(os.sched_getaffinity(0)))")
    code, output = run("-n", "2", "--bind", "core", "train.py")
    if "not supported" in output or "hwloc" in output:
        pytest.skip(f"this machine binds nothing: {output}")
    assert code == 0, output
    expected = 1 if len(os.sched_getaffinity(0)) > 1 else len(os.sched_getaffinity(0))
    assert output.split() == [str(expected)] * 2


def test_a_job_that_takes_too_long_is_ended(script: Path) -> None:
    script.write_text("import os, time\nos.write(1, b'%d\\n' % os.getpid())\ntime.sleep(60)")
    with job([*SORIX_DIST, "run", "-n", "2", "--timeout", "3", "train.py"]) as process:
        pids = announced(process, 2)
        assert process.wait(LIMIT) == 124
        assert survivors(pids) == []


AGENT = """#!/bin/sh
# Stands for ssh: hosts "127.0.0.*" are this one, none other answers.
while [ "${1#-}" != "$1" ]; do shift; done
host=$1; shift
case $host in
    127.0.0.*) echo "$host" >>"$AGENT_LOG"; export ON=$host; exec sh -c "$*";;
    *) echo "no route to $host" >&2; exit 255;;
esac
"""


@pytest.fixture
def agent(script: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes 127.0.0.2, 127.0.0.3 ... hosts that mpirun reaches; the path of a list of those that were reached."""
    path = script.parent / "agent"
    path.write_text(AGENT)
    path.chmod(0o755)
    monkeypatch.setenv("HYDRA_LAUNCHER_EXEC", str(path))
    monkeypatch.setenv("PRTE_MCA_plm_ssh_agent", str(path))
    monkeypatch.setenv("AGENT_LOG", str(script.parent / "reached"))
    monkeypatch.setenv("OMPI_MCA_btl", "self,sm,tcp")
    return script.parent / "reached"


# No MPI: Open MPI wants a host name of its own for each host.
LAUNCHED = """
import os, pathlib, time
from sorix_dist.watchdog.launcher import detect
launch = detect(os.environ)
"""


@pytest.mark.parametrize("how", ["--hosts", "--hostfile"])
def test_ranks_on_named_hosts(script: Path, agent: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe")
    said = "rank {launch.rank} of {launch.size} on {os.environ['ON']}, {os.environ['A']}\\n"
    script.write_text(LAUNCHED + f'os.write(1, f"{said}".encode())')
    hosts = "127.0.0.2:1,127.0.0.3:2"
    if how == "--hostfile":
        (script.parent / "hosts").write_text("127.0.0.2\n127.0.0.3 slots=2  # the large one\n")
        hosts = "hosts"
    code, output = run(how, hosts, "--env", "A=b", "train.py")
    assert code == 0, output
    assert sorted(line for line in output.splitlines() if line.startswith("rank ")) == [
        f"rank {rank} of 3 on 127.0.0.{2 + (rank > 0)}, b" for rank in range(3)
    ]
    assert {"127.0.0.2", "127.0.0.3"} <= set(agent.read_text().split())


def test_a_job_is_started_again_without_the_host_that_is_lost(script: Path, agent: Path) -> None:
    script.write_text(
        LAUNCHED + "if os.environ['SORIX_DIST_ATTEMPT'] == '0':\n"
        "    if launch.rank < 2: time.sleep(60)\n"
        "    pathlib.Path('saved', 'one').touch()\n"
        "    agent = pathlib.Path('agent')\n"
        "    agent.write_text(agent.read_text().replace('127.0.0.*', '127.0.0.2'))\n"
        "    os.kill(os.getpid(), 9)\n"
        "os.write(1, f'ended {launch.rank} of {launch.size}\\n'.encode())"
    )
    code, output = run("--hosts", "127.0.0.2:2,127.0.0.3:1", "--max-restarts", "2", "--checkpoint", "saved", "train.py")
    assert code == 0, output
    assert "restart 1 of 2" in output
    assert "host 127.0.0.3 does not answer any more (no route to 127.0.0.3); going on without it" in output
    assert sorted(re.findall(r"ended \d of \d", output)) == ["ended 0 of 2", "ended 1 of 2"]


def test_a_killed_rank_is_followed_by_a_restart_and_leaves_nothing(script: Path) -> None:
    script.write_text(
        "import os, pathlib, sys\nimport sorix_dist as sx\nfrom sorix_dist.comm import current\nworld = current()\n"
        f"window = world.window(1 << 16)\n{SAY_SHARED}\nworld.barrier()\n"
        "attempt = int(os.environ['SORIX_DIST_ATTEMPT'])\n"
        "sx.Checkpointer('new/saved').save(attempt)\n"
        "world.barrier()\n"
        "if attempt < 2 and world.rank == 1: os.kill(os.getpid(), 9)\n"
        "world.barrier()\nos.write(1, b'came to the end\\n')"
    )
    code, output = run("-n", "2", "--max-restarts", "3", "--checkpoint", "new/saved", "train.py")
    assert code == 0, output
    assert [line for line in output.splitlines() if line.startswith("sorix-dist run: ")] == [
        f"sorix-dist run: the job ended with code {9 if 'code 9;' in output else 137}; restart {n} of 3" for n in (1, 2)
    ]
    assert output.count("came to the end") == 2
    assert sorted(path.name for path in Path("new/saved").iterdir()) == [
        f"00000{n}-step-{n}.safetensors" for n in range(3)
    ]
    assert "shared " in output
    assert shared(output) == []


@pytest.mark.parametrize("code", [75, 3])
def test_codes_of_all_ranks_are_handed_through(script: Path, code: int) -> None:
    script.write_text(f"import sys, sorix_dist.comm\nsys.exit({code})")
    assert run("-n", "2", "--checkpoint", "saved", "train.py")[0] == code


def test_a_warning_of_the_scheduler_lets_all_ranks_save(script: Path) -> None:
    """mpirun kills half a second after a SIGTERM; here, the script gets a SIGUSR1 and its time."""
    script.write_text(
        "import os, pathlib, signal, sys, time\nimport sorix_dist.comm\n"
        "def save(*_):\n"
        "    time.sleep(1.5)\n"
        f"    pathlib.Path('saved', str({RANK})).touch()\n"
        "    sys.exit(75)\n"
        "signal.signal(signal.SIGUSR1, save)\n"
        "os.write(1, b'%d\\n' % os.getpid())\n"
        "while True: time.sleep(0.1)"
    )
    with job([*SORIX_DIST, "run", "-n", "2", "--max-restarts", "3", "--checkpoint", "saved", "train.py"]) as process:
        pids = announced(process, 2)
        process.terminate()
        assert process.wait(LIMIT) == 75
        assert survivors(pids) == []
    assert sorted(path.name for path in Path("saved").iterdir()) == ["0", "1"]


def test_a_ctrl_c_is_no_crash(script: Path) -> None:
    script.write_text("import os, time\nos.write(1, b'%d\\n' % os.getpid())\ntime.sleep(60)")
    with job([*SORIX_DIST, "run", "-n", "2", "--max-restarts", "3", "--checkpoint", "saved", "train.py"]) as process:
        pids = announced(process, 2)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        assert process.wait(LIMIT) == 130
        assert time.monotonic() - began < 30
        assert survivors(pids) == []


def test_the_dry_run_shows_all_of_it(script: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--hosts", "a:2,b:2", "-n", "3", "--threads", "2", "--log-dir", "logs", "--env", "A=b c"]
    assert main(["run", *options, "--dry-run", "train.py", "--lr", "1"]) == 0  # and asks no host
    words = shlex.split(capfd.readouterr().out)
    assert "a:2,b:2" in words
    assert words[words.index("-n") + 1] == "3"
    assert {"A=b c", "OMP_NUM_THREADS=2"} <= set(words)
    assert words[-4:] == [sys.executable, "train.py", "--lr", "1"]
    assert not (script.parent / "logs").exists()


@pytest.mark.usefixtures("script")
class TestErrors:
    """Each is one line that says what to do, and exit code 2; nothing was started."""

    @staticmethod
    def error(capfd: pytest.CaptureFixture[str], *argv: str) -> str:
        assert main(["run", *argv, "train.py"]) == 2
        out, error = capfd.readouterr()
        assert out == ""
        assert error.count("\n") == 1
        return error.rstrip().removeprefix("sorix-dist run: error: ")

    @pytest.mark.parametrize(
        ("argv", "match"),
        [
            (["--tee"], "--tee needs --log-dir DIR"),
            (["--max-restarts", "2"], "--max-restarts needs --checkpoint DIR"),
            (
                ["--max-restarts", "-1", "--checkpoint", "d"],
                "argument --max-restarts: expected a whole number of at least 0",
            ),
            (["--timeout", "0"], "argument --timeout: expected a number of seconds above 0, got '0'"),
            (["--env", "A"], "argument --env: expected NAME=VALUE, got 'A'"),
            (["--threads", "0"], "argument --threads: expected a whole number of at least 1"),
            (["--bind", "moon"], "argument --bind: invalid choice: 'moon'"),
            (["--hosts", "a:x"], "--hosts 'a:x': 'a:x' is no host: expected HOST or HOST:SLOTS"),
            (
                ["--hosts", "a:2,b:2", "-n", "5", "--dry-run"],
                "5 ranks are more than the 4 slots of a:2,b:2: give a host",
            ),
            (["-n", "100000"], "the number of ranks must be at most "),
            (["--hosts", "a", "--hostfile", "f"], "argument --hostfile: not allowed with argument --hosts"),
            (["--checkpoint", "train.py"], "--checkpoint 'train.py': File exists"),
        ],
    )
    def test_options(self, capfd: pytest.CaptureFixture[str], argv: list[str], match: str) -> None:
        assert self.error(capfd, *argv).startswith(match)

    def test_a_typo_in_the_hostfile(self, capfd: pytest.CaptureFixture[str]) -> None:
        Path("hosts").write_text("a slots=2\nb slot=2\n")
        assert self.error(capfd, "--hostfile", "hosts").startswith("hosts:2: 'b slot=2' is no host: expected HOST, ")

    def test_a_host_that_does_not_answer(self, capfd: pytest.CaptureFixture[str], agent: Path) -> None:
        error = self.error(capfd, "--hosts", "127.0.0.2:1,lost:1")
        assert error.startswith("host 'lost' does not answer (no route to lost); `")
        assert error.endswith("agent lost true` must work without a password, or leave the host out")
        assert agent.read_text().split() == ["127.0.0.2"]  # asked, but no rank was started
