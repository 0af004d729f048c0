"""Options that make no sense: each is refused by a sentence that names it, when the layer or schedule is made."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from math import nan
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.nn import functional as F
from sorix_dist.optim import lr_scheduler, swa_utils


def made_for(name: str) -> tuple[Any, ...]:
    """Arguments that the constructor of this class takes."""
    if hasattr(lr_scheduler, name):
        rest: dict[str, tuple[Any, ...]] = {
            "StepLR": (2,), "MultiStepLR": ([2],), "ExponentialLR": (0.5,), "CosineAnnealingLR": (5,),
            "LambdaLR": (float,), "MultiplicativeLR": (float,), "CosineAnnealingWarmRestarts": (3,),
            "CyclicLR": (0.1, 0.2), "OneCycleLR": (0.1, 10),
        }  # fmt: skip
        return (optim.SGD([nn.Parameter(np.ones(1))], momentum=0.9), *rest.get(name, ()))
    by_parameter = {
        **dict.fromkeys(("in1_features", "in2_features", "out_features"), 3),
        "norm_type": 2,
        "in_channels": 2, "out_channels": 4, "kernel_size": 2, "num_features": 3, "embed_dim": 4, "num_heads": 2,
        "d_model": 4, "nhead": 2, "input_size": 3, "hidden_size": 4, "num_groups": 1, "num_channels": 2, "features": 2,
        "neurons": 3, "num_embeddings": 3, "embedding_dim": 2, "normalized_shape": 3, "output_size": 2,
        "upscale_factor": 2, "dim": 1, "unflattened_size": (2, 3), "padding": 1,
        "size": 3, "downscale_factor": 2, "groups": 2, "threshold": 0.1, "value": 0.2,
    }  # fmt: skip
    parameters = inspect.signature(getattr(nn, name)).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    return tuple(by_parameter[name] for name in [*needed, *(("neurons",) if "features" in needed else ())])


LAYERS = [n for n in dir(nn) if inspect.isclass(c := getattr(nn, n)) and issubclass(c, nn.Module)]
CONTAINERS = {"Module", "ModuleDict", "ModuleList", "ParameterList", "Sequential", "TransformerDecoder",
              "TransformerEncoder"}  # fmt: skip
SCHEDULES = [name for name in lr_scheduler.__all__ if name not in ("LRScheduler", "SequentialLR")]
OPTIONS = [
    (name, option.name, bad)
    for name in [*(n for n in LAYERS if n not in CONTAINERS), *SCHEDULES]
    for option in inspect.signature(getattr(nn if name in LAYERS else lr_scheduler, name)).parameters.values()
    for bad in {"bool": ("False", 2), "float": ("1", nan, True, None)}.get(str(option.annotation), ())
]


def test_every_true_or_false_and_every_number() -> None:
    assert len(OPTIONS) > 300
    for name, option, bad in OPTIONS:
        kind, arguments = getattr(nn if name in LAYERS else lr_scheduler, name), made_for(name)
        position = list(inspect.signature(kind).parameters).index(option)
        options = {option: bad} if position >= len(arguments) else {}
        if not options:
            arguments = (*arguments[:position], bad, *arguments[position + 1 :])
        with pytest.raises((TypeError, ValueError), match=f"{option} must be .*, got "):
            kind(*arguments, **options)


def _model() -> nn.Linear:
    return nn.Linear(2, 1)


def _sgd() -> optim.SGD:
    return optim.SGD([nn.Parameter(np.ones(1))])


W = sx.zeros(3, 3)
REFUSED: dict[str, Callable[[], Any]] = {
    "affine must be True or False, got": lambda: nn.BatchNorm2d(3, affine=None),  # type: ignore[arg-type]
    "momentum must be in": lambda: nn.BatchNorm1d(3, momentum=1.5),
    "padding_idx must be an integer or None, got 2.5": lambda: nn.Embedding(5, 2, 2.5),  # type: ignore[arg-type]
    "Embedding: max_norm must be None: it is not supported, got 1.0": lambda: nn.Embedding(5, 2, max_norm=1.0),
    "interpolate: size must be an integer >= 1, got 2.5": lambda: F.interpolate(sx.zeros(1, 1, 3), 2.5),  # type: ignore[arg-type]
    "RNNCell: hidden_size must be an integer >= 1, got None": lambda: nn.RNNCell(2, None),  # type: ignore[arg-type]
    "MultiheadAttention: kdim must be >= 1, got 0": lambda: nn.MultiheadAttention(4, 2, kdim=0),
    "nhead must be an integer >= 1, got 2.0": lambda: nn.TransformerEncoderLayer(4, 2.0),  # type: ignore[arg-type]
    "activation must be 'relu'": lambda: nn.TransformerEncoderLayer(4, 2, activation=None),  # type: ignore[arg-type]
    r"normalized_shape must hold integers >= 1, got \[2.5\]": lambda: nn.LayerNorm([2.5]),  # type: ignore[list-item]
    "normalized_shape must hold integers >= 1, got None": lambda: nn.RMSNorm(None),  # type: ignore[arg-type]
    "GroupNorm: num_groups must be an integer": lambda: nn.GroupNorm(None, 4),  # type: ignore[arg-type]
    "unflattened_size must be a list of integers, got int": lambda: nn.Unflatten(1, 6),  # type: ignore[arg-type]
    "modules must be a list of modules, got int": lambda: nn.ModuleList(3),  # type: ignore[arg-type]
    "modules must be a list of pairs": lambda: nn.ModuleDict(None),  # type: ignore[arg-type]
    "modules must be a dict, or pairs": lambda: nn.ModuleDict([_model()]),  # type: ignore[list-item]
    "values must be a list of parameters, got": lambda: nn.ParameterList(None),  # type: ignore[arg-type]
    "reduction must be 'mean', 'sum' or 'none'": lambda: nn.MSELoss(np.array(["mean", "sum"])),  # type: ignore[arg-type]
    "unexpected keyword argument 'size_average'": lambda: nn.MSELoss(size_average=True),  # type: ignore[call-arg]
    "ignore_index must be an integer or None": lambda: nn.NLLLoss(ignore_index="x"),  # type: ignore[arg-type]
    "CrossEntropyLoss: weight must be real numbers": lambda: nn.CrossEntropyLoss("heavy"),
    "label_smoothing must be a number, got str": lambda: F.cross_entropy(W, [0, 1, 2], label_smoothing="x"),  # type: ignore[arg-type]
    "dropout: p must be a number, got None": lambda: F.dropout(W, None),  # type: ignore[arg-type]
    "layer_norm: eps must be a number, got NoneType": lambda: F.layer_norm(W, (3,), eps=None),  # type: ignore[arg-type]
    "glu: dim must be an integer, got float 2.5": lambda: F.glu(W, 2.5),  # type: ignore[arg-type]
    "elu: alpha must be a number, got str 'x'": lambda: F.elu(W, "x"),  # type: ignore[arg-type]
    "sum: keepdim must be True or False, got float 2.5": lambda: sx.sum(W, 0, keepdim=2.5),  # type: ignore[arg-type]
    "mul: y must be a tensor, an array or numbers, got str 'x'": lambda: sx.mul(W, "x"),
    "mul: y must be a tensor, an array or numbers, got None": lambda: W.mul(None),
    "exp: x must be a tensor, an array or numbers, got dict": lambda: sx.exp({}),
    "clip: min must be a tensor, an array or numbers, got str 'x'": lambda: sx.clip(W, "x"),
    "relu: x must be a tensor, an array or numbers, got None": lambda: F.relu(None),
    "linear: weight must be a tensor, an array or numbers, got": lambda: F.linear(W, object()),
    r"view: cannot reshape .* size 9 into shape \(2,2\); got input Tensor of shape .*\(\[3, 3\]\), shape tuple": (
        lambda: W.view(2, 2)
    ),
    "vector_norm: x must be a tensor, an array or numbers, got str 'x'": lambda: sx.linalg.vector_norm("x"),
    "inv: takes 1 positional argument but 2 were given; got argument 1 Tensor of shape": lambda: sx.linalg.inv(W, W),  # type: ignore[call-arg]
    "isclose: rtol must be a number, got list": lambda: sx.isclose(W, W, []),  # type: ignore[arg-type]
    "topk: k must be an integer, got NoneType": lambda: sx.topk(W, None),  # type: ignore[arg-type]
    "unfold: dilation must be an integer >= 1 or two of them": lambda: F.unfold(sx.ones(1, 1, 4, 4), 2, -1),
    "pad: pad must be a list of integers, got int": lambda: F.pad(W, 1),  # type: ignore[arg-type]
    r"pad: pad must hold integers, got \[1.5, 0\]": lambda: F.pad(W, (1.5, 0)),  # type: ignore[arg-type]
    r"conv1d: bias must have shape \(1,\), got shape \(\)": lambda: F.conv1d(sx.ones(1, 1, 3), sx.ones(1, 1, 2), 1.0),
    "gain must be a number, got NoneType": lambda: nn.init.orthogonal_(W, None),  # type: ignore[arg-type]
    "xavier_normal_: gain must be >= 0, got -1": lambda: nn.init.xavier_normal_(W, -1),
    "normal_: mean must be a number, got str '0'": lambda: nn.init.normal_(W, "0"),
    "nonlinearity must be": lambda: nn.init.kaiming_normal_(W, nonlinearity=None),
    "fn must be a function of a module, got NoneType": lambda: _model().apply(None),  # type: ignore[arg-type]
    "strict must be True or False": lambda: _model().load_state_dict({}, strict="no"),  # type: ignore[arg-type]
    "requires_grad must be True or False": lambda: _model().requires_grad_("False"),  # type: ignore[arg-type]
    "persistent must be True or False": lambda: _model().register_buffer("n", None, "no"),  # type: ignore[arg-type]
    "register_buffer: name must be an attribute": lambda: _model().register_buffer(1, None),  # type: ignore[arg-type]
    "parameters must be a list of tensors, got None": lambda: nn.utils.clip_grad_norm_(None, 1.0),  # type: ignore[arg-type]
    "max_norm must be a number, got None": lambda: nn.utils.clip_grad_norm_([], None),  # type: ignore[arg-type]
    "error_if_nonfinite must be": lambda: nn.utils.clip_grad_norm_([], 1, 2, "no"),  # type: ignore[arg-type]
    "params must be a list of tensors or of groups, got None": lambda: optim.Adam(None),  # type: ignore[arg-type]
    "group must be a dict with a list 'params', got None": lambda: _sgd().add_param_group(None),  # type: ignore[arg-type]
    "params must be a list of tensors, got None": lambda: _sgd().add_param_group({"params": None}),
    r"etas\[0\] must be a number": lambda: optim.Rprop([W], etas=("x", 2)),  # type: ignore[arg-type]
    r"step_sizes\[1\] must be >= 2": lambda: optim.Rprop([W], step_sizes=(2, 1)),
    "step: closure must be a function": lambda: _sgd().step(3),  # type: ignore[arg-type]
    "avg_fn must be a function": lambda: swa_utils.AveragedModel(_model(), avg_fn=0.9),  # type: ignore[arg-type]
    "model must be a Module, got NoneType": lambda: swa_utils.AveragedModel(None),  # type: ignore[arg-type]
    "gamma must be > 0, got 0.0": lambda: lr_scheduler.StepLR(_sgd(), 2, 0.0),
    "gamma must be > 0, got -1": lambda: lr_scheduler.MultiStepLR(_sgd(), [2], -1),
    "milestones must be a list of epochs, got None": lambda: lr_scheduler.MultiStepLR(_sgd(), None),  # type: ignore[arg-type]
    r"milestones\[1\] must be an integer >= 0, got 2.5": lambda: lr_scheduler.MultiStepLR(_sgd(), [1, 2.5]),  # type: ignore[list-item]
    "lr_lambda must be a function of the epoch, got None": lambda: lr_scheduler.LambdaLR(_sgd(), None),  # type: ignore[arg-type]
    "patience must be >= 0, got -1": lambda: lr_scheduler.ReduceLROnPlateau(_sgd(), patience=-1),
    "min_lr must be a number, got str '0'": lambda: lr_scheduler.ReduceLROnPlateau(_sgd(), min_lr="0"),  # type: ignore[arg-type]
    "div_factor must be > 0, got 0": lambda: lr_scheduler.OneCycleLR(_sgd(), 1, 9, div_factor=0, cycle_momentum=False),
    "last_epoch must be an integer >= -1, got None": lambda: lr_scheduler.StepLR(_sgd(), 2, last_epoch=None),  # type: ignore[arg-type]
    r"schedulers\[0\] must be a scheduler": lambda: lr_scheduler.SequentialLR(_sgd(), [3], []),  # type: ignore[list-item]
    "epoch must be a number, got str 'x'": lambda: lr_scheduler.StepLR(_sgd(), 2).step("x"),  # type: ignore[arg-type]
    "dtype must name an element type": lambda: nn.Linear(2, 2, dtype=[]),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        REFUSED[message]()
