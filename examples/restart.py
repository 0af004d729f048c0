"""Kills one of its own ranks in the middle of training. Under --max-restarts the job goes on from its last checkpoint
and ends with the weights of a run that nothing disturbed, bit for bit.

python examples/restart.py --never
sorix-dist run -n 4 --max-restarts 2 --checkpoint runs/restart examples/restart.py --checkpoint runs/restart

Both print the same hash.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
from pathlib import Path

import numpy as np

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.utils.data import DataLoader, Dataset

DIGITS = Path(__file__).parent / "data" / "digits.npz"
KILLED_AT = 150  # the step in which the last rank kills itself, once


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--epochs", type=int, default=10)
    options.add_argument("--checkpoint", metavar="DIR", help="save there after each epoch, and go on from there")
    options.add_argument("--never", action="store_true", help="kill nothing")
    args = options.parse_args()

    sx.init(virtual_shards=8)  # the same bits on 1 to 8 ranks
    sx.manual_seed(0)
    with np.load(DIGITS) as file:
        x, y = file["images"].astype(np.float32) / 16, file["labels"].astype(np.int64)
    model = sx.DistributedDataParallel(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10)))
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = DataLoader(Dataset(x, y), batch_size=64, shuffle=True)

    step, run = 0, {"model": model, "optimizer": optimizer, "loader": loader}
    checkpointer = sx.Checkpointer(args.checkpoint) if args.checkpoint else None
    resumed = checkpointer is not None and (found := checkpointer.load_latest(**run)) is not None
    if resumed:
        step = found["step"]
        sx.print(f"goes on from step {step}")
    for _ in range(loader.epoch, args.epochs):
        for xb, yb in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(xb), yb).backward()
            optimizer.step()
            step += 1
            if step == KILLED_AT and not resumed and not args.never and sx.rank() == sx.size() - 1:
                os.kill(os.getpid(), signal.SIGKILL)
        if checkpointer is not None:
            checkpointer.save(step, **run)
    weights = hashlib.sha256(b"".join(np.ascontiguousarray(a) for a in model.state_dict().values()))
    sx.print(f"{step} steps, weights {weights.hexdigest()[:16]}")


if __name__ == "__main__":
    main()
