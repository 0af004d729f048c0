"""What can go wrong on one rank of four that trains a model, as the scripts of `cases`."""

from __future__ import annotations

from tests.watchdog.faults.case import Case

MODEL = """
import numpy as np
from sorix_dist import nn, optim
from sorix_dist.core.op import op

@op()
def breaks(x):
    def rule(g, out):
        raise ValueError("a bad row")  # here
    return x.copy(), (rule,)

sx.init(timeout=3)
rank = sx.rank()
sx.manual_seed(0)
model = sx.DistributedDataParallel(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear({out}, 3)))
criterion, optimizer = nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=0.1)
for step in range(6):
    sx.comm.note(step=step)
    optimizer.zero_grad()
    scores = model(sx.tensor(np.ones((6, 4), "f4")))
    {before}
    criterion(scores, np.zeros(6, "i8")).backward()
    {after}
    optimizer.step()
"""


def model(before: str = "pass", after: str = "pass", out: str = "8") -> str:
    return MODEL.format(before=before, after=after, out=out)


PLAIN = """
import os, signal
import numpy as np
from sorix_dist import nn, optim
from sorix_dist.utils.data import DataLoader, Dataset

sx.init(timeout=3)
model = sx.DistributedDataParallel(nn.Linear(4, 3))
criterion, optimizer = nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=0.1)
loader = DataLoader(Dataset(np.ones((60, 4), "f4"), np.zeros(60, "i8")), batch_size=10)
for number, (x, y) in enumerate(loader, 1):
    optimizer.zero_grad()
    if number == 4 and sx.rank() == 2:
        {fault}
    criterion(model(x), y).backward()  # here
    optimizer.step()
"""


def in_plain_training(fault: str, *says: str, long: bool = False) -> Case:
    """A `fault` of rank 2 before its fourth backward, in a program that says nothing of its steps: the package does."""
    return Case(PLAIN.format(fault=fault), (*says, "step 4, in backward at LINE"), long, bare=False)


LOCAL = """
import os
import numpy as np
from sorix_dist import nn, optim
from sorix_dist.comm import mpi
from sorix_dist.utils.data import DataLoader, Dataset

mpi.locate = lambda host_of, rank: (rank, len(host_of), 0, 1)  # as if each rank were on a host of its own
sx.init(timeout=3, virtual_shards=8)
model = nn.Sequential(nn.Linear(4, 30_000), nn.Linear(30_000, 3))
criterion, optimizer = nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=1e-6)
local = sx.LocalSGD(model, optimizer, every=3, overlap=True)
loader = DataLoader(Dataset(np.ones((400, 4), "f4"), np.zeros(400, "i8")), batch_size=10)
for number, (xb, yb) in enumerate(loader, 1):
    for x, y in local.workers(xb, yb):
        optimizer.zero_grad()
        if number == 4 and sx.rank() == 2:
            os.kill(os.getpid(), 9)
        criterion(model(x), y).backward()
        optimizer.step()
local.synchronise()
"""

FETCHING = """
import numpy as np
from sorix_dist import nn, optim
from sorix_dist.utils.data import DataLoader

class Rows:
    def __len__(self):
        return 60

    def __getitem__(self, index):
        if index >= 30 and sx.rank() == 2:
            raise OSError(f"there is no row {{index}}")  # here
        return np.ones(4, "f4"), 0

sx.init(timeout=3)
model = sx.DistributedDataParallel(nn.Linear(4, 3))
criterion, optimizer = nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=0.1)
for x, y in DataLoader(Rows(), batch_size=10, num_workers={threads}):
    optimizer.zero_grad()
    criterion(model(x), y).backward()
    optimizer.step()
"""


def in_the_loader(threads: int) -> Case:
    """The data set of rank 2 fails for the fourth batch."""
    says = ("rank 2 of 4 .* failed", "step 3, last seen in optimizer.step at .*train.py:", "in __getitem__", "LINE")
    names = (
        "OSError: there is no row 3\\d",
        "raised by the data set for sample 3\\d",
        "batch 3 of epoch 0 of the data loader",
    )
    return Case(FETCHING.format(threads=threads), (*says, *names), long=threads == 0, bare=False)


NOT_FINITE = """
import numpy as np
from sorix_dist import nn, optim
from sorix_dist.utils.data import DataLoader, Dataset

sx.init(timeout=3)
sx.manual_seed(0)
model = sx.DistributedDataParallel(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)){options})
criterion, optimizer = nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
loader = DataLoader(Dataset(np.ones((60, 4), "f4"), np.zeros(60, "i8")), batch_size=10)
weights = []
for number, (x, y) in enumerate(loader, 1):
    optimizer.zero_grad()
    if number == 4 and sx.rank() == 2:
        x.array[0, 1] = float("{bad}")
    criterion(model(x), y).backward()  # here
    optimizer.step()
    weights.append(b"".join(p.numpy().tobytes() for p in model.parameters()))
    assert sx.all_gather(weights[-1]) == [weights[-1]] * sx.size()
"""


def not_finite(bad: str, options: str = "") -> str:
    return NOT_FINITE.format(bad=bad, options=options)


def is_named(bad: str, options: str = "") -> Case:
    """A value of rank 2 that is not finite raises on all ranks, which say whose it is."""
    says = ("FloatingPointError: .*that of '0.W' on rank 2 is nan", "in backward number 4, at LINE", "step 4")
    return Case(not_finite(bad, options), says, long=bad != "nan", bare=False)


HERE = 'if step == 3 and rank == 2: raise ValueError("a bad row")  # here'

CASES: dict[str, Case] = {
    "raise before backward": Case(
        model(before=HERE).replace('"a bad row")  # here\n    return', '"a bad row")\n    return'),
        ("rank 2 of 4", "step 3, last seen in .* at .*train.py:", "LINE", "ValueError: a bad row"),
        long=True,
        bare=False,
    ),
    "raise in backward": Case(
        model(before="scores = breaks(scores) if step == 3 and rank == 2 else scores"),
        ("rank 2 of 4", "step 3, last seen in backward at", "in rule", "LINE", "ValueError: a bad row"),
        bare=False,
    ),
    "raise after backward": Case(
        model(after=HERE).replace('"a bad row")  # here\n    return', '"a bad row")\n    return'),
        ("rank 2 of 4", "step 3, last seen in backward at", "LINE", "ValueError: a bad row"),
        long=True,
        bare=False,
    ),
    "a step of a wrapped model fewer": Case(
        model(after="if step == 2 and rank == 2: break")
        .replace("# here", "")
        .replace(".backward()", ".backward()  # here"),
        (
            "rank 2 .* has ended .* while rank \\d waits",
            "rank 2: has ended, step 2",
            r"rank 0: step \d, in .*; now at .*train.py:",
        ),
        bare=False,
    ),
    "kill -9 in plain training": in_plain_training(
        "os.kill(os.getpid(), 9)",
        r"rank 2 \(pid \d+\) (was killed by SIGKILL|died).*step 3, last seen in optimizer.step at .*train.py:",
    ),
    "kill -9 while a sum of LocalSGD is under way": Case(
        LOCAL,
        (r"rank 2 \(pid \d+\) (was killed by SIGKILL|died).*step 3, last seen in all_gather .* at .*train.py:",),
        bare=False,
    ),
    "SIGSTOP in plain training": in_plain_training(
        "os.kill(os.getpid(), signal.SIGSTOP)",
        "rank 2 is frozen",
        "rank 2: step 3, last seen in optimizer.step at .*train.py:",
        long=True,
    ),
    "an infinite loop in plain training": in_plain_training(
        "while True: pass",
        "rank 2 has not arrived",
        "rank 2: step 3, last seen in optimizer.step at .*train.py:.*; now at .*train.py:",
        long=True,
    ),
    "another parameter to train": Case(
        model(before="pass")
        .replace("criterion,", "sx.DistributedDataParallel(frozen(nn.Linear(2, 2)))  # here\ncriterion,")
        .replace(
            "@op()",
            """def frozen(layer):
    for parameter in layer.parameters():
        parameter.requires_grad = rank != 2
    return layer

@op()""",
        )
        .replace('"a bad row")  # here', '"a bad row")'),
        ("rank . of 4", "rank 2 has .* that requires no gradient", "LINE"),
        long=True,
        bare=False,
    ),
    "another model": Case(
        model(out="8 if rank != 2 else 7").replace("nn.Linear(4, 8)", "nn.Linear(4, 8 if rank != 2 else 7)"),
        ("rank . of 4", "must be the same on every rank", "train.py:"),
        bare=False,
    ),
    "an exception in a thread of the data loader": in_the_loader(threads=2),
    "an exception in the data loader": in_the_loader(threads=0),
    "NaN in a gradient": is_named("nan"),
    "infinity in a gradient": is_named("inf", ", nonfinite='raise'"),
}

HEALTHY: dict[str, str] = {
    "NaN in a gradient, and that step is left out": not_finite("nan", ", nonfinite='skip'")
    + "assert weights[3] == weights[2] != weights[1] and weights[4] != weights[3]\n",
    "NaN in a gradient, and it goes on": not_finite("nan", ", nonfinite='allow'")
    + "assert all(np.isnan(p.numpy()).any() for p in model.parameters())\n",
}
