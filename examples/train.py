"""Trains a classifier of handwritten digits, on one process or on any number of ranks, with the same result.

python examples/train.py
mpirun -n 4 python examples/train.py
mpirun -n 4 python examples/train.py --checkpoint runs/digits    # goes on there when it is started again
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.utils.data import DataLoader, Dataset

DIGITS = Path(__file__).parent / "data" / "digits.npz"


def digits() -> tuple[Dataset, Dataset]:
    """The training and the test set: images as 64 numbers from 0 to 1, labels 0 to 9."""
    with np.load(DIGITS) as file:
        images, labels = file["images"].astype(np.float32) / 16, file["labels"].astype(np.int64)
        return tuple(Dataset(images[file[part]], labels[file[part]]) for part in ("train", "test"))


def accuracy(model: nn.Module, loader: DataLoader) -> float:
    """The share of samples, over all ranks, whose class the model finds."""
    metric = sx.metrics.Accuracy()
    model.eval()
    with sx.no_grad():
        for xb, yb in loader:
            metric.update(model(xb), yb)
    model.train()
    return metric.compute()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--epochs", type=int, default=20)
    options.add_argument("--batch-size", type=int, default=64, help="rows of a global batch, over all ranks")
    options.add_argument("--lr", type=float, default=0.1)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--save", metavar="FILE.npz", help="write the final weights")
    options.add_argument(
        "--checkpoint", metavar="DIR", help="save after each epoch and when preempted, and go on there"
    )
    options.add_argument("--record", metavar="DIR", help="record loss and accuracy of each epoch: sorix-dist plot DIR")
    options.add_argument("--virtual-shards", type=int, metavar="N", help="the same bits on any number of ranks up to N")
    args = options.parse_args()
    if args.save and not Path(args.save).absolute().parent.is_dir():
        options.error(f"--save: there is no folder {Path(args.save).parent}")

    sx.init(virtual_shards=args.virtual_shards)
    sx.manual_seed(args.seed)
    train, test = digits()
    model = sx.DistributedDataParallel(
        nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    )
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, weight_decay=1e-4)
    train_loader = DataLoader(train, batch_size=args.batch_size, shuffle=True)
    test_loader = DataLoader(test, batch_size=256)
    mean_loss = sx.metrics.Mean()
    sx.print(f"{len(train)} digits to train on, {len(test)} to test, ranks: {sx.size()}")

    recorder = sx.Recorder(args.record, vars(args)) if args.record else None
    step, run = 0, {"model": model, "optimizer": optimizer, "loader": train_loader, "loss": mean_loss}
    if args.checkpoint:
        checkpointer, preemption = sx.Checkpointer(args.checkpoint), sx.Preemption()
        if saved := checkpointer.load_latest(**run):
            step = saved["step"]
            sx.print(f"goes on from step {step}")

    for epoch in range(train_loader.epoch, args.epochs):
        started, rows = time.perf_counter(), 0
        for xb, yb in train_loader:
            optimizer.zero_grad()
            loss = criterion(model(xb), yb)
            loss.backward()
            optimizer.step()
            mean_loss.update(loss.item(), len(yb))
            step, rows = step + 1, rows + sx.global_rows(yb)
            if args.checkpoint and preemption.should_stop():
                checkpointer.save(step, **run)
                sx.print(f"preempted, saved at step {step}")
                preemption.exit()
        speed = rows / (time.perf_counter() - started)
        loss_of_epoch, right = mean_loss.compute(), accuracy(model, test_loader)
        sx.print(f"epoch {epoch + 1:2d}  loss {loss_of_epoch:.6f}  test accuracy {right:.2%}  {speed:,.0f} samples/s")
        if recorder:
            recorder.log(step, loss=loss_of_epoch, test_accuracy=right, samples_per_second=speed)
        mean_loss.reset()
        if args.checkpoint:
            checkpointer.save(step, **run)
    if recorder:
        recorder.close()
    if args.save and sx.is_main_process():
        np.savez(args.save, **model.state_dict())


if __name__ == "__main__":
    main()
