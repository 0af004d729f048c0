"""DistributedDataParallel: the wrapper that makes a model's gradients those of the global batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np

from sorix_dist.comm import Comm
from sorix_dist.core import Tensor
from sorix_dist.core.batch import installed
from sorix_dist.core.flat import flatten, leaf_of
from sorix_dist.core.op import recording
from sorix_dist.nn import Module
from sorix_dist.nn.module import IncompatibleKeys
from sorix_dist.parallel.check import describe, same_everywhere
from sorix_dist.parallel.replicas import Forward, replicas
from sorix_dist.parallel.world import agree_on_seed, communicator
from sorix_dist.utils.data.nested import map_tensors


class DistributedDataParallel(Module):
    """A model of which every rank has a copy, trained on the global batch.

    After `loss.backward()` the `grad` of every parameter is, on every rank, the gradient of the mean over the
    global batch, however its rows are shared out. Wrapping is a call of all ranks: it checks that all have
    the same model, and gives everybody rank 0's weights and buffers.

    module: the model; comm: an mpi4py communicator if not all ranks of the job train this model.
    The state has the names that the bare model has.
    """

    def __init__(self, module: Module, comm: Any = None) -> None:
        if not isinstance(module, Module):
            raise TypeError(f"module must be a Module, got {type(module).__name__}")
        self.module = module
        self._everybody = comm is None
        self.comm: Comm = communicator(comm)
        agree_on_seed(self.comm)
        parameters = dict(module.named_parameters())
        same_everywhere(
            self.comm, "the model's parameters and buffers", describe([*parameters.items(), *module.named_buffers()])
        )
        if not parameters:
            raise ValueError(f"module must have parameters to train, got a {type(module).__name__} without any")
        for name, parameter in parameters.items():
            if leaf_of(parameter).sync is not None:
                raise ValueError(f"module is wrapped already: its parameter '{name}' belongs to another wrapper")
        self._replicas = replicas(self.comm)
        for flat in flatten(parameters.values()):
            self.comm.broadcast(flat.data)
            self._replicas.add(flat)
        self._share_buffers()

    def forward(self, *inputs: Any, **options: Any) -> Any:
        # Nothing is asked of the others where nothing depends on them: one rank may evaluate alone.
        if not (recording.get() or self.module.training):
            return self.module(*inputs, **options)
        arrays = [*_arrays((inputs, options))]
        first = next((a for a in arrays if isinstance(a, Tensor) and a.rows), arrays[0] if arrays else None)
        rows = first.rows if isinstance(first, Tensor) and self._everybody else None
        count = 1 if first is None or first.ndim == 0 else len(first)
        with installed(self._replicas.note(rows, count)):
            forward = Forward(self._replicas)
            return map_tensors(self.module(*inputs, **options), forward.mark)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        raise TypeError("a wrapped model can't be copied, because its gradients belong to all ranks: copy model.module")

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        return self.module.named_parameters()

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        return self.module.named_buffers()

    def state_dict(self) -> dict[str, Tensor]:
        return self.module.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """As for a bare model; a call of all ranks, who end with what rank 0 has loaded."""
        keys = self.module.load_state_dict(state_dict, strict)
        for flat in flatten(self.parameters()):
            self.comm.broadcast(flat.data)
        self._share_buffers()
        return keys

    def _share_buffers(self) -> None:
        for buffer in self.module.buffers():
            value = np.ascontiguousarray(buffer.array)
            self.comm.broadcast(value)
            np.copyto(buffer.array, value)


def _arrays(value: Any) -> Iterator[Any]:
    """The tensors and arrays in nested tuples, lists and dicts."""
    if isinstance(value, Tensor | np.ndarray):
        yield value
    elif isinstance(value, tuple | list | dict):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _arrays(entry)
