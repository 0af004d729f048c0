"""What can go wrong around the ranks: restarts, folders that others can write to, memory, and what a job leaves behind.

Each is a command of a shell in a folder with the script as `train.py`. MPIRUN, PYTHON and SORIX_DIST are what this
environment starts.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.support import restarted

RANKS = "$MPIRUN -n 4 $PYTHON train.py"
OTHER = 12345
"""A user other than the one that runs the tests."""
OWN_SHARED_MEMORY = "exec unshare -m sh -c 'mount -t tmpfs -o size={size} tmpfs /dev/shm && {then}'"


@dataclass(frozen=True)
class Command:
    """A script and the command that runs it; regular expressions for what both outputs say, and for what they don't."""

    script: str
    line: str = RANKS
    says: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    is_healthy: bool = False
    """Whether the command ends with code 0."""
    needs_root: bool = False
    long: bool = False


RESTARTS = "mkdir saved && $SORIX_DIST run -n 2 --max-restarts 2 --checkpoint saved train.py"

SHADOW = """
import os, sys
import sorix_dist as sx

def work():
    return sx.rank()

if __name__ == "__main__":
    assert sx.run(work, num_proc=4) == [0, 1, 2, 3]
    sys.stdout.write("all ranks have worked\\n")
"""

IN_A_FOLDER_WITH_SHADOWS = (
    'mkdir place && cd place && for name in json pickle pathlib numpy mpi4py site; do echo "import os; '
    "os.write(1, b'IT RAN'); os._exit(3)\" > $name.py; done && "
)

SQUAT = " && ".join(
    f"install -d -o {OTHER} /dev/shm/sorix_dist-0.{number} $TMPDIR/sorix_dist-0.{number}" for number in range(8)
)

BEGIN = """
import os, resource, signal, socket, sys, time
import numpy as np
import sorix_dist as sx
from sorix_dist.watchdog import watch
sx.init(timeout=3)
rank, a = sx.rank(), np.ones(4)
sx.barrier()
"""

FLOOD = f"""
pages = watch.page().pages
if rank == 0:
    os.chmod(pages.socket_path, 0o777)
    os.chmod(pages.path.parent, 0o711)  # else no other user comes this far
    if os.fork() == 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (9999, 9999))
        os.setuid({OTHER})
        kept = []
        for _ in range(2000):
            kept.append(socket.socket(socket.AF_UNIX))
            kept[-1].settimeout(1)
            try:
                kept[-1].connect(pages.socket_path)
            except OSError:
                break
        os._exit(0)
    os.wait()
    os.chmod(pages.path.parent, 0o700)
sx.barrier()
if rank == 2: sys.exit(0)
sx.all_reduce(a)  # here
"""

EXCHANGED = f"""
import os, pickle, sys, tempfile
from pathlib import Path
import sorix_dist as sx

class Marks:
    def __reduce__(self):
        return os.mkdir, (str(Path(__file__).with_name("ran")),)

def work(place):
    if sx.rank() == 0:
        (folder,) = Path(place).glob("sorix_dist-*")
        folder.rename(folder.with_name("taken"))
        folder.mkdir(mode=0o700)
        for name in ("call", *(f"result-{{rank}}" for rank in range(4))):
            (folder / name).write_bytes(pickle.dumps(Marks()))
            os.chown(folder / name, {OTHER}, -1)
        os.chown(folder, {OTHER}, -1)
    sx.barrier()
    return sx.rank()

if __name__ == "__main__":
    assert sx.run(work, (tempfile.gettempdir(),), num_proc=4) == [0, 1, 2, 3]
    assert not Path("ran").exists(), "IT RAN"
"""

LEAVES = BEGIN + "window = sx.comm.current().window(1 << 20)\nsx.barrier()\nif rank == 1: os.kill(os.getpid(), 9)\n"
NOTHING_STAYS = "sleep 2; find /dev/shm $TMPDIR -type f; exit 1"

COMMANDS: dict[str, Command] = {
    "restarts go on while newer steps are saved": Command(
        restarted.SCRIPT, f"{RESTARTS} saves 2", ("the job ended with code .*; restart 2 of 2",), is_healthy=True
    ),
    "restarts end where no newer step is saved": Command(
        restarted.SCRIPT,
        f"{RESTARTS} does-not",
        ("rank 1 .* has ended", "2 attempts in a row saved no later step in .*saved"),
        ("restart 2",),
    ),
    "sx.run beside a json.py": Command(
        SHADOW,
        f"{IN_A_FOLDER_WITH_SHADOWS} exec $PYTHON ../train.py",
        ("all ranks have worked",),
        ("IT RAN",),
        is_healthy=True,
    ),
    "the doctor beside a json.py": Command(
        "",
        f"{IN_A_FOLDER_WITH_SHADOWS} $SORIX_DIST doctor",
        ("ok  MPI", "ok  NumPy"),
        ("IT RAN",),
        is_healthy=True,
        long=True,
    ),
    "a folder of sx.run in which others can rename": Command(
        SHADOW,
        "mkdir -m 777 shared && TMPDIR=$PWD/shared exec $PYTHON train.py",
        ("other users can exchange what lies in .*shared .*no sticky bit.* set TMPDIR to a folder of your own",),
    ),
    "another user exchanges the folder of sx.run": Command(
        EXCHANGED, "exec $PYTHON train.py", never=("IT RAN",), is_healthy=True, needs_root=True
    ),
    **{
        f"others have the folders of status pages, and {name}": Command(
            f"{BEGIN}if rank == 2: {fault}\nsx.all_reduce(a)",
            OWN_SHARED_MEMORY.format(size="64m", then=f"{SQUAT} && exec {RANKS}"),
            ("no private folder of this user can be made in .*; set TMPDIR to one of your own", says),
            needs_root=True,
            long=long,
        )
        for name, fault, says, long in (
            ("a rank ends", "sys.exit(0)", "rank 2 has ended", False),
            ("a rank raises", "raise ValueError('a bad row')", "rank 2 of 4 .* failed[^$]*ValueError: a bad row", True),
        )
    },
    "another user floods the guard's socket": Command(
        BEGIN + FLOOD, says=("rank 2 .* has ended .* while rank \\d waits for it in all_reduce",), needs_root=True
    ),
    **{
        f"shared memory of {size}": Command(
            BEGIN,
            OWN_SHARED_MEMORY.format(size=size, then=f"exec {RANKS}"),
            (r"need \d+ MB of shared memory more, and /dev/shm has 0 MB left: .* --shm-size=2g", *says),
            needs_root=True,
        )
        for size, says in (("8k", ("/dev/shm.* KB left, and 8 KB are needed for each rank",)), ("100k", ()))
    },
    "shared memory that is full at the first window": Command(
        BEGIN + "sx.comm.current().window(1 << 24)",
        OWN_SHARED_MEMORY.format(size="32m", then=f"exec {RANKS}"),
        (r"need \d+ MB of shared memory more, and /dev/shm has \d+ MB left: .* --shm-size=2g",),
        ("Bus error",),
        needs_root=True,
    ),
    "what a killed job leaves in shared memory and the temporary folder": Command(
        LEAVES,
        OWN_SHARED_MEMORY.format(size="64m", then=f"{RANKS}; {NOTHING_STAYS}"),
        (r"rank 1 \(pid \d+\) (was killed by SIGKILL|died)",),
        ("(?m)^/dev/shm/", "(?m)^.*hydra_hwloc"),
        needs_root=True,
    ),
    "a job in another PID namespace beside a living one": Command(
        BEGIN + "time.sleep(4)\nsx.barrier()\nassert rank or watch.page().pages.path.exists(), 'REMOVED'",
        f"{RANKS} & sleep 2; unshare --pid --fork --mount-proc $PYTHON -c 'import sorix_dist.watchdog.page_folder as s;"
        " s.remove_stale()'; wait $!",
        never=("REMOVED",),
        is_healthy=True,
        needs_root=True,
    ),
    "ranks in PID namespaces of their own": Command(
        # The guard looks at ranks several times in two seconds, and must end none of them.
        BEGIN.replace("timeout=3", "timeout=60") + "time.sleep(2)\nsx.barrier()",
        # Messages by shared memory fail there by themselves.
        "export OMPI_MCA_btl=self,tcp MPIR_CVAR_CH4_CMA_ENABLE=0 UCX_TLS=self,tcp; "
        "exec $MPIRUN -n 2 unshare --pid --fork --mount-proc $PYTHON train.py",
        ("noticed late.* what started the ranks can't be seen from this container",),
        is_healthy=True,
        needs_root=True,
    ),
    "a launcher that hidepid hides from its ranks": Command(
        # The guard looks at ranks several times in two seconds, and must end none of them.
        BEGIN.replace("timeout=3", "timeout=60") + "time.sleep(2)\nsx.barrier()",
        # Open MPI starts no ranks of another user.
        f"$MPIRUN --version | grep -q 'Open MPI' && exec {RANKS}; "
        "exec unshare -m sh -c 'mount -o remount,hidepid=2 /proc && chmod 777 . $TMPDIR && exec $MPIRUN -n 4 setpriv "
        f"--reuid {OTHER} --clear-groups --inh-caps +dac_read_search --ambient-caps +dac_read_search $PYTHON train.py'",
        never=("is gone",),
        is_healthy=True,
        needs_root=True,
    ),
    "SIGTERM to mpirun": Command(
        # mpirun's signal must end the ranks long before they would end by themselves.
        BEGIN + "if rank == 1: os.kill(int(os.environ['LAUNCHER']), signal.SIGTERM)\ntime.sleep(9)",
        f"LAUNCHER=$$ exec {RANKS}",
        never=(r"rank \d \(pid \d+\) (was|died|left)",),
    ),
    "a child without the ranks' variables that holds the output": Command(
        BEGIN + "import subprocess\nif rank == 1: subprocess.Popen(['sleep', '60'], env={})",
        says=("which one of them has started, keeps their output open",),
        is_healthy=True,
    ),
    "ranks whose standard error is closed": Command(
        BEGIN, "exec $MPIRUN -n 4 sh -c 'exec $PYTHON train.py 2>&-'", is_healthy=True
    ),
    "a raise without standard streams": Command(
        BEGIN + "if rank == 2:\n    sys.stdout = sys.stderr = None\n    raise ValueError('a bad row')\nsx.barrier()",
        says=("rank 2 of 4 .* failed; ending all ranks", "ValueError: a bad row"),
    ),
    "other BLAS kernels on one rank of a reproducible run": Command(
        "import sorix_dist as sx\nsx.init(timeout=3, virtual_shards=8)",
        "$MPIRUN -n 4 sh -c 'test ${PMI_RANK:-$OMPI_COMM_WORLD_RANK} != 2 || export OPENBLAS_CORETYPE=Prescott; "
        "exec $PYTHON train.py'",
        ("kernels must be the same on every rank", "rank 2"),
    ),
}
