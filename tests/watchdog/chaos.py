"""`python -m tests.watchdog.chaos SECONDS [SEED]`: random faults at random moments of training and saving.

They hit ranks, launchers and the watchdog itself, and fill the disk and the shared memory (as root, which can give this
program small ones of its own). Every run must end within the time-out plus ten seconds after the last fault, or after
its own end, and leave no process. Started again without a fault, it must end with the bits of an undisturbed run.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sorix_dist.watchdog.process import command, descendants, parent, state
from sorix_dist.watchdog.status_page import StatusPages
from tests.support.launching import MPIRUN, as_in_a_shell, environment, kill_marked, still_there

TIMEOUT = 3.0
BOUND = TIMEOUT + 10
HEALTHY = 20.0
"""Seconds that a run without a fault may take, beside other work on the machine."""
PRIVATE = "SORIX_DIST_CHAOS_PRIVATE"
"""The variable that says that this program has mounts of its own."""
SHARED_MEMORY = Path("/dev/shm")
ENOUGH = "256m"
"""The size of /dev/shm in which every run fits."""

TRAIN = f"""
import hashlib, os, resource, signal, sys, threading, time
import numpy as np
import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.utils.data import DataLoader, Dataset
from sorix_dist.watchdog import watch

resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
sx.init(timeout={TIMEOUT}, virtual_shards=8)
rank, folder = sx.rank(), sys.argv[1]
if watch.page():
    open(f"{{folder}}/pages", "w").write(str(watch.page().pages.path))
sx.manual_seed(0)
generator = np.random.default_rng(0)
data = Dataset(generator.standard_normal((80, 16)).astype("f4"), generator.integers(0, 4, 80))
model = sx.DistributedDataParallel(nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 4)))
optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
loader = DataLoader(data, batch_size=16, shuffle=True)
saved = sx.Checkpointer(f"{{folder}}/checkpoints", async_save=sys.argv[2] == "async")
parts = dict(model=model, optimizer=optimizer, loader=loader)
found = saved.load_latest(**parts)
step = found["step"] if found else 0
open(f"{{folder}}/rank-{{rank}}", "w").write(str(os.getpid()))
while step < 120:
    for x, y in loader:
        order = f"{{folder}}/order-{{rank}}"
        if os.path.exists(order):
            todo = open(order).read()
            os.remove(order)
            exec(todo)
        optimizer.zero_grad()
        nn.CrossEntropyLoss()(model(x), y).backward()
        optimizer.step()
        step += 1
        time.sleep(0.002)
        if step % 2 == 0:
            saved.save(step, **parts)
saved.wait()
digest = hashlib.sha256(b"".join(p.numpy().tobytes() for p in model.parameters())).hexdigest()
assert set(sx.all_gather(digest)) == {{digest}}
if rank == 0:
    open(f"{{folder}}/digest", "w").write(digest)
"""

LATER = "threading.Timer({seconds}, os.kill, (os.getpid(), signal.{name})).start()"
"""A signal that may come in the middle of a save."""

ORDERS = {
    "ends": "sys.exit(0)",
    "leaves": "os._exit(0)",
    "raises": "raise ValueError('a bad row')",
    "raises without streams": "sys.stdout = sys.stderr = None\nraise ValueError('a bad row')",
    "closes its descriptors": "for number in range(3): os.close(number)",
    "closes its descriptors and raises": "for number in range(3): os.close(number)\nraise ValueError('a bad row')",
    "uses up its descriptors": "try:\n    held = [os.open(os.devnull, 0) for _ in range(256)]\nexcept OSError: pass",
    "may write no byte more": "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))",
    "may write small files only": "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))",
    "loops": "while True: pass",
    "calls once more": "sx.barrier()",
    "forks a child that stays": "if os.fork() == 0: time.sleep(60)",
    "starts a program that keeps its output": "import subprocess\nsubprocess.Popen(['sleep', '60'], env={}, stderr=-3)",
    "hangs at its end": "import atexit\natexit.register(time.sleep, 60)",
}


@dataclass
class Job:
    """A run of the program above."""

    process: subprocess.Popen[bytes]
    folder: Path
    ranks: int

    def target(self, what: str) -> int:
        """The number of a process of the job; 0 if there is none yet, or any more."""
        with suppress(OSError, ValueError):
            if what == "launcher":
                return self.process.pid
            if what == "proxy":
                below = descendants(self.process.pid)
                return next((pid for pid in below if command(pid) in ("hydra_pmi_proxy", "prted")), 0)
            if what == "guard":
                return StatusPages.existing(Path((self.folder / "pages").read_text())).guard[0]
            return int((self.folder / what).read_text())
        return 0

    def hit(self, dice: random.Random) -> str:
        """Do something bad; return what it was."""
        if PRIVATE in os.environ and dice.random() < 0.15:
            place = dice.choice([SHARED_MEMORY, self.folder / "checkpoints"])
            fill(place)
            return f"{place} is full"
        rank = f"rank-{dice.randrange(self.ranks)}"
        kind = dice.random()
        if kind < 0.6:
            what = dice.choice(list(ORDERS))
            order = ORDERS[what]
            if kind < 0.2:
                name = dice.choice(["SIGKILL", "SIGSTOP", "SIGSEGV", "SIGTERM"])
                what = f"gets {name} between or in saves"
                order = LATER.format(seconds=dice.uniform(0, 0.02), name=name)
            part = self.folder / "part"
            part.write_text(order)
            part.replace(self.folder / rank.replace("rank", "order"))
            return f"{rank} {what}"
        what = dice.choice([rank, "guard", "guard", "launcher", "proxy"])
        number = dice.choice([signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
        pid = self.target(what)
        if not self.target("guard") and (what == "proxy" or number == signal.SIGSTOP):
            pid = 0  # before there is a guard, nothing of ours could wake a launcher
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return f"{number.name} to {what}" + " (none)" * (not pid)


def fill(folder: Path) -> None:
    """Leave no free byte where the files of a folder are."""
    with open(folder / "filled", "ab") as file:
        for nbytes in (1 << 20, 1 << 12):
            with suppress(OSError):
                while shutil.disk_usage(folder).free >= nbytes:
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), nbytes)


def mount(folder: Path, size: str) -> None:
    """Give a folder, in the mounts of this program alone, an empty file system of `size`."""
    if PRIVATE in os.environ:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True, timeout=30)


def unmount(folder: Path) -> None:
    if PRIVATE in os.environ:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=30)


def started(folder: Path, ranks: int, how: str, mark: str, output: object) -> subprocess.Popen[bytes]:
    (folder / "train.py").write_text(TRAIN)
    launcher = [str(MPIRUN), "-n", str(ranks)] if ranks > 1 else []
    return subprocess.Popen(
        [*launcher, sys.executable, str(folder / "train.py"), str(folder), how],
        stdin=subprocess.DEVNULL,
        stdout=output,  # type: ignore[arg-type]
        stderr=subprocess.STDOUT,
        env=environment(mark),
        start_new_session=True,
        preexec_fn=as_in_a_shell,
    )


def ended(process: subprocess.Popen[bytes], mark: str, limit: float) -> str | None:
    """Wait for the end of a run; what is wrong with it, or None."""
    try:
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"did not end: {described(still_there(mark, patience=0))}"
        left = still_there(mark, BOUND)
        return f"left {described(left)}" if left else None
    finally:
        kill_marked(mark)
        process.wait()


def described(pids: Sequence[int]) -> str:
    """Number, state and name of processes, and those of their parents."""
    return ", ".join(f"{pid} {state(pid)} {command(pid)} (of {parent(pid)})" for pid in pids)


def again(folder: Path, ranks: int, how: str, bits: str) -> str | None:
    """Start a run again, without faults; what is wrong with it, or None."""
    for file in (*folder.glob("order-*"), folder / "checkpoints" / "filled"):
        file.unlink(missing_ok=True)
    mark = uuid.uuid4().hex
    with tempfile.TemporaryFile() as output:
        process = started(folder, ranks, how, mark, output)
        wrong = ended(process, mark, 3 * HEALTHY)
        output.seek(0)
        said = output.read().decode(errors="replace")
    file = folder / "digest"
    if wrong is None and process.returncode != 0:
        wrong = f"exit code {process.returncode}"
    if wrong is None and (not file.exists() or file.read_text() != bits):
        wrong = "other bits than those of an undisturbed run"
    return wrong and f"the restart: {wrong}\n{said}"


def attempt(seed: int, bits: str) -> str | None:
    """One run and its restart; what is wrong with them, or None."""
    dice = random.Random(seed)
    mark = uuid.uuid4().hex
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryFile() as output:
        folder = Path(name)
        (folder / "checkpoints").mkdir()
        ranks, how = dice.choice([2, 3, 4]), dice.choice(["async", "sync"])
        size = dice.choice([ENOUGH] * 7 + ["100k", "2m", "12m"])
        mount(SHARED_MEMORY, size)
        mount(folder / "checkpoints", "4m")
        try:
            process = started(folder, ranks, how, mark, output)
            job, done = Job(process, folder, ranks), [f"/dev/shm of {size}"]
            try:
                for _ in range(dice.choice([1, 1, 2, 3])):
                    time.sleep(dice.choice([0.1, 0.5, 1.0, 1.5]) + dice.random())
                    done.append(job.hit(dice))
            finally:
                wrong = ended(process, mark, HEALTHY + BOUND)
            output.seek(0)
            wrong = wrong and f"{wrong}\n{output.read().decode(errors='replace')}"
            unmount(SHARED_MEMORY)
            mount(SHARED_MEMORY, ENOUGH)
            wrong = wrong or again(folder, ranks, how, bits)
        finally:
            unmount(SHARED_MEMORY)
            unmount(folder / "checkpoints")
    return wrong and f"seed {seed}, {ranks} ranks, {how}: {'; '.join(done)}: {wrong}"


def undisturbed() -> str:
    """The digest of the weights after a run of one process."""
    mark = uuid.uuid4().hex
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryFile() as output:
        process = started(Path(name), 1, "sync", mark, output)
        wrong = ended(process, mark, 3 * HEALTHY)
        output.seek(0)
        if wrong is not None or process.returncode:
            raise RuntimeError(f"the undisturbed run: {wrong}\n{output.read().decode(errors='replace')}")
        return (Path(name) / "digest").read_text()


def main(seconds: float, seed: int | None = None) -> int:
    """Run for so long; return how many runs were not as they must be."""
    bits = undisturbed()
    first = int(time.time()) if seed is None else seed
    limit, runs, failures = time.monotonic() + seconds, 0, 0
    while time.monotonic() < limit:
        wrong = attempt(first + runs, bits)
        runs += 1
        if wrong is not None:
            failures += 1
            print(wrong, flush=True)
    print(f"chaos: {runs - failures} of {runs} runs and restarts ended as they must (seeds from {first})", flush=True)
    return failures


def can_mount() -> bool:
    unshare = shutil.which("unshare")
    try_it = f"mount -t tmpfs -o size=1m tmpfs {SHARED_MEMORY}"
    return (
        unshare is not None and not subprocess.run([unshare, "-m", "sh", "-c", try_it], capture_output=True).returncode
    )


if __name__ == "__main__":
    if PRIVATE not in os.environ and can_mount():
        os.environ[PRIVATE] = "1"
        os.execvp("unshare", ["unshare", "-m", sys.executable, "-m", "tests.watchdog.chaos", *sys.argv[1:]])
    sys.exit(1 if main(*map(float, sys.argv[1:2] or ["600"]), *map(int, sys.argv[2:3])) else 0)
