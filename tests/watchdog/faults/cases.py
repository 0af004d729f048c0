"""What can go wrong on one rank of four, as scripts; `# here` marks the line that the report must name.

A script speaks to `sx`, which is the package, or `tests.watchdog.faults.bare` for what happens without it.
"""

from __future__ import annotations

from tests.watchdog.faults import saving, training
from tests.watchdog.faults.case import RANKS, TIMEOUT, Case

BEGIN = f"""
import ctypes, os, signal, sys, threading, time
import numpy as np
sx.init(timeout={TIMEOUT})
rank = sx.rank()
a, b = np.ones(4), np.full(4, 2.0)
"""

LOOP = """
for step in range(6):
    sx.comm.note(step=step)
    if step == 3 and rank == 2:
        {fault}
    sx.all_reduce(a)  # here
    assert a[0] == 4.0 ** (step + 1), "WRONG SUM"
"""


def at_step_3(fault: str, *says: str, long: bool = False, mark: bool = False) -> Case:
    """A `fault` of rank 2 in step 3; `mark`: it is itself the line to be named, else the collective of that step is."""
    script = BEGIN + LOOP.format(fault=fault)
    if mark:
        script = script.replace("  # here", "").replace(fault, f"{fault}  # here")
    return Case(script, ("rank 2", "step 3", "all_reduce", "LINE", *says), long)


CASES: dict[str, Case] = {
    "raise": at_step_3('raise ValueError("a bad row")', "ValueError: a bad row", "failed; ending all ranks", mark=True),
    "sys.exit(0)": at_step_3("sys.exit(0)", "has ended .* while rank \\d waits"),
    "sys.exit(3)": at_step_3("sys.exit(3)", "has ended .* while rank \\d waits", long=True),
    "os._exit(0)": at_step_3("os._exit(0)", r"rank 2 \(pid \d+\) (left with os._exit\(0\)|died without a word)"),
    "os._exit(3)": at_step_3("os._exit(3)", r"rank 2 \(pid \d+\) (left with os._exit\(3\)|died)", long=True),
    "kill -9": at_step_3("os.kill(os.getpid(), 9)", r"rank 2 \(pid \d+\) (was killed by SIGKILL|died without a word)"),
    "segmentation fault": at_step_3(
        "ctypes.string_at(0)", r"rank 2 \(pid \d+\) (was killed by SIGSEGV|died)", "Segmentation fault", long=True
    ),
    "SIGSTOP": at_step_3("os.kill(os.getpid(), signal.SIGSTOP)", "rank 2 is frozen"),
    "an infinite loop": at_step_3(
        "while True: pass", "rank 2 has not arrived", "the stack of rank 2, innermost", mark=True
    ),
    "never arrives": at_step_3(
        "time.sleep(60)", "rank 2 has not arrived", "the stack of rank 2, innermost", long=True, mark=True
    ),
    "another shape": at_step_3(
        "a = np.ones(5)", "CollectiveMismatch", r"float64 \(5,\) at LINE", r"float64 \(4,\) at LINE"
    ),
    "another dtype": at_step_3(
        'a = np.ones(4, "f4")', "CollectiveMismatch", r"float32 \(4,\) at", r"float64 \(4,\) at", long=True
    ),
    "another operation": at_step_3("sx.broadcast(a)", "CollectiveMismatch", r"broadcast\(0\) of", long=True, mark=True),
    "an exception in a thread that the loop waits for": at_step_3(
        'from concurrent.futures import *; ThreadPoolExecutor(1).submit(int, "x").result()',
        "ValueError: invalid literal",
        mark=True,
        long=True,
    ),
    "swapped order": Case(
        BEGIN
        + """
for step in range(3):
    sx.comm.note(step=step)
    if step == 1 and rank == 2:
        sx.all_reduce(b)
        sx.all_reduce(a)
    else:
        sx.all_reduce(a)
        sx.all_reduce(b)
assert a[0] == 64 and b[0] == 128, "WRONG SUM"
""",
        ("rank 2", "step 1", "CollectiveMismatch", r"train.py:1[2-7]\b", "called it before"),
    ),
    "a mismatch is caught, and sums would be wrong": Case(
        BEGIN
        + """
for step in range(6):
    sx.comm.note(step=step)
    try:
        if step == 3 and rank == 2:
            sx.broadcast(b)
        sx.all_reduce(np.ones(4))
    except sx.comm.CollectiveMismatch:
        time.sleep(0.1)
    x = np.full(4, float(step))
    sx.all_reduce(x)  # here
    assert x[0] == 4 * step, "WRONG SUM"
""",
        ("rank \\d of 4", "step 3", "LINE", "CollectiveMismatch: this rank makes no further calls", "broadcast"),
        bare=False,
    ),
    "a wrong argument is caught, and sums would be wrong": Case(
        BEGIN
        + """
for step in range(6):
    sx.comm.note(step=step)
    x = np.full(4, float(step))
    try:
        sx.all_reduce(x if rank != 2 or step != 3 else x.astype(object))  # here
    except TypeError:
        sx.all_reduce(np.ones(4))
    sx.all_reduce(x)
    assert x[0] == 16 * step, "WRONG SUM"
""",
        ("rank \\d of 4", "step 3", "LINE", "CollectiveMismatch", "a call with a wrong argument"),
        bare=False,
    ),
    "a mismatch is caught, and the rank works alone": Case(
        BEGIN
        + """
try:
    if rank == 2:
        time.sleep(0.5)
        sx.broadcast(b)
    sx.all_reduce(a)  # here
except sx.comm.CollectiveMismatch:
    time.sleep(60)
""",
        ("rank 2 makes no further calls", "LINE"),
        bare=False,
    ),
    "under if rank == 0": Case(
        BEGIN
        + """
for step in range(3):
    sx.comm.note(step=step)
    sx.all_reduce(a)
if rank == 0:
    sx.all_reduce(b)  # here
""",
        ("has ended .* while rank \\d waits", "step 2", "all_reduce", "LINE"),
    ),
    "under if rank == 0, and others go on": Case(
        BEGIN
        + """
for step in range(3):
    sx.comm.note(step=step)
    if rank == 0:
        sx.all_reduce(np.zeros(1))  # here
    sx.all_reduce(a)
""",
        ("CollectiveMismatch", "step 0", "all_reduce", "LINE"),
        long=True,
    ),
    "a step more": Case(
        BEGIN
        + """
for step in range(4 + (rank == 2)):
    sx.comm.note(step=step)
    sx.all_reduce(a)  # here
""",
        ("has ended .* while rank \\d waits", "rank 2: step 4", "rank 1: has ended, step 3", "all_reduce", "LINE"),
        long=True,
    ),
    "a step fewer": Case(
        BEGIN
        + """
for step in range(4 - (rank == 2)):
    sx.comm.note(step=step)
    sx.all_reduce(a)  # here
""",
        ("rank 2 .* has ended .* while rank \\d waits", "rank 2: has ended, step 2", "step 3", "all_reduce", "LINE"),
    ),
    "a rank dies before MPI starts": Case(
        "import os, time\nif int(os.environ.get('PMI_RANK', os.environ.get('OMPI_COMM_WORLD_RANK'))) == 2:\n"
        "    time.sleep(0.5)\n    os._exit(0)\nsx.init(timeout=30)  # here\nsx.barrier()",
        ("rank 2", "the start of MPI at LINE", r"(left with os._exit\(0\)|died without a word)"),
    ),
    "a rank ends before MPI starts": Case(
        "import os, sys, time\nif int(os.environ.get('PMI_RANK', os.environ.get('OMPI_COMM_WORLD_RANK'))) == 2:\n"
        "    time.sleep(0.5)\n    sys.exit(0)\nsx.init(timeout=30)  # here\nsx.barrier()",
        ("rank 2 .* has ended", "the start of MPI at LINE"),
        long=True,
    ),
    "a rank is killed while MPI starts": Case(
        "import os, time\nrank = int(os.environ.get('PMI_RANK', os.environ.get('OMPI_COMM_WORLD_RANK')))\n"
        "if rank == 2 and os.fork() == 0:\n    time.sleep(0.5)\n    os.kill(os.getppid(), 9)\n    os._exit(0)\n"
        "if rank == 1: time.sleep(3)\nsx.init(timeout=30)  # here\nsx.barrier()",
        ("rank 2", "the start of MPI at LINE"),
        long=True,
    ),
    "an atexit function that does not return": Case(
        BEGIN + "import atexit\nsx.all_reduce(a)\nif rank == 2: atexit.register(time.sleep, 60)",
        (r"the script of rank 2 \(pid \d+\) ended 3 s ago", "rank 1: has ended", "atexit"),
        seconds=20,  # the others wait in the end of MPI, where each takes a core
    ),
    "SIGSTOP after the others have ended": Case(
        BEGIN
        + """
from sorix_dist.watchdog.process import state
pids = sx.all_gather(os.getpid())
if rank == 2:
    libc = ctypes.CDLL(None)
    libc.on_exit(libc.pause, None)  # stay after the end of MPI
    if os.fork() == 0:
        while any(state(pid) in (*"RSD",) for pid in (*pids[:2], pids[3])):
            time.sleep(0.1)
        os.kill(pids[2], signal.SIGSTOP)
        os._exit(0)
""",
        ("rank 2 is frozen",),
        seconds=20,
        bare=False,
    ),
    "what started the ranks is stopped": Case(
        BEGIN
        + "from sorix_dist.watchdog import watch\nlauncher = int(watch.page().pages.path.name.split('-')[2])\n"
        + "sx.barrier()\nif rank == 2: os.kill(launcher, signal.SIGSTOP)",
        (r"what started the ranks \(pid \d+\) is stopped \(state T\)",),
        seconds=20,  # the ranks wait for it in the end of MPI
        bare=False,
    ),
    **{
        f"{name} that does not end": Case(
            BEGIN + f"from concurrent.futures import *\nsx.all_reduce(a)\nif rank == 2: {begin}",
            (r"the script of rank 2 \(pid \d+\) ended 3 s ago", "a thread that is no daemon", f"in {waits}"),
            long=True,
            seconds=20,
        )
        for name, begin, waits in (
            ("a thread", "threading.Thread(target=time.sleep, args=(60,)).start()", "_shutdown"),
            ("a task of an executor", "ThreadPoolExecutor(1).submit(time.sleep, 60)", "_python_exit"),
        )
    },
    "a rank never calls init": Case(
        "import os, time\nif int(os.environ.get('PMI_RANK', os.environ.get('OMPI_COMM_WORLD_RANK'))) == 2:\n"
        "    time.sleep(60)\nsx.init(timeout=2)  # here\nsx.barrier()",
        ("rank 2 has not arrived", "the start of MPI at LINE", "the stack of rank 2"),
        long=True,
    ),
    "a child asks for the ranks before its parent has": Case(
        "import subprocess, sys\n"
        'child = [sys.executable, "-c", "import sorix_dist as sx; sx.size()"]\n'
        "raise OSError(subprocess.run(child, capture_output=True, text=True).stderr.splitlines()[-1])  # here",
        ("LaunchMismatch: the process .* only one of them can be the rank", "LINE"),
        seconds=20,
        bare=False,
    ),
    "init on one rank only, of a program that has started MPI": Case(
        "from mpi4py import MPI\nif MPI.COMM_WORLD.rank == 2: sx.init(timeout=3)  # here",
        ("rank \\d .* has ended .* while rank 2 waits", "the start of a communicator at LINE"),
        seconds=20,
        bare=False,
    ),
    "init on one rank only, and the others work on": Case(
        "import time\nfrom mpi4py import MPI\nif MPI.COMM_WORLD.rank != 2: time.sleep(60)\nsx.init(timeout=3)  # here",
        ("rank 2 has waited 3 s", "rank 0 and rank 1 and rank 3 have not", "the start of a communicator at LINE"),
        seconds=20,
        bare=False,
    ),
    **{
        f"{call} of mpi4py's communicator on one rank only": Case(
            BEGIN
            + "from mpi4py import MPI\nmodel = sx.nn.Linear(2, 2)\n"
            + f"if rank == 2: sx.{call}({first}comm=MPI.COMM_WORLD)  # here\n"
            + "else: time.sleep(60)",
            ("rank 2 has waited 3 s", "rank 0 and rank 1 and rank 3", "the start of a communicator at LINE"),
            seconds=20,
            long=call != "DistributedDataParallel",
            bare=False,
        )
        for call, first in {
            "DistributedDataParallel": "model, ",
            "assert_replicas_equal": "model, ",
            "Checkpointer": "'/nowhere', ",
            "host_shared": "lambda: a, ",
        }.items()
    },
    **training.CASES,
    **saving.CASES,
}

HEALTHY: dict[str, str] = {
    "one rank works on at the end": BEGIN + "sx.all_reduce(a)\nif rank == 0: time.sleep(3)\n",
    "ranks leave one after the other": BEGIN + "sx.all_reduce(a)\ntime.sleep(rank / 2)\n",
    "a busy interpreter": BEGIN.replace(f"timeout={TIMEOUT}", "timeout=60")
    + "sx.all_reduce(a)\nif rank == 1: sorted([str(n * 7919 % 1000003) for n in range(1500000)])\nsx.all_reduce(a)\n",
    "a group ends before another": BEGIN
    + """
group = sx.comm.current().split(rank // 2)
group.barrier()
if rank == 1:
    time.sleep(2)  # rank 0 waits for it; ranks 2 and 3 have ended
if rank < 2:
    group.barrier()
""",
    "all ranks are stopped for a while": BEGIN
    + """
pids = sx.all_gather(os.getpid())
if rank == 0 and os.fork() == 0:
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in pids:
            os.kill(pid, number)
        if number == signal.SIGSTOP:
            time.sleep(4)
    os._exit(0)
for _ in range(40):
    sx.all_reduce(a)
    time.sleep(0.05)
""",
    "child processes of a rank": BEGIN
    + """
import subprocess
sx.all_reduce(a)
if os.fork() == 0:
    os._exit(0)
os.wait()
subprocess.run([sys.executable, "-c", "import sorix_dist"], check=True)
sx.all_reduce(a)
""",
    "a folder that is removed while ranks work in it": BEGIN
    + """
import tempfile
os.chdir(tempfile.mkdtemp())
os.rmdir(os.getcwd())
sx.all_reduce(a)
""",
    "no thread is left to limit the start of MPI": "import faulthandler\n"
    "def fails(*_, **__): raise RuntimeError('unable to start watchdog thread')\n"
    "faulthandler.dump_traceback_later = fails\n" + BEGIN + "sx.all_reduce(a)\n",
    "time-outs that no clock can count": "sx.init(timeout=1e300)\nsx.barrier()\n",
    "children of a rank that ask for the ranks, raise, or end": BEGIN
    + """
import subprocess
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

def forked(work):
    pid = os.fork()
    if pid == 0:
        work()
        sys.exit(3)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def refused():
    try:
        communicator.all_reduce(a)
    except sx.comm.CollectiveMismatch:
        sys.exit(4)

communicator = sx.comm.current()
sx.all_reduce(a)
asks = "import sorix_dist as sx; sx.barrier(); print(sx.size())"
for with_mpi in ("", "; sx.init(backend='mpi')"):
    child = subprocess.run([sys.executable, "-c", asks + with_mpi], capture_output=True, text=True)
    assert (child.returncode, child.stdout) == (int(bool(with_mpi)), "1\\n"), child
with ProcessPoolExecutor(1, get_context("fork")) as pool:
    assert pool.submit(sx.size).result() == 1
assert forked(lambda: 1 / 0) == 1
assert forked(sx.barrier) == 3
assert forked(refused) == 4
sx.all_reduce(a)
assert a[0] == 16
""",
    "ranks branch between the same sums": BEGIN
    + """
for step in range(6):
    if step % RANKS == rank:
        sx.all_reduce(a)
    else:
        sx.all_reduce(np.zeros_like(a))
""".replace("RANKS", str(RANKS)),
    "a root that runs ahead": BEGIN
    + """
for step in range(50):
    if rank == 3: time.sleep(0.002)
    sx.broadcast(a)
""",
    **training.HEALTHY,
    **saving.HEALTHY,
}
