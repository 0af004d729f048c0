"""PyTorch's own samples of its modules: every option of a constructor, outputs, gradients and state, or a refusal."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn
from sorix_dist.nn import functional as F
from sorix_dist.nn.torch_state import _names, to_own_layout

torch = pytest.importorskip("torch")
pytest.importorskip("expecttest")  # which PyTorch's testing imports
modules = pytest.importorskip("torch.testing._internal.common_modules")

# What the page for those who come from PyTorch says is not supported, by the words of the error.
REFUSED = ("track_running_stats must be False", "add_bias_kv must be False",
           "add_zero_attn must be False", "return_indices must be False", "proj_size must be 0")  # fmt: skip
TAKEN_OUT = {"TransformerEncoder": "its argument is a layer; test_weights builds both"}
INFOS = [m for m in modules.module_db if hasattr(nn, m.name.split(".")[1]) and m.name.split(".")[1] not in TAKEN_OUT]


def of_ours(value: Any, leaves: list[Any]) -> Any:
    """The same argument here; a tensor that requires a gradient joins `leaves` with PyTorch's."""
    if isinstance(value, torch.Tensor):
        leaf = sx.Tensor(value.detach().numpy().copy(), requires_grad=value.requires_grad)
        leaves += [(leaf, value)] if value.requires_grad else []
        return leaf
    if isinstance(value, list | tuple):
        return type(value)(of_ours(x, leaves) for x in value)
    return (
        {torch.nn.functional.gelu: partial(F.gelu, approximate="none"), torch.nn.functional.relu: "relu"}.get(
            value, value
        )
        if callable(value)
        else value
    )


def flat(value: Any) -> list[Any]:
    return [y for x in value for y in flat(x)] if isinstance(value, list | tuple) else [] if value is None else [value]


def close(mine: Any, theirs: Any, what: str, largest: float = 0.0) -> None:
    """largest: the largest gradient of the module, whose rounding may be all that is left of one that cancels out."""
    a, b = np.asarray(mine), np.asarray(theirs)
    assert (a.shape, a.dtype) == (b.shape, b.dtype), what
    tolerance = 1e-9 if b.dtype == np.float64 else 2e-4
    rounding = 40 * float(np.finfo(b.dtype).eps) * largest if b.dtype.kind == "f" else 0.0
    assert np.allclose(a, b, tolerance, tolerance + rounding, equal_nan=True), (what, a, b)


def compare(kind: str, theirs: Any, made: Any, given: Any) -> None:
    """Builds the module here with PyTorch's state, and compares outputs, gradients and the state after it."""
    options = {name: of_ours(x, []) for name, x in made.kwargs.items()}
    options |= {"approximate": "none"} if kind == "GELU" and not (made.args or options) else {}
    ours = getattr(nn, kind)(*(of_ours(x, []) for x in made.args), **options).train(theirs.training)
    if any(t.dtype == torch.float64 for t in theirs.state_dict().values()):
        ours.double()
    if not kind.startswith("BCE"):  # whose weights, one for each element, are no buffers here
        with torch.no_grad():
            for tensor in theirs.state_dict().values():
                tensor.copy_(torch.rand_like(tensor) if tensor.is_floating_point() else tensor)
        ours.load_state_dict(theirs.state_dict())
    leaves: list[Any] = []
    arguments = [of_ours(x, leaves) for x in given.args]
    mine = flat(ours(*arguments, **{name: of_ours(x, leaves) for name, x in given.kwargs.items()}))
    wanted = flat(theirs(*given.args, **given.kwargs))
    assert len(mine) == len(wanted)
    if kind == "CrossEntropyLoss" and wanted[0].isnan().all():  # nothing counts
        assert mine[0].item() == 0
        return
    for x, y in zip(mine, wanted, strict=True):
        close(x.numpy(), y.detach().numpy(), "output")
    weighted: list[Any] = [0, 0]
    for x, y in zip(mine, wanted, strict=True):
        if y.requires_grad:
            weights = torch.linspace(1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
            weighted = [weighted[0] + (x * sx.Tensor(weights.numpy())).sum(), weighted[1] + (y * weights).sum()]
    if isinstance(weighted[1], torch.Tensor):
        weighted[0].backward()
        weighted[1].backward()
        layouts, parameters = {own: (name, way) for own, name, way in _names(ours)}, dict(theirs.named_parameters())
        gradients = [x.grad for x in (*parameters.values(), *(other for _, other in leaves)) if x.grad is not None]
        largest = max((x.abs().nan_to_num(0, 0, 0).max().item() for x in gradients if x.numel()), default=0.0)
        for own, parameter in ours.named_parameters():
            name, layout = layouts.get(own, (own, "same"))
            if parameters[name].grad is not None:
                close(
                    parameter.grad.numpy(), to_own_layout(parameters[name].grad, layout), f"gradient of {own}", largest
                )
        for leaf, other in leaves:
            if other.grad is not None:
                close(leaf.grad.numpy(), other.grad.numpy(), "gradient of an input", largest)
    for name, value in sx.to_torch_state(ours).items():
        close(value, theirs.state_dict()[name].numpy(), name)


@pytest.mark.timeout(600)  # attention has hundreds of samples
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["float64", "float32"])
@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_samples(info: Any, kind: str) -> None:
    """Each sample passes, or is refused with words of the table."""
    torch.manual_seed(0)
    dtype = getattr(torch, kind)
    for training in (True, False):
        for sample in info.module_inputs_func(info, "cpu", dtype, requires_grad=True, training=training):
            made, given = sample.constructor_input, sample.forward_input
            if given is None:
                continue
            theirs = info.module_cls(*made.args, **made.kwargs).to(dtype).train(training)
            try:
                compare(info.name.split(".")[1], theirs, made, given)
            except ValueError as error:
                if not any(words in str(error) for words in REFUSED):
                    raise
