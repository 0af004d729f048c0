"""`python -m tests.watchdog.chaos SECONDS`: random faults at random moments of training, which hit the watchdog too.

Every run must end within the time-out plus ten seconds after the last fault, or after its own end, and leave nothing.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sorix_dist.launch.processes import descendants
from sorix_dist.watchdog.process import command
from sorix_dist.watchdog.status_page import StatusPages
from tests.launching import MPIRUN, as_in_a_shell, environment, kill_marked, still_there

TIMEOUT = 3.0
BOUND = TIMEOUT + 10
HEALTHY = 15.0
"""Seconds that a run without a fault may take, beside other work on the machine."""

TRAIN = f"""
import os, resource, signal, sys, time
import numpy as np
import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.watchdog import watch

resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
sx.init(timeout={TIMEOUT})
rank, folder = sx.rank(), sys.argv[1]
open(f"{{folder}}/table", "w").write(str(watch.page().pages.path))
model = sx.DistributedDataParallel(nn.Linear(16, 4))
optimizer = optim.SGD(model.parameters(), lr=0.1)
open(f"{{folder}}/rank-{{rank}}", "w").write(str(os.getpid()))
for step in range(200):
    order = f"{{folder}}/order-{{rank}}"
    if os.path.exists(order):
        todo = open(order).read()
        os.remove(order)
        exec(todo)
    optimizer.zero_grad()
    model(sx.tensor(np.ones((8, 16), "f4"))).mean().backward()
    optimizer.step()
    sx.all_reduce(np.ones(4))
    time.sleep(0.005)
"""

ORDERS = {
    "ends": "sys.exit(0)",
    "leaves": "os._exit(0)",
    "raises": "raise ValueError('a bad row')",
    "raises without streams": "sys.stdout = sys.stderr = None\nraise ValueError('a bad row')",
    "closes its descriptors": "for number in range(3): os.close(number)",
    "closes its descriptors and raises": "for number in range(3): os.close(number)\nraise ValueError('a bad row')",
    "uses up its descriptors": "try:\n    held = [os.open(os.devnull, 0) for _ in range(256)]\nexcept OSError: pass",
    "loops": "while True: pass",
    "calls once more": "sx.barrier()",
    "forks a child that stays": "if os.fork() == 0: time.sleep(60)",
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
                return StatusPages.existing(Path((self.folder / "table").read_text())).guard[0]
            return int((self.folder / what).read_text())
        return 0

    def hit(self, dice: random.Random) -> str:
        """Do something bad to a process; says what."""
        rank = f"rank-{dice.randrange(self.ranks)}"
        if dice.random() < 0.5:
            what = dice.choice(list(ORDERS))
            part = self.folder / "part"
            part.write_text(ORDERS[what])
            part.replace(self.folder / rank.replace("rank", "order"))
            return f"{rank} {what}"
        what = dice.choice([rank, "guard", "guard", "launcher", "proxy"])
        number = dice.choice([signal.SIGKILL, signal.SIGSTOP])
        pid = self.target(what)
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return f"{number.name} to {what}" + " (none)" * (not pid)


def attempt(seed: int) -> str | None:
    """One run; what is wrong with it, or None."""
    dice = random.Random(seed)
    mark = uuid.uuid4().hex
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryFile() as output:
        folder = Path(name)
        (folder / "train.py").write_text(TRAIN)
        ranks = dice.choice([2, 3, 4])
        process = subprocess.Popen(
            [str(MPIRUN), "-n", str(ranks), sys.executable, str(folder / "train.py"), name],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment(mark),
            start_new_session=True,
            preexec_fn=as_in_a_shell,
        )
        job, done = Job(process, folder, ranks), []
        try:
            for _ in range(dice.choice([1, 1, 2, 3])):
                time.sleep(dice.choice([0.1, 0.5, 1.0, 1.5]) + dice.random())
                done.append(job.hit(dice))
            wrong = None
            try:
                process.wait(HEALTHY + BOUND)
            except subprocess.TimeoutExpired:
                wrong = "did not end"
            if wrong is None and (left := still_there(mark)):
                wrong = f"left {[(pid, command(pid)) for pid in left]}"
        finally:
            kill_marked(mark)
            process.wait()
        output.seek(0)
        said = output.read().decode(errors="replace")
    return wrong and f"seed {seed}, {ranks} ranks: {'; '.join(done)}: {wrong}\n{said}"


def main(seconds: float, seed: int | None = None) -> int:
    """Run for so long; returns how many runs were not as they must be."""
    first = int(time.time()) if seed is None else seed
    limit, runs, failures = time.monotonic() + seconds, 0, 0
    while time.monotonic() < limit:
        wrong = attempt(first + runs)
        runs += 1
        if wrong is not None:
            failures += 1
            print(wrong, flush=True)
    print(f"chaos: {runs - failures} of {runs} runs ended as they must (seeds from {first})", flush=True)
    return failures


if __name__ == "__main__":
    sys.exit(1 if main(*map(float, sys.argv[1:2] or ["600"]), *map(int, sys.argv[2:3])) else 0)
