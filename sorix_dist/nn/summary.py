"""The summary of a model: its layers with shapes, parameters, memory and arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sorix_dist.core import Tensor, as_tensor, no_grad
from sorix_dist.nn.attention import MultiheadAttention
from sorix_dist.nn.conv import ConvTranspose2d
from sorix_dist.nn.layers import Embedding
from sorix_dist.nn.module import Module
from sorix_dist.nn.norm import LayerNorm
from sorix_dist.utils.data.nested import tensors


@dataclass
class Layer:
    """One module of a model: its parameters without those of its children, and the outputs of all its calls."""

    name: str
    kind: str
    depth: int
    parameters: int
    trained: int
    """The number of parameters that require a gradient."""
    nbytes: int
    """Bytes of its parameters and buffers."""
    shape: tuple[int, ...] | None = None
    """The shape of its first output; None if the forward has not called it."""
    output_bytes: int = 0
    """Bytes of its outputs, except those that a module inside of it has computed."""
    flops: int = 0
    """Operations of its matrix products in a forward; a multiplication and an addition count 2."""


@dataclass
class Summary:
    """The layers of a model; print it."""

    model: str
    layers: list[Layer] = field(default_factory=list)

    def total(self, what: str) -> int:
        """The sum of an attribute over all layers, such as "parameters" or "flops"."""
        return sum(getattr(layer, what) for layer in self.layers)

    def __str__(self) -> str:
        rows = [("layer", "output shape", "parameters", "FLOPs"), *map(_row, self.layers)]
        a, b, c, d = (max(map(len, column)) for column in zip(*rows))
        lines = [f"{row[0]:{a}}  {row[1]:>{b}}  {row[2]:>{c}}  {row[3]:>{d}}".rstrip() for row in rows]
        rule = "-" * (a + b + c + d + 6)
        parameters, trained = self.total("parameters"), self.total("trained")
        frozen = f", {trained:,} of them trained" if trained < parameters else ""
        flops, nbytes, output_bytes = (_short(self.total(what)) for what in ("flops", "nbytes", "output_bytes"))
        work = f"{parameters:,} parameters{frozen}; {flops}FLOPs a forward (products of matrices)"
        memory = f"memory: parameters and buffers {nbytes}B, outputs of layers {output_bytes}B"
        return "\n".join((lines[0], rule, *lines[1:], rule, work, memory))

    __repr__ = __str__


def summary(model: Module, inputs: Any, *more: Any, dtype: Any = np.float32) -> Summary:
    """The layers of a model, found by one forward in evaluation mode, which changes nothing.

    inputs: the shape of a batch, such as (32, 1, 28, 28), for zeros of `dtype`; or the batch itself, a tensor or an
    array, with further arguments of the forward in `more`. Without the messages of a wrapped model: any rank may
    call it alone.
    """
    model, given = getattr(model, "module", model), inputs
    if not isinstance(model, Module):
        raise TypeError(f"summary: model must be a Module, got {type(model).__name__}")
    if isinstance(inputs, tuple | list | str):
        if not all(isinstance(size, int | np.integer) and size > 0 for size in inputs):
            raise ValueError(f"summary: inputs must be a shape (integers >= 1), a tensor or an array, got {inputs!r}")
        inputs = np.zeros(given, dtype)
    counted: set[int] = set()
    layers = {id(module): _layer(name, module, counted) for name, module in model.named_modules()}
    try:
        with evaluation(model), _traced(model, layers), no_grad():
            model(*(as_tensor(x) for x in (inputs, *more)))
    except Exception as error:
        zeros = "" if given is inputs else f" and {np.dtype(dtype)}; for tokens, give dtype=np.int64"
        error.add_note(f"raised in summary's forward of inputs of shape {tuple(np.shape(inputs))}{zeros}")
        raise
    return Summary(type(model).__name__, list(layers.values()))


def _row(layer: Layer) -> tuple[str, str, str, str]:
    shape = "not called" if layer.parameters else ""
    if layer.shape is not None:
        shape = " x ".join(map(str, layer.shape)) or "number"
    parameters, flops = (f"{number:,}" if number else "" for number in (layer.parameters, layer.flops))
    return "  " * layer.depth + (f"{layer.name}: " if layer.name else "") + layer.kind, shape, parameters, flops


def _layer(name: str, module: Module, counted: set[int]) -> Layer:
    """counted: ids of the tensors of earlier layers; a shared tensor counts once."""
    own, buffers = (
        {name: tensor for name, tensor in _own(named).items() if id(tensor) not in counted}
        for named in (module.named_parameters(), module.named_buffers())
    )
    counted |= {id(tensor) for tensor in (*own.values(), *buffers.values())}
    return Layer(
        name.rpartition(".")[2],
        type(module).__name__,
        depth=name.count(".") + bool(name),
        parameters=sum(p.array.size for p in own.values()),
        trained=sum(p.array.size for p in own.values() if p.requires_grad),
        nbytes=sum(tensor.array.nbytes for tensor in (*own.values(), *buffers.values())),
    )


def _own(named: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of the module itself."""
    return {name: tensor for name, tensor in named if "." not in name}


@contextmanager
def evaluation(model: Module) -> Iterator[None]:
    """Switches all modules of a model to evaluation inside the block, and each back to what it was after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _traced(model: Module, layers: dict[int, Layer]) -> Iterator[None]:
    """Inside, every call of a module's forward is entered into its layer."""
    modules = list(model.modules())
    seen: dict[int, Tensor] = {}  # kept alive, so that no other object gets one of these ids
    for module in modules:
        module.__dict__["forward"] = _tracing(module, module.forward, layers[id(module)], seen)
    try:
        yield
    finally:
        for module in modules:
            del module.__dict__["forward"]


def _tracing(module: Module, forward: Callable[..., Any], layer: Layer, seen: dict[int, Tensor]) -> Callable[..., Any]:
    def traced(*inputs: Any, **options: Any) -> Any:
        seen.update((id(tensor), tensor) for tensor in tensors((inputs, options)))
        result = forward(*inputs, **options)
        outputs = list(tensors(result))
        if outputs:
            layer.shape = layer.shape or tuple(outputs[0].array.shape)
            layer.flops += _flops(module, list(tensors((inputs, options))), outputs[0])
            layer.output_bytes += sum(output.array.nbytes for output in outputs if id(output) not in seen)
            seen.update((id(output), output) for output in outputs)
        return result

    return traced


def _flops(module: Module, inputs: list[Tensor], output: Tensor) -> int:
    """The operations of a module's products with its own matrices: two for each entry and output position."""
    if isinstance(module, MultiheadAttention):
        queries, keys = inputs[0], inputs[min(1, len(inputs) - 1)]
        embed = module.embed_dim
        tokens, others = queries.array.size // embed, keys.array.size // module.kdim
        batch = 1 if queries.ndim < 3 else len(queries.array) if module.batch_first else queries.array.shape[1]
        projections = tokens * embed**2 + others * embed * (module.kdim + module.vdim)  # out_proj counts its own
        return 2 * projections + 4 * tokens * (others // batch) * embed
    matrices = [
        p
        for name, p in _own(module.named_parameters()).items()
        if p.ndim > 1 and name not in ("b", "gamma", "beta") and "bias" not in name
    ]
    if isinstance(module, Embedding | LayerNorm) or not matrices:
        return 0
    if isinstance(module, ConvTranspose2d):  # each input position is multiplied with the whole kernel
        positions = inputs[0].array.size // module.in_channels
    else:
        positions = output.array.size // (getattr(module, "out_channels", None) or output.array.shape[-1])
    return 2 * positions * sum(p.array.size for p in matrices)


def _short(number: int) -> str:
    power = min(4, int(math.log10(number)) // 3) if number else 0
    return f"{number / 1000**power:.4g} {['', 'k', 'M', 'G', 'T'][power]}"
