"""What can go wrong where four ranks save, load and read data, as the scripts of `cases`."""

from __future__ import annotations

from tests.watchdog.faults.case import Case

BEGIN = """
import os, resource, signal, sys, threading, time
import numpy as np
from sorix_dist.store.files import Disk
from sorix_dist.utils.data import DataLoader, Dataset

sx.init(timeout=3)
rank = sx.rank()
folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "checkpoints")
saved = sx.Checkpointer(folder, keep=2)
"""

DISK_FULL = """
saved.save(1, array=np.ones(1000))
if rank == 0:
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
try:
    saved.save(2, array=np.ones(1000))  # here
except OSError:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert saved.steps() == [1] and saved.load_latest()["array"].sum() == 1000, "WORK IS LOST"
    raise
"""

LAST_SAVE = """
saved = sx.Checkpointer(folder, async_save=True)
if rank == 0:
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
saved.save(1, array=np.ones(1000))
"""
"""Nothing asks for the error of the thread that writes."""

KILLED = """
sx.comm.note(step=3)
for step in range(1000):
    saved.save(step, array=np.ones(1 << 20))  # here
    if rank == 0 and step == 3:
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGKILL)).start()
"""

OTHER_DATA = """
def loader(first):
    x = np.ones((60, 4), "f4")
    x[0] = first
    return DataLoader(Dataset(x, np.zeros(60, "i8")), batch_size=10)

saved.save(1, loader=loader(0))
saved.load_latest(loader=loader(1))  # here
"""

STOPS = """
class Rows:
    def __len__(self):
        return 60

    def __getitem__(self, index):
        if index >= 30 and rank == 2:
            next(iter([]))  # here
        return np.ones(4, "f4"), 0

for x, y in DataLoader(Rows(), batch_size=10, num_workers=THREADS):
    sx.all_reduce(np.ones(4))
"""


def stops(threads: int) -> Case:
    """The data set of rank 2 raises what would end the epoch there, silently."""
    says = ("rank 2 of 4 .* failed", "StopIteration was raised where a sample or batch was made", "LINE")
    return Case(BEGIN + STOPS.replace("THREADS", str(threads)), says, long=threads > 0, bare=False, seconds=20)


CASES: dict[str, Case] = {
    "a full disk while a checkpoint is saved": Case(
        BEGIN + DISK_FULL, ("rank \\d of 4 .* failed", "the checkpoint can't be", "LINE"), bare=False, seconds=20
    ),
    "a full disk while a thread saves the last checkpoint": Case(
        BEGIN + LAST_SAVE, ("rank 0 of 4 .* failed", "OSError: .*the checkpoint can't be saved"), bare=False, seconds=20
    ),
    "kill -9 while a checkpoint is saved": Case(
        BEGIN + KILLED,
        (r"rank 0 \(pid \d+\) (was killed by SIGKILL|died without a word)", "step 3", "LINE"),
        bare=False,
        seconds=20,
    ),
    "a checkpoint of other data": Case(
        BEGIN + OTHER_DATA,
        ("rank \\d of 4 .* failed", "this loader is not like the one", "LINE"),
        bare=False,
        seconds=20,
    ),
    "StopIteration in the data loader": stops(threads=0),
    "StopIteration in a thread of the data loader": stops(threads=2),
}

HEALTHY: dict[str, str] = {
    "an array that changes while it is saved": BEGIN
    + """
array = np.zeros(1 << 19)

def change():
    while True:
        array[:] += 1

threading.Thread(target=change, daemon=True).start()
for step in range(6):
    saved = sx.Checkpointer(folder, keep=2, async_save=step % 2 == 1)
    saved.save(step, array=array)
    assert saved.load_latest()["step"] == step
""",
    "what is no file among the checkpoints, and a slow disk": BEGIN
    + """
saved.save(1, array=np.ones(3))
if rank == 0:
    (name,) = os.listdir(folder)
    fifo, link, loop, text = (name.replace("1", number) for number in "2345")
    os.chdir(folder)
    os.mkfifo(fifo)
    os.symlink(fifo, link)
    os.symlink(loop, loop)
    open(text, "w").write("no checkpoint")
sx.barrier()
assert saved.load_latest()["step"] == 1

class Slow(Disk):
    def write(self, file, part, at):
        time.sleep(0.4)
        return super().write(file, part[:1 << 16], at)

slow = sx.Checkpointer(folder, async_save=True)
slow.folder.files = Slow()
slow.save(6, array=np.ones(10 << 13))  # takes longer than a rank may be late, and is not ended
""",
}
