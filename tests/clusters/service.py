"""What the checks on real clusters share: packages, daemons that end with the check, and how its results are told."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tests.support.commands import MARK, ROOT, kill_marked

PYTHON = sys.executable


class Skipped(Exception):
    """Why this machine cannot do the check."""


class Failed(Exception):
    """What was expected and what came instead."""


def main(check: Callable[[], None]) -> int:
    """Runs a check; 0 if it passes or cannot be done here, which is said, and 1 if it fails."""
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that its daemons end with it
    try:
        check()
    except Skipped as reason:
        print(f"skipped: {reason}")
        return 0
    except Failed as failure:
        print(f"FAILED: {failure}")
        return 1
    print(f"passed in {time.monotonic() - began:.0f} s")
    return 0


def expect(condition: object, what: str, otherwise: object = "") -> None:
    """Prints what holds; Failed if it does not."""
    if not condition:
        raise Failed(f"{what}\n{otherwise}")
    print(f"ok: {what}", flush=True)


def need_root(what: str) -> None:
    """Skipped unless this is the administrator of a Linux machine."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise Skipped(f"{what} needs root on Linux")


def need_packages(programs: Mapping[str, str]) -> None:
    """Installs Debian's packages for programs (or files) that are missing; Skipped where that is not possible."""
    missing = sorted({package for program, package in programs.items() if not _there(program)})
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise Skipped(f"{', '.join(missing)} would have to be installed, and there is no apt-get")
    install = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *missing]
    environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (install, ["apt-get", "update", "--quiet"], install):
        try:
            answer = subprocess.run(
                command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200
            )
        except subprocess.TimeoutExpired as error:
            raise Skipped(f"installing {', '.join(missing)} took more than {error.timeout:.0f} s") from error
        if command is install and answer.returncode == 0:
            return
    raise Skipped(f"{', '.join(missing)} cannot be installed: {(answer.stderr.strip() or '?').splitlines()[-1]}")


def _there(program: str) -> bool:
    if "/" in program:
        return any(Path("/").glob(program.lstrip("/")))
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is not None


class Machine:
    """Daemons and commands with a folder of their own; on leaving, all of them are gone and so is the folder."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sorix-dist-"))
        self.folder.chmod(0o755)
        self.mark = uuid.uuid4().hex
        self.env = {
            **os.environ,
            "PATH": f"{Path(PYTHON).parent}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin",
            "PYTHONPATH": str(ROOT),
            MARK: self.mark,
        }
        self.daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is Failed:
            for log in sorted(self.folder.glob("*.log")):
                print(f"--- the end of {log.name}\n{log.read_text(errors='replace')[-2000:]}")
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        kill_marked(self.mark)
        for pid in self.strays():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder)

    def strays(self) -> list[int]:
        """Processes that still work in the folder or have a file of it open, whoever has started them."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile
                links = [process / "cwd", *(process / "fd").iterdir()]
                if any(os.readlink(link).startswith(f"{self.folder}/") for link in links):
                    found.append(int(process.name))
        return found

    def daemon(self, *argv: str) -> None:
        """Starts what runs in the foreground until the end; its output goes to a file NAME.log."""
        with (self.folder / f"{Path(argv[0]).name}.log").open("ab") as log:
            self.daemons.append(
                subprocess.Popen(
                    argv, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
            )

    def run(
        self, *argv: str, limit: float = 60.0, cwd: Path | None = None, code: int | None = 0
    ) -> subprocess.CompletedProcess[str]:
        """A command to its end, within `limit` seconds; Failed if it ends with another exit code than `code`."""
        try:
            answer = subprocess.run(
                argv, env=self.env, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit
            )
        except subprocess.TimeoutExpired as error:
            raise Failed(f"{' '.join(argv)} took more than {limit} s\n{error.stdout}\n{error.stderr}") from error
        if code is not None and answer.returncode != code:
            raise Failed(f"{' '.join(argv)} ended with code {answer.returncode}\n{answer.stdout}\n{answer.stderr}")
        return answer


def wait_for(what: str, seconds: float, ready: Callable[[], object], otherwise: Callable[[], object] = str) -> None:
    """Waits until `ready()` holds; Failed after so many seconds."""
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise Failed(f"waited {seconds:.0f} s for {what}\n{otherwise()}")
        time.sleep(0.2)


def text(path: Path) -> str:
    """What a file holds by now; nothing if there is none yet."""
    return path.read_text(errors="replace") if path.exists() else ""


def said(argv: Sequence[str]) -> str:
    """What a short command prints."""
    return subprocess.run(argv, capture_output=True, text=True, timeout=30).stdout
