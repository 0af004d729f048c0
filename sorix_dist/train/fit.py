"""The training loop of the README as a function, to call or to copy, and early stopping."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from sorix_dist.core.arguments import as_function, as_int, as_number, as_state, require_methods
from sorix_dist.nn import Module
from sorix_dist.optim.lr_scheduler import ReduceLROnPlateau
from sorix_dist.parallel.world import communicator
from sorix_dist.train.checkpoint import Checkpointer
from sorix_dist.train.evaluate import evaluate
from sorix_dist.train.metrics import Metric
from sorix_dist.train.preempt import Preemption
from sorix_dist.train.progress import print, progress
from sorix_dist.train.recorder import Recorder
from sorix_dist.utils.data import DataLoader


class EarlyStopping:
    """Decides to stop when a number has not improved for some epochs, with the same answer on every rank.

    monitor: the name of the number, for `fit`; patience: the epochs without a better one after which to stop;
    min_delta: by how much it must be better than the best one to count; mode: whether "min" or "max" is better.
    comm: an mpi4py communicator if not all ranks of the job train together. A part of a checkpoint.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 5,
        min_delta: float = 0.0,
        mode: Literal["min", "max"] = "min",
        *,
        comm: Any = None,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"EarlyStopping: mode must be 'min' or 'max', got {mode!r}")
        if not isinstance(monitor, str):
            raise TypeError(f"EarlyStopping: monitor must be the name of a number, got {monitor!r}")
        if not as_number("EarlyStopping: min_delta", min_delta) >= 0:
            raise ValueError(f"EarlyStopping: min_delta must be a number >= 0, got {min_delta!r}")
        self.monitor, self.min_delta, self.mode = monitor, float(min_delta), mode
        self.patience = as_int("EarlyStopping: patience", patience, 1)
        self.best, self.epochs_without = math.inf if mode == "min" else -math.inf, 0
        self._comm = comm

    @property
    def stopped(self) -> bool:
        """Whether `patience` epochs have passed without an improvement."""
        return self.epochs_without >= self.patience

    def should_stop(self, value: Any) -> bool:
        """Records the number of an epoch; returns whether to stop. Rank 0's number counts, and NaN is no improvement. A
        call of all ranks."""
        value = communicator(self._comm).broadcast_object(as_number("should_stop: value", value))
        gain = self.best - value if self.mode == "min" else value - self.best
        if gain > self.min_delta:
            self.best, self.epochs_without = value, 0
        else:
            self.epochs_without += 1
        return self.stopped

    def state_dict(self) -> dict[str, Any]:
        """The best number, and the number of epochs since."""
        return {"best": self.best, "epochs_without": self.epochs_without}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continues from a `state_dict()`."""
        state_dict = as_state("load_state_dict", state_dict, "best", "epochs_without")
        self.best, self.epochs_without = float(state_dict["best"]), int(state_dict["epochs_without"])


def fit(
    model: Module,
    loader: DataLoader,
    criterion: Callable[[Any, Any], Any],
    optimizer: Any,
    *,
    epochs: int,
    valid: DataLoader | None = None,
    metrics: Mapping[str, Metric] | None = None,
    scheduler: Any = None,
    schedule_by: Literal["epoch", "step"] = "epoch",
    early_stopping: EarlyStopping | None = None,
    checkpointer: Checkpointer | None = None,
    preemption: Preemption | None = None,
    recorder: Recorder | None = None,
    verbose: bool = True,
) -> list[dict[str, float]]:
    """Trains until the loader has completed this number of epochs; returns the numbers of each. A call of all ranks.

    model: a wrapped model; a batch is (inputs ..., target). criterion: such as nn.CrossEntropyLoss().
    valid: a loader for an evaluation after each epoch, by the criterion and by `metrics`, each with a single number;
    their names get the prefix "val_".
    scheduler: of learning rates; `schedule_by` chooses whether its step follows each epoch or each optimizer step.
    checkpointer: saves after each epoch; training resumes from its newest checkpoint. preemption: saves there too, and
    ends the program. recorder: logs the numbers of each epoch at its optimizer step. verbose: whether rank 0 shows the
    progress. TypeError or ValueError names an argument that does not fit.
    """
    if not isinstance(loader, DataLoader):
        raise TypeError(f"fit: loader must be a DataLoader, got {type(loader).__name__}")
    epochs = as_int("fit: epochs", epochs, 1)
    as_function("fit: criterion", criterion, "output and target")
    require_methods("fit: model", model, "parameters", "train")
    for name, argument, *methods in (
        ("optimizer", optimizer, "zero_grad", "step"),
        ("valid", valid, "__iter__"),
        ("metrics", metrics, "items"),
        ("scheduler", scheduler, "step"),
        ("early_stopping", early_stopping, "should_stop"),
        ("checkpointer", checkpointer, "save", "load_latest"),
        ("preemption", preemption, "should_stop"),
        ("recorder", recorder, "log"),
    ):
        if argument is not None or name == "optimizer":
            require_methods(f"fit: {name}", argument, *methods)
    if schedule_by not in ("epoch", "step"):
        raise ValueError(f"fit: schedule_by must be 'epoch' or 'step', got {schedule_by!r}")
    if metrics is not None and len(metrics) and valid is None:
        raise ValueError(f"fit: metrics are computed over valid=, got {', '.join(metrics)} without it")
    if preemption is not None and checkpointer is None:
        raise ValueError("fit: preemption needs a checkpointer to save the run with")
    if early_stopping is not None and valid is None and early_stopping.monitor.startswith("val_"):
        raise ValueError(f"fit: early_stopping looks at {early_stopping.monitor!r}, which needs valid=")
    parts = {"model": model, "optimizer": optimizer, "loader": loader}
    parts |= {"scheduler": scheduler} if scheduler is not None else {}
    parts |= {"early_stopping": early_stopping} if early_stopping is not None else {}
    step, history = 0, []
    bar = progress(loader, epochs, shown=verbose)
    if checkpointer is not None and (saved := checkpointer.load_latest(**parts)):
        step, history = saved["step"], saved["history"]
        bar.load_state_dict(saved.get("logged", {"sums": {}}))  # earlier versions have not saved it
        print(f"goes on from step {step}")

    while loader.epoch < epochs and not (early_stopping is not None and early_stopping.stopped):
        model.train()
        for *inputs, target in bar:
            optimizer.zero_grad()
            loss = criterion(model(*inputs), target)
            loss.backward()
            optimizer.step()
            step += 1
            bar.log(loss=loss)
            if scheduler is not None and schedule_by == "step":
                scheduler.step()
            if preemption is not None and checkpointer is not None and preemption.should_stop():
                checkpointer.save(step, history=history, logged=bar.state_dict(), **parts)
                checkpointer.wait()
                preemption.exit()
        numbers = {"epoch": loader.epoch, **bar.means, "samples_per_second": bar.samples_per_second}
        if valid is not None:
            found = evaluate(model, valid, {"loss": criterion, **(metrics or {})})
            numbers |= {f"val_{name}": value for name, value in found.items()}
            if verbose:
                print("  ".join(f"val_{name} {value:.4g}" for name, value in found.items()))
        if scheduler is not None and schedule_by == "epoch":
            watched = (numbers.get("val_loss", numbers["loss"]),) if isinstance(scheduler, ReduceLROnPlateau) else ()
            scheduler.step(*watched)
        history.append(numbers)
        if recorder is not None:
            recorder.log(step, **numbers)
        if early_stopping is not None:
            if early_stopping.monitor not in numbers:
                raise ValueError(f"fit: early_stopping.monitor must be one of {', '.join(numbers)}")
            early_stopping.should_stop(numbers[early_stopping.monitor])
        if checkpointer is not None:
            checkpointer.save(step, history=history, **parts)
    if checkpointer is not None:
        checkpointer.wait()
    if recorder is not None:
        recorder.close()
    return history
