"""Descriptions of a model: the ranks compare them, so that their replicas are equal."""

from __future__ import annotations

import hashlib

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.nn.module import Module, options_of
from sorix_dist.parallel.world import communicator


def describe_state(module: Module) -> list[str]:
    """One line for each parameter and buffer: name, shape, dtype, and whether it requires a gradient."""

    def line(name: str, tensor: Tensor) -> str:
        return f"'{name}' of shape {tuple(tensor.array.shape)} and dtype {tensor.array.dtype}"

    parameters = [
        f"{line(name, p)}{'' if p.requires_grad else ' that requires no gradient'}"
        for name, p in module.named_parameters()
    ]
    return parameters + [line(name, buffer) for name, buffer in module.named_buffers()]


def describe_modules(module: Module) -> list[str]:
    """One line for each module, of its class, and for each of its options."""
    lines = []
    for name, part in module.named_modules():
        where = f"module '{name}'" if name else "the model"
        what = f"{where} ({type(part).__name__})"
        lines += [what, *(f"{what} with {option} = {text}" for option, text in options_of(part).items())]
    return lines


def assert_replicas_equal(model: Module, comm: object = None) -> None:
    """RuntimeError on every rank unless all parameters and buffers have the same bytes on all ranks; it names the
    first that differs, and the rank.

    comm: an mpi4py communicator, by default the model's. The ranks send only digests of the state. A call of all ranks.
    """
    among = communicator(comm if comm is not None else getattr(model, "comm", None))
    state = [*model.named_parameters(), *model.named_buffers()]
    digests = [hashlib.blake2b(np.ascontiguousarray(t.array).tobytes(), digest_size=16).digest() for _, t in state]
    everywhere = among.gather_objects(digests)
    for rank, theirs in enumerate(everywhere):
        if len(theirs) != len(everywhere[0]):
            raise RuntimeError(f"the model has {len(everywhere[0])} tensors on rank 0 and {len(theirs)} on rank {rank}")
        for i, (first, second) in enumerate(zip(everywhere[0], theirs, strict=True)):
            if first != second:
                raise RuntimeError(
                    f"the replicas have drifted apart: '{state[i][0]}' of rank {rank} is not that of rank 0; was it "
                    "changed on some ranks only, or an optimizer step skipped?"
                )
