"""The command line and environment for every MPI, with launchers that only know their version."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from sorix_dist.launch import LaunchError
from sorix_dist.launch.command import Command, command, find_mpirun, flavour, on_this_host
from sorix_dist.launch.hosts import Host

VERSIONS = {
    "openmpi5": "mpirun (Open MPI) 5.0.11\n\nReport bugs to https://www.open-mpi.org/community/help/",
    "openmpi4": "mpirun (Open MPI) 4.1.4\n\nReport bugs to http://www.open-mpi.org/community/help/",
    "mpich": "HYDRA build details:\n    Version:                                 5.0.2",
    "intel": "Intel(R) MPI Library for Linux* OS, Version 2021.11 Build 20231005\nCopyright 2003-2023",
}
ROOT_ALLOWED = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def launcher(folder: Path, text: str, code: int = 0) -> Path:
    """An executable mpirun that answers every call with this text."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "mpirun"
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {code}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture(params=sorted(VERSIONS))
def mpirun(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A launcher of every flavour, in a folder named after it."""
    return launcher(tmp_path / request.param, VERSIONS[request.param])


def settings(mpirun: Path, environ: dict[str, str] | None = None, root: bool = False) -> dict[str, str]:
    environ = {"PATH": str(mpirun.parent)} | (environ or {})
    return dict(command(["python", "train.py"], 4, mpirun=mpirun, environ=environ, root=root).env)


def test_every_flavour_is_recognised(mpirun: Path) -> None:
    assert flavour(mpirun) == mpirun.parent.name


def test_later_open_mpi_counts_as_5(tmp_path: Path) -> None:
    assert flavour(launcher(tmp_path, "mpirun (Open MPI) 6.1.0rc1")) == "openmpi5"


def test_the_version_is_asked_for_once(tmp_path: Path) -> None:
    path = launcher(tmp_path, VERSIONS["mpich"])
    assert flavour(path) == "mpich"
    path.unlink()
    assert flavour(path) == "mpich"


@pytest.mark.parametrize(("text", "code"), [("slurm 23.02", 0), ("", 1)])
def test_an_unknown_launcher_is_an_error_that_quotes_it(tmp_path: Path, text: str, code: int) -> None:
    path = launcher(tmp_path, text, code)
    with pytest.raises(LaunchError, match=f"{path} is not the launcher of .*{text!r}"):
        flavour(path)


def test_a_launcher_that_cannot_be_executed_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="nowhere could not be started: No such file"):
        flavour(tmp_path / "nowhere")


def test_ranks_then_program_is_what_every_launcher_takes(mpirun: Path) -> None:
    program = ["python", "train.py", "--lr", "0.1", "-n", "7", "--", ""]
    assert command(program, 4, mpirun=mpirun, environ={}).argv == (str(mpirun), "-n", "4", *program)


def test_settings_on_one_host(mpirun: Path) -> None:
    expected = {
        "openmpi5": {
            "PRTE_MCA_hwloc_default_binding_policy": "none",
            "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
            "OMPI_MCA_pml": "ob1",
            "OMPI_MCA_btl": "self,sm",
            "OMPI_MCA_osc": "^ucx",
        },
        "openmpi4": {
            "OMPI_MCA_hwloc_base_binding_policy": "none",
            "OMPI_MCA_rmaps_base_oversubscribe": "1",
            "OMPI_MCA_pml": "ob1",
            "OMPI_MCA_btl": "self,vader",
            "OMPI_MCA_osc": "^ucx",
        },
        "mpich": {},
        "intel": {},
    }
    assert settings(mpirun) == expected[mpirun.parent.name]


def test_only_open_mpi_asks_whether_root_may(mpirun: Path) -> None:
    added = settings(mpirun, root=True).items() - settings(mpirun).items()
    assert dict(added) == (ROOT_ALLOWED if "openmpi" in mpirun.parent.name else {})


def test_intels_launcher_is_shown_its_parts_also_in_an_environment_that_is_not_activated(tmp_path: Path) -> None:
    path = launcher(tmp_path, VERSIONS["intel"])
    path.rename(tmp_path / "mpiexec.hydra")
    path.write_text('#!/bin/sh\nexec mpiexec.hydra "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    assert settings(path, {"PATH": "/usr/bin:/bin"}) == {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    assert settings(path, {"PATH": f"/usr/bin:{tmp_path}"}) == {}


@pytest.mark.parametrize("name", ["SLURM_JOB_ID", "PBS_NODEFILE", "HYDRA_HOST_FILE"])
def test_in_an_allocation_hosts_slots_and_networks_are_not_ours(mpirun: Path, name: str) -> None:
    left = settings(mpirun, {name: "set"})
    assert all(variable.endswith("binding_policy") for variable in left)


def test_what_the_user_set_wins(mpirun: Path) -> None:
    for name in settings(mpirun, root=True):
        assert name not in settings(mpirun, {name: "mine"}, root=True)


@pytest.mark.parametrize("name", ["OMPI_MCA_pml", "OMPI_MCA_btl", "OMPI_MCA_mtl"])
def test_transports_are_chosen_together_or_not_at_all(tmp_path: Path, name: str) -> None:
    path = launcher(tmp_path, VERSIONS["openmpi5"])
    assert not {"OMPI_MCA_pml", "OMPI_MCA_btl"} & settings(path, {name: "mine"}).keys()


def test_one_rank_needs_no_launcher() -> None:
    assert command(["python", "train.py", ":"], 1, environ={"PATH": ""}) == Command(("python", "train.py", ":"), {})


HOSTS = (Host("a", 2), Host("b", 3))
PLACED = {
    "openmpi5": ["--host", "a:2,b:3", "-n", "4", "python"],
    "openmpi4": ["--host", "a:2,b:3", "-n", "4", "python"],
    "mpich": ["-hosts", "a:2,b:3", "-n", "4", "python"],
    "intel": ["-n", "2", "-host", "a", "python", ":", "-n", "2", "-host", "b", "python"],
}


def test_hosts_are_named_as_each_launcher_takes_them(mpirun: Path) -> None:
    kind = mpirun.parent.name
    start = command(["python"], 4, hosts=HOSTS, mpirun=mpirun, environ={"PATH": str(mpirun.parent)}, root=False)
    assert list(start.argv[1:]) == PLACED[kind]
    assert not {"OMPI_MCA_btl", "PRTE_MCA_rmaps_default_mapping_policy"} & start.env.keys()  # a network is needed
    one = command(["python"], 1, hosts=HOSTS, mpirun=mpirun, environ={"PATH": str(mpirun.parent)}, root=False)
    assert one.argv[0] == str(mpirun)  # on another host
    assert one.argv.count("python") == 1
    local = command(["python"], 2, hosts=[Host("localhost", 2)], mpirun=mpirun, environ={"PATH": str(mpirun.parent)})
    assert ("OMPI_MCA_btl" in local.env) == kind.startswith("openmpi")


def test_a_mapping_of_the_environment_does_not_put_all_ranks_on_the_first_host(mpirun: Path) -> None:
    environ = {"PATH": str(mpirun.parent), "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}
    expected = ["--map-by", "slot"] * (mpirun.parent.name == "openmpi5")
    start = command(["python"], 4, hosts=HOSTS, mpirun=mpirun, environ=environ)
    assert list(start.argv[1:]) == [*expected, *PLACED[mpirun.parent.name]]
    job = command(["python"], 2, mpirun=mpirun, environ=environ | {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2"})
    assert list(job.argv[1:]) == [*expected, "-n", "2", "python"]
    bound = command(["python"], 4, hosts=HOSTS, bind="core", cores=2, mpirun=mpirun, environ=environ)
    assert bound.argv.count("--map-by") == mpirun.parent.name.startswith("openmpi")
    here = command(["python"], 2, mpirun=mpirun, environ=environ)
    assert "--map-by" not in here.argv


def test_variables_reach_other_hosts(mpirun: Path) -> None:
    environ = {"PATH": str(mpirun.parent), "PYTHONPATH": "/lib", "OMPI_MCA_pml": "ob1", "A": "old"}
    start = command(["python"], 4, hosts=HOSTS, env={"A": "b c"}, mpirun=mpirun, environ=environ)
    assert start.env["A"] == "b c"  # the caller's own word, unlike our settings
    exported = ["-x", "A", "-x", "PYTHONPATH"]
    if mpirun.parent.name.startswith("openmpi"):
        assert list(start.argv[1:5]) == exported
    else:
        assert "-x" not in start.argv


BOUND: dict[str, dict[tuple[str, int], list[str] | dict[str, str]]] = {
    "openmpi5": {
        ("core", 1): ["--bind-to", "core:overload-allowed", "--map-by", "slot:OVERSUBSCRIBE"],
        ("core", 2): ["--bind-to", "core:overload-allowed", "--map-by", "slot:PE=2:OVERSUBSCRIBE"],
        ("socket", 2): ["--bind-to", "package:overload-allowed", "--map-by", "slot:OVERSUBSCRIBE"],
    },
    "openmpi4": {
        ("core", 1): ["--bind-to", "core:overload-allowed"],
        ("core", 2): ["--bind-to", "core:overload-allowed", "--map-by", "slot:PE=2"],
        ("socket", 2): ["--bind-to", "socket:overload-allowed"],
    },
    "mpich": {
        ("core", 1): ["-bind-to", "core"],
        ("core", 2): ["-bind-to", "core:2"],
        ("socket", 2): ["-bind-to", "socket"],
    },
    "intel": {
        ("core", 1): {"I_MPI_PIN": "1", "I_MPI_PIN_DOMAIN": "core"},
        ("core", 2): {"I_MPI_PIN": "1", "I_MPI_PIN_DOMAIN": "2"},
        ("socket", 2): {"I_MPI_PIN": "1", "I_MPI_PIN_DOMAIN": "socket"},
    },
}


@pytest.mark.parametrize(("bind", "cores"), [("core", 1), ("core", 2), ("socket", 2)])
def test_binding_in_each_launchers_words(mpirun: Path, bind: str, cores: int) -> None:
    environ = {"PATH": str(mpirun.parent)}
    start = command(["python"], 2, bind=bind, cores=cores, mpirun=mpirun, environ=environ, root=False)
    expected = BOUND[mpirun.parent.name][bind, cores]
    if isinstance(expected, dict):
        assert start.env == expected
        expected = []
    assert list(start.argv[1:]) == [*expected, "-n", "2", "python"]
    assert not any(name.endswith("binding_policy") for name in start.env)


def test_one_bound_rank_needs_the_launcher(mpirun: Path) -> None:
    assert command(["python"], 1, bind="core", mpirun=mpirun, environ={}).argv[0] == str(mpirun)


def test_too_few_slots_are_an_error_before_anything_starts(mpirun: Path) -> None:
    with pytest.raises(LaunchError, match=r"6 ranks are more than the 5 slots of a:2,b:3: give a host more slots"):
        command(["python"], 6, hosts=HOSTS, mpirun=mpirun, environ={})
    job = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "PATH": ""}
    assert command(["python"], 2, mpirun=mpirun, environ=job).argv[-3:] == ("-n", "2", "python")
    if mpirun.parent.name.startswith("openmpi"):
        with pytest.raises(LaunchError, match=r"3 ranks are more than the 2 tasks of this job.*--ntasks=3"):
            command(["python"], 3, mpirun=mpirun, environ=job)
    else:  # may start more
        assert command(["python"], 3, mpirun=mpirun, environ=job).argv[-3:] == ("-n", "3", "python")


def test_an_unknown_binding_is_an_error() -> None:
    with pytest.raises(ValueError, match="bind must be one of 'none', 'core', 'numa', 'socket', got 'node'"):
        command(["python"], 2, bind="node")


def test_on_this_host_forgets_every_scheduler() -> None:
    environ = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "PBS_NODEFILE": "x", "HYDRA_HOST_FILE": "h", "HOME": "/"}
    assert on_this_host(environ) == {"HOME": "/"}


def test_a_lone_colon_is_kept_from_the_launcher(mpirun: Path) -> None:
    program = ["python", "train.py", "a b", ":", "it's"]
    argv = command(program, 2, mpirun=mpirun, environ={}).argv
    assert ":" not in argv
    assert argv[3:5] == ("/bin/sh", "-c")
    assert shlex.split(argv[5]) == ["exec", *program]


@pytest.mark.parametrize("ranks", [0, -1])
def test_fewer_than_one_rank_is_an_error(ranks: int) -> None:
    with pytest.raises(ValueError, match=f"ranks must be at least 1, got {ranks}"):
        command(["python"], ranks)


def test_no_program_is_an_error() -> None:
    with pytest.raises(ValueError, match="program must name what to run"):
        command([], 2)


def test_it_prints_as_a_line_for_the_shell() -> None:
    line = str(Command(("/opt/m p/mpirun", "-n", "2", "python", "a b", ""), {"B": "^ucx", "A": "x y"}))
    assert line == "B='^ucx' A='x y' '/opt/m p/mpirun' -n 2 python 'a b' ''"


class TestFindMpirun:
    """The environment's own mpirun, then PATH."""

    @pytest.fixture(autouse=True)
    def _empty_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))

    def test_the_environment_comes_first(self, tmp_path: Path) -> None:
        on_path = launcher(tmp_path / "path", "")
        own = launcher(tmp_path / "environment" / "bin", "")
        assert find_mpirun({"PATH": str(on_path.parent)}) == own

    def test_then_path(self, tmp_path: Path) -> None:
        on_path = launcher(tmp_path / "path", "")
        assert find_mpirun({"PATH": f"{tmp_path}:{on_path.parent}"}) == on_path

    def test_mpiexec_serves_too(self, tmp_path: Path) -> None:
        mpiexec = launcher(tmp_path / "path", "").rename(tmp_path / "path" / "mpiexec")
        assert find_mpirun({"PATH": str(tmp_path / "path")}) == mpiexec

    def test_a_file_that_is_not_executable_is_none(self, tmp_path: Path) -> None:
        launcher(tmp_path / "path", "").chmod(0o644)
        with pytest.raises(LaunchError, match=r'pip install "sorix_dist\[mpi\]"'):
            find_mpirun({"PATH": str(tmp_path / "path")})
