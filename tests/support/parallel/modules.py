"""Programs with modules and hooks that PyTorch's scripts use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sorix_dist as sx
from sorix_dist import nn
from tests.support.parallel.programs import Kit, mlp, program


def bags(mode: str) -> None:
    def run(kit: Kit) -> Sequence[Any]:
        model = kit.wrap(nn.Sequential(nn.EmbeddingBag(7, 3, mode=mode, padding_idx=2), nn.Linear(3, 1)))
        return kit.train(model, lambda model, words: model(words).square().mean().sqrt(), "words")

    run.__name__ = f"bags_by_{mode}"
    program()(run)


for _mode in ("mean", "sum", "max"):
    bags(_mode)


@program()
def parameters_in_a_dict(kit: Kit) -> Sequence[Any]:
    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scales = nn.ParameterDict({"one": sx.ones(3), "two": sx.ones(1)})

        def forward(self, x: Any) -> Any:
            return x * self.scales["one"] + self.scales["two"]

    return kit.train(kit.wrap(Scales()), lambda model, x: model(x).square().mean(), "x")


class Fast(nn.Module):
    """A layer whose weights may be given, such as those after a step of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(sx.randn(3, 1)), nn.Parameter(sx.zeros(1))

    def forward(self, x: Any, weight: Any = None, bias: Any = None) -> Any:
        return x @ (self.weight if weight is None else weight) + (self.bias if bias is None else bias)


@program(reproducible="autograd.grad gives gradients to rows")
def weights_as_inputs(kit: Kit) -> Sequence[Any]:
    """In the last batch of 3 each of 3 ranks has as many rows as the bias has elements."""

    def loss(model: Any, x: Any, y: Any) -> Any:
        error = (model(x) - y).square().mean()
        slopes = sx.autograd.grad(error, [fast.weight, fast.bias], create_graph=True)
        weight, bias = fast.weight - 0.1 * slopes[0], fast.bias - 0.1 * slopes[1]
        return (model(x * 2, weight, bias) - y).square().mean() + (model(x, fast.weight, fast.bias) - y).abs().mean()

    fast = Fast()
    return kit.train(kit.wrap(fast), loss, "x", "y")


@program()
def hooks_of_modules_in_the_backward(kit: Kit) -> Sequence[Any]:
    network = mlp()
    network[2].register_full_backward_hook(lambda module, given, out: (given[0] * 2 + out[0][:, :1],))
    return kit.train(kit.wrap(network), lambda model, x: model(x).square().mean(), "x")
