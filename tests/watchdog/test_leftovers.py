"""What a job that is killed leaves behind is removed, and nobody else's."""

from __future__ import annotations

import os
import pty
import subprocess
import time
from pathlib import Path

from sorix_dist.watchdog import leftovers
from sorix_dist.watchdog.process import start_time
from tests.support.launching import needs_mpirun, run_ranks


@needs_mpirun
def test_a_killed_jobs_shared_memory_is_removed(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import os, time\nimport sorix_dist as sx\nfrom sorix_dist.watchdog.leftovers import mapped\n"
        "sx.init(timeout=5)\nwindow = sx.comm.current().window(1 << 20)\nsx.barrier()\n"
        f"if sx.rank() == 1:\n    open({str(tmp_path / 'mapped')!r}, 'w').write(' '.join(mapped()))\n"
        "    os.kill(os.getpid(), 9)\nsx.barrier()"
    )
    ended = run_ranks(2, str(script), limit=20)
    assert ended.code != 0
    assert not ended.left
    files = (tmp_path / "mapped").read_text().split()
    assert files
    assert not [file for file in files if os.path.exists(file)]


def test_a_process_at_a_terminal_that_the_launcher_does_not_read_holds_no_output() -> None:
    """Names of terminals are used again, by other jobs too."""
    ours, theirs = pty.openpty()
    reads, reads_not, writes = (
        subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL, stdout=output, pass_fds=files)
        for output, files in ((subprocess.DEVNULL, [ours]), (subprocess.DEVNULL, []), (theirs, []))
    )
    try:
        for launcher, holders in ((reads, {writes.pid: 1}), (reads_not, {})):
            launchers = leftovers.Launchers(launcher.pid, start_time(launcher.pid))
            assert launchers._holders({os.ttyname(theirs)}) == holders
    finally:
        for process in (reads, reads_not, writes):
            process.kill()
            process.wait()
        os.close(ours)
        os.close(theirs)


def test_only_noted_shared_memory_is_removed(tmp_path: Path) -> None:
    noted, other = tmp_path / "noted", tmp_path / "other"
    other.touch()
    noted.write_text(f"{other}\n/dev/shm/../{other}\n")
    leftovers.remove_recorded(noted)
    assert other.exists()
    assert not noted.exists()


def test_files_of_dead_launchers_are_removed(tmp_path: Path) -> None:
    ours, older = (tmp_path / f"hydra_hwloc_xmlfile_{name}" for name in ("ours", "older"))
    began = time.time() - 5000  # before any launcher of a test that runs beside this one
    for file, made in ((ours, began), (older, began - 100)):
        file.touch()
        os.utime(file, (made, made))
    leftovers.remove_launcher_files(since=began - 10, folder=tmp_path)
    assert list(tmp_path.iterdir()) == [older]
    leftovers.remove_launcher_files(folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
    ours.touch()
    leftovers.remove_launcher_files(folder=tmp_path)
    assert list(tmp_path.iterdir()) == [ours]  # its launcher may be in a container
