"""`sorix-dist run --max-restarts` around a training run that saves: whatever happens, the same bits in the end."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.support.jobs import LIMIT, SORIX_DIST, finished, job
from tests.support.launching import needs_mpirun
from tests.support.restarted import SCRIPT

pytestmark = [needs_mpirun, pytest.mark.timeout(240)]

TRAINING = """
import hashlib, os, sys, time
import numpy as np
import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.utils.data import DataLoader, Dataset

folder, pause, killed_at = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
sx.init(virtual_shards=4)
sx.manual_seed(0)
rng = np.random.default_rng(0)
data = Dataset(rng.standard_normal((90, 8)).astype("f4"), rng.integers(0, 3, 90))
model = sx.DistributedDataParallel(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)))
optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
loader = DataLoader(data, batch_size=30, shuffle=True)
checkpointer, preemption = sx.Checkpointer(folder), sx.Preemption()
state = checkpointer.load_latest(model=model, optimizer=optimizer, loader=loader)
step = state["step"] if state else 0
while step < 12:
    for x, y in loader:
        optimizer.zero_grad()
        nn.CrossEntropyLoss()(model(x), y).backward()
        optimizer.step()
        step += 1
        checkpointer.save(step, model=model, optimizer=optimizer, loader=loader)
        if step == killed_at and sx.rank() == 1 and os.environ["SORIX_DIST_ATTEMPT"] == "0":
            os.kill(os.getpid(), 9)
        if sx.is_main_process():
            print("step", step, flush=True)
        time.sleep(pause)
        if preemption.should_stop():
            preemption.exit()
        if step == 12:
            break
if sx.is_main_process():
    print("SHA", hashlib.sha256(b"".join(p.data.tobytes() for p in model.parameters())).hexdigest())
"""


@pytest.fixture
def undisturbed(script: Path) -> str:
    """The hash of the weights that one process ends with, at one go."""
    script.write_text(TRAINING)
    return digest(finished([sys.executable, "train.py", "alone", "0", "0"]))


def digest(ended: tuple[int, str]) -> str:
    code, output = ended
    assert code == 0, output
    (found,) = re.findall(r"SHA (\w+)", output)
    return str(found)


def test_a_killed_rank_changes_no_bit(undisturbed: str) -> None:
    ended = finished(
        [*SORIX_DIST, "run", "-n", "2", "--max-restarts", "2", "--checkpoint", "saved", "train.py", "saved", "0", "7"]
    )
    assert digest(ended) == undisturbed
    assert ended[1].count("restart 1 of 2") == 1
    assert "restart 2" not in ended[1]


def test_a_job_that_had_to_make_room_goes_on_where_it_was(undisturbed: str) -> None:
    argv = [*SORIX_DIST, "run", "-n", "2", "--max-restarts", "2", "--checkpoint", "saved", "train.py", "saved"]
    with job([*argv, "0.3", "0"]) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "step 2" in line:
                break
        process.terminate()
        said = process.stdout.read()
        assert process.wait(LIMIT) == 75, said
    assert "SHA" not in said
    assert "restart" not in said
    again = finished([*argv, "0", "0"])
    assert digest(again) == undisturbed
    assert "step 2\n" not in again[1]


@pytest.mark.parametrize(("what", "code", "starts"), [("saves", 0, 5), ("does-not", 3, 2)])
def test_only_a_later_step_in_a_valid_file_is_progress(script: Path, what: str, code: int, starts: int) -> None:
    script.write_text(SCRIPT)
    argv = ["run", "-n", "1", "--max-restarts", "9", "--checkpoint", "saved", "train.py", what, "4"]
    ended, output = finished([*SORIX_DIST, *argv])
    assert ended == code, output
    assert output.count("the job ended with code 3") == starts - (code == 0), output
    assert ("2 attempts in a row saved no later step in " in output) == (code == 3)
