"""Evaluation on all ranks: metrics of a model over a data set, and its predictions in the data set's order."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from sorix_dist.core import Tensor, no_grad
from sorix_dist.core.arguments import described, require_methods
from sorix_dist.nn.module import Module
from sorix_dist.nn.summary import evaluation
from sorix_dist.parallel.collectives import global_rows, global_value
from sorix_dist.parallel.forward import evaluated
from sorix_dist.parallel.world import communicator
from sorix_dist.train.metrics import Mean, Metric
from sorix_dist.utils.data import DataLoader

Array = np.ndarray[Any, Any]


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
        for batch in _in_order(loader):
            output, target = (step or _output_and_target)(model, batch)
            for metric in counting.values():
                metric.update(output, target)
            for name, loss in losses.items():
                # These numbers are the same on every rank, so `compute` needs no collective.
                loss.update(global_value(named[name](output, target)).item(), global_rows(target))
    return {name: (counting | losses)[name].compute() for name in named}


def predict(
    model: Module,
    loader: DataLoader,
    *,
    everywhere: bool = False,
    step: Callable[[Module, Any], Any] | None = None,
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


def _in_order(loader: Iterable[Any]) -> Iterable[Any]:
    return loader.in_order() if isinstance(loader, DataLoader) else loader


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
