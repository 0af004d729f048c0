"""Hosts as users and schedulers write them, and what tells that one does not answer."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sorix_dist.launch import LaunchError
from sorix_dist.launch.hosts import (
    Host,
    allocated,
    check_answers,
    named,
    parse_hosts,
    probe,
    read_hostfile,
    silent,
    slots,
)


def executable(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("a:2,b:2", (Host("a", 2), Host("b", 2))),
        ("a", (Host("a", 1),)),
        ("10.0.0.1:3, n-1.cluster:1", (Host("10.0.0.1", 3), Host("n-1.cluster", 1))),
        ("[::1],[fe80::1]:4", (Host("[::1]", 1), Host("[fe80::1]", 4))),
    ],
)
def test_hosts_on_the_command_line(text: str, hosts: tuple[Host, ...]) -> None:
    assert parse_hosts(text) == hosts
    assert parse_hosts(named(hosts)) == hosts
    assert slots(hosts) == sum(host.slots for host in hosts)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("a:2,b:x", "'b:x'"),
        ("a:0", "'a:0'"),
        ("a,,b", "''"),
        ("a b", "'a b'"),
        ("-oX:1", "'-oX:1'"),
        ("-oProxy=x", "'-o"),
    ],
)
def test_a_wrong_host_is_quoted(text: str, wrong: str) -> None:
    with pytest.raises(LaunchError, match=rf"--hosts '{text}': {wrong}.* is no host: expected HOST or HOST:SLOTS"):
        parse_hosts(text)


def test_a_host_twice_is_an_error() -> None:
    with pytest.raises(LaunchError, match="host 'a' is named twice; name it once, with all its slots"):
        parse_hosts("a:1,b:1,a:1")


def test_a_hostfile_in_the_ways_of_all_mpis(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# our hosts\na slots=4\n\nb:2   # the small one\nc\n")
    assert read_hostfile(path) == (Host("a", 4), Host("b", 2), Host("c", 1))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a\nb slot=2\n", ":2: 'b slot=2' is no host: expected HOST, HOST:SLOTS or HOST slots=SLOTS"),
        ("a\n\nb slots=two\n", ":3: 'b:two' is no host"),
        ("a:-1\n", ":1: 'a:-1' is no host"),
        ("# nothing\n", "hosts' names no host"),
        ("a\na\n", "host 'a' is named twice"),
    ],
)
def test_a_typo_in_a_hostfile_has_file_and_line(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(LaunchError, match=match):
        read_hostfile(path)


def test_a_hostfile_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"--hostfile '.*none' cannot be read: No such file"):
        read_hostfile(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LaunchError, match="it is not text"):
        read_hostfile(tmp_path / "binary")


def test_the_hosts_of_every_schedulers_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, queue = tmp_path / "nodes", tmp_path / "queue"
    nodes.write_text("a\na\nb\n")
    queue.write_text("a 2 all.q@a UNDEFINED\nb 1 all.q@b UNDEFINED\n")
    expected = (Host("a", 2), Host("b", 1))
    assert allocated({"PBS_NODEFILE": str(nodes)}) == expected
    assert allocated({"LSB_MCPU_HOSTS": "a 2 b 1"}) == expected
    assert allocated({"PE_HOSTFILE": str(queue)}) == expected
    executable(tmp_path / "scontrol", '[ "$*" = "show hostnames n[1-3]" ] && printf "n1\\nn2\\nn3\\n"')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    slurm = {"SLURM_JOB_NODELIST": "n[1-3]", "SLURM_TASKS_PER_NODE": "2(x2),1"}
    assert allocated(slurm) == (Host("n1", 2), Host("n2", 2), Host("n3", 1))
    assert allocated({}) == ()
    assert allocated({"PBS_NODEFILE": str(tmp_path / "none")}) == ()
    monkeypatch.setenv("PATH", str(nodes.parent / "empty"))
    assert allocated(slurm) == ()


def test_a_host_is_asked_as_mpirun_would() -> None:
    assert probe("b", {}) == ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "b", "true"]
    assert probe("b", {"PRTE_MCA_plm_ssh_agent": "/x/agent -q : rsh"}) == ["/x/agent", "-q", "b", "true"]
    assert probe("b", {"HYDRA_LAUNCHER_EXEC": "/usr/bin/ssh"})[:2] == ["/usr/bin/ssh", "-o"]
    assert probe("b", {"SLURM_JOB_ID": "1"}) == ["srun", "--overlap", "--nodes=1", "--ntasks=1", "--nodelist=b", "true"]


def test_hosts_that_do_not_answer_are_told_apart(tmp_path: Path) -> None:
    agent = executable(
        tmp_path / "agent",
        'case $1 in good) shift; exec "$@";; lost) echo "ssh: connect to host lost port 22: No route" >&2; exit 255;; '
        "deaf) exec sleep 60;; *) exit 3;; esac",
    )
    environ = {"HYDRA_LAUNCHER_EXEC": str(agent)}
    hosts = [Host(name) for name in ("localhost", "good", "lost", "deaf", "odd")]
    began = time.monotonic()
    assert silent(hosts, environ, limit=2) == {
        hosts[2]: "ssh: connect to host lost port 22: No route",
        hosts[3]: "no answer in 2 s",
        hosts[4]: f"{agent} ended with code 3",
    }
    assert time.monotonic() - began < 20  # all at once
    check_answers(hosts[:2], environ)
    with pytest.raises(LaunchError, match=r"host 'lost' does not answer \(ssh: .*No route\); `.*agent lost true` must"):
        check_answers(hosts[:3], environ)
    missing = "/nowhere/ssh could not be started: No such file or directory"
    assert silent([Host("b")], {"HYDRA_LAUNCHER_EXEC": "/nowhere/ssh"}) == {Host("b"): missing}
