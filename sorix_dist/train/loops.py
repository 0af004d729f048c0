"""The loops of the README as functions, to call or to copy: training, evaluation and prediction on all ranks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np

from sorix_dist.core import Tensor, no_grad
from sorix_dist.core.arguments import as_function, as_int, described, one_of, require_methods
from sorix_dist.core.tensor import Array
from sorix_dist.nn.module import Module
from sorix_dist.nn.summary import evaluation
from sorix_dist.optim.lr_scheduler import ReduceLROnPlateau
from sorix_dist.parallel.collectives import global_rows, global_value
from sorix_dist.parallel.forward import evaluated
from sorix_dist.parallel.world import communicator
from sorix_dist.train.checkpoint import Checkpointer
from sorix_dist.train.metrics import Mean, Metric
from sorix_dist.train.progress import print, progress
from sorix_dist.train.recorder import Recorder
from sorix_dist.train.stopping import EarlyStopping, Preemption
from sorix_dist.utils.data import DataLoader


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
    one_of("fit: schedule_by", schedule_by, "epoch", "step")
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
        print(f"goes on from step {step}" + f", where all {epochs} epochs are done" * (loader.epoch >= epochs))

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


def evaluate(
    model: Module,
    loader: Iterable[Any],
    metrics: Mapping[str, Any] | Iterable[Any] | Any,
    *,
    step: Callable[[Module, Any], tuple[Any, Any]] | None = None,
) -> dict[str, Any]:
    """The values of metrics over all samples of a loader's data set, each sample once. A call of all ranks.

    metrics: metrics, which are reset first, and criteria such as nn.CrossEntropyLoss(): one, several, or a dict of
        them by name. The default name of a metric is that of its class in snake case, of a criterion "loss". The value
        of a criterion is its mean over the batches, weighted by their rows.
    step: a function of model and batch that returns (output, target); by default a batch is (inputs ..., target).

    The model runs in evaluation mode without gradients; its mode is restored. The order and the epoch of a DataLoader
    do not change. TypeError for a batch or a metric that does not fit, ValueError if two metrics have one name.
    """
    require_methods("evaluate: model", model, "parameters", "eval")
    require_methods("evaluate: loader", loader, "__iter__")
    named = _named(metrics)
    counting = {name: metric for name, metric in named.items() if isinstance(metric, Metric)}
    losses = {name: Mean(comm=getattr(model, "comm", None)) for name in named if name not in counting}
    for metric in counting.values():
        metric.reset()
    with evaluation(model), no_grad():
        for batch in loader.in_order() if isinstance(loader, DataLoader) else loader:
            output, target = (step or _output_and_target)(model, batch)
            for metric in counting.values():
                metric.update(output, target)
            for name, loss in losses.items():
                # These numbers are the same on every rank, so `compute` needs no collective.
                loss.update(global_value(named[name](output, target)).item(), global_rows(target))
    return {name: (counting | losses)[name].compute() for name in named}


def predict(
    model: Module, loader: DataLoader, *, everywhere: bool = False, step: Callable[[Module, Any], Any] | None = None
) -> Array | None:
    """The outputs of a model for all samples, in the order of the data set, not the loader's. A call of all ranks.

    loader: a batch is inputs, or (inputs ..., target); the target is ignored.
    everywhere: whether all ranks get the array of shape (samples, ...), or only rank 0 (None on the others).
    step: a function of model and batch that returns a tensor with one row a sample; TypeError or ValueError otherwise.
    """
    require_methods("predict: model", model, "parameters", "eval")
    if not isinstance(loader, DataLoader):
        raise TypeError(f"predict: loader must be a DataLoader, got {described(loader)}")
    outputs: list[Array] = []
    with evaluation(model), no_grad():
        for batch in loader.in_order():
            output = (step or _output)(model, batch)
            if not isinstance(output, Tensor | np.ndarray) or not output.ndim:
                raise TypeError(
                    f"predict: the model must give a tensor with one row a sample, got {type(output).__name__}; "
                    "step=lambda model, batch: ... chooses one"
                )
            outputs.append(np.array(output.visible if isinstance(output, Tensor) else output))
    comm = communicator(getattr(model, "comm", None))
    ranks = comm.gather_objects(outputs) if loader.shard else [outputs]  # each has some rows of every batch
    if comm.rank and not everywhere:
        return None
    found = np.concatenate([part for batch in zip(*ranks, strict=True) for part in batch])
    if loader.sampler is not None and len(found) != len(loader.dataset):
        raise ValueError(
            f"predict: the model must give one row a sample, got {len(found)} rows for {len(loader.dataset)} samples"
        )
    return found


def _named(metrics: Any) -> dict[str, Any]:
    if isinstance(metrics, Mapping):
        named = dict(metrics)
    else:
        several = list(metrics) if isinstance(metrics, list | tuple | set) else [metrics]
        named = {_name_of(metric): metric for metric in several}
        if len(named) < len(several):
            raise ValueError("evaluate: metrics of one class need names: give a dict of them")
    for name, metric in named.items():
        if not callable(metric) and not isinstance(metric, Metric):
            raise TypeError(f"evaluate: metrics must be metrics or criteria, got {type(metric).__name__} for {name!r}")
        if isinstance(metric, type):
            raise TypeError(f"evaluate: metrics must be objects, got the class {metric.__name__}; make one")
    return named


def _name_of(metric: Any) -> str:
    if not isinstance(metric, Metric):
        return "loss"
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(metric).__name__)
    return words.lower()


def _output_and_target(model: Module, batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        raise TypeError(
            f"evaluate: a batch must be (inputs ..., target), got {type(batch).__name__}; "
            "step=lambda model, batch: (output, target) can make them"
        )
    return evaluated(model, *batch[:-1]), batch[-1]


def _output(model: Module, batch: Any) -> Any:
    if isinstance(batch, tuple | list):
        return evaluated(model, *(batch[:-1] if len(batch) > 1 else batch))
    return evaluated(model, batch)
