"""DistributedDataParallel: the wrapper that makes a model's gradients those of the global batch."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, NoReturn, get_args

import numpy as np

from sorix_dist.comm import Comm
from sorix_dist.core import Tensor
from sorix_dist.core.arguments import int_or_none, one_of
from sorix_dist.core.capture import outside
from sorix_dist.core.flat import flatten, leaf_of
from sorix_dist.core.graph import no_grad, recording
from sorix_dist.nn import Module
from sorix_dist.nn.torch_state import IncompatibleKeys
from sorix_dist.parallel.accumulation import Piece, accumulate, no_sync
from sorix_dist.parallel.comm_hooks import Hook, described
from sorix_dist.parallel.consistency import describe_modules, describe_state, same_everywhere
from sorix_dist.parallel.coordinator import coordinator_of
from sorix_dist.parallel.forward import BatchForward, ShardedForward, shards_in
from sorix_dist.parallel.module_state import GlobalDraws
from sorix_dist.parallel.reducers import Bucket, NonFinite
from sorix_dist.parallel.world import agree_on_seed, communicator

Storage = Literal["shared", "replicated"]


class DistributedDataParallel(Module):
    """Trains replicas of a model, one per rank, on the global batch.

    After `loss.backward()` every rank has, in the `grad` of every parameter, the gradient of the loss of the global
    batch, for any loss and any split of the rows. `loss.item()` is the value of that loss.
    In training, inputs that no loader has made are rows of this rank along their first axis, unless they are
    `replicated`. Wrapping is a call of all ranks: it checks that all have the same model, down to the options of its
    modules, and broadcasts rank 0's weights and buffers. An attribute of a module that may differ between ranks, a
    number or a string, needs a name that begins with "_".

    module: the model; comm: an mpi4py communicator if not all ranks of the job train this model. Its MPI resources
    (duplicates, shared memory) are freed only when its ranks, after the last use, wrap a model in another communicator.
    MPICH has about 2,000 communicators, and each wrapped one takes 8: do not make one a step.
    check_every: the number of training batches between comparisons of all parameters and buffers, which raise an error
    that names the one that has drifted; None: never (`assert_replicas_equal` compares at your call).
    storage: "shared", one copy of parameters, gradients and optimizer state per host. Every rank updates its slice, and
    the arrays of the parameters are read-only, see `edit`. Or "replicated", a copy for each rank, as in PyTorch.
    nonfinite: what a backward does on all ranks when a gradient is NaN or infinite: "raise" FloatingPointError, which
    names the parameter and the rank; "skip" it, so that the optimizer moves nothing; or "allow" it.
    The state has the names that the bare model has. To add or replace layers, take the bare model by `unwrap()`, change
    it, and wrap it again: a backward raises at a parameter that was not there when the model was wrapped.
    """

    def __init__(
        self,
        module: Module,
        comm: Any = None,
        *,
        check_every: int | None = None,
        nonfinite: NonFinite = "raise",
        storage: Storage = "shared",
    ) -> None:
        if not isinstance(module, Module):
            raise TypeError(f"module must be a Module, got {type(module).__name__}")
        one_of("nonfinite", nonfinite, *get_args(NonFinite))
        one_of("storage", storage, *get_args(Storage))
        self.module = module
        self.check_every, self.batches = int_or_none("check_every", check_every, 1), 0
        self.comm: Comm = communicator(comm)
        agree_on_seed(self.comm)
        parameters = dict(module.named_parameters())
        same_everywhere(self.comm, "the model's parameters and buffers", describe_state(module))
        same_everywhere(self.comm, "the model's modules and their options", describe_modules(module))
        same_everywhere(self.comm, "storage", [repr(storage)])
        if not parameters:
            raise ValueError(f"module must have parameters to train, got a {type(module).__name__} without any")
        self._free(parameters)
        self._coordinator = coordinator_of(self.comm)
        self._buckets: list[Bucket] = []
        name_of = {id(parameter): name for name, parameter in parameters.items()}
        for flat in flatten(parameters.values()):
            self.comm.broadcast(flat.data)
            names = [name_of[id(parameter)] for parameter in flat.parameters]
            self._buckets.append(Bucket(self, self._coordinator, flat, names, nonfinite))
            self._coordinator.add(self._buckets[-1], shared=storage == "shared")
        self._share_buffers()
        self._editing = False
        owner = self._coordinator
        self._forward = ShardedForward(owner) if owner.shards is not None else BatchForward(owner, tagged=comm is None)
        self._global_draws = GlobalDraws(owner.group, wanted=owner.shards is not None or not owner.group.single)

    def _free(self, parameters: dict[str, Tensor]) -> None:
        """Releases parameters whose wrapper is gone; ValueError on every rank if a wrapper is still alive on one."""
        flats = [(name, leaf_of(parameter).flat) for name, parameter in parameters.items()]
        buckets = {name: flat.keeper for name, flat in flats if flat is not None and isinstance(flat.keeper, Bucket)}
        if any(bucket.wrapper() is not None for bucket in buckets.values()):
            gc.collect()  # a dropped wrapper may be in a cycle
        wrapped = next((name for name, bucket in buckets.items() if bucket.wrapper() is not None), None)
        for rank, name in enumerate(self.comm.gather_objects(wrapped)):
            if name is not None:
                raise ValueError(
                    f"module is wrapped already: its parameter '{name}' belongs to another wrapper on rank {rank}, "
                    "whose unwrap() gives the model back [docs: wrapped]"
                )
        for bucket in dict.fromkeys(buckets.values()):
            bucket.release()

    def forward(self, *inputs: Any, **options: Any) -> Any:
        if not self._buckets:
            raise RuntimeError("unwrap() has ended this wrapper: wrap the model again, or call the model itself")
        if not (recording.get() or self.module.training):
            # Evaluation needs no collective, so a single rank may evaluate.
            if isinstance(self._forward, ShardedForward) and shards_in((inputs, options)):
                return self._forward.run(self.module, inputs, options)
            return self.module(*inputs, **options)
        if self.check_every is not None:
            outside("a wrapper with check_every can't be captured")
            self.batches += 1
            if self.batches % self.check_every == 0:
                assert_replicas_equal(self)
        if self._global_draws.looked:
            return self._forward.run(self.module, inputs, options)
        with self._global_draws.look():
            return self._forward.run(self.module, inputs, options)

    # -- when gradients are synchronised, and how

    def no_sync(self) -> AbstractContextManager[None]:
        """A context in which backwards accumulate on this rank; the first one after it sums all of them over the ranks.

        As in PyTorch, except that `grad` does not change before that sum, a loss shows its value over this rank's rows,
        and an optimizer's step in between is an error.
        """
        return no_sync(self._coordinator)

    def accumulate(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """Yields `pieces`, micro-batches of any sizes; the loop body computes their losses and calls backward on each.

        Afterwards `grad` is the gradient of the mean over all rows of all pieces and ranks (or over the weights, labels
        or tokens that count).

            for xb, yb in model.accumulate(pieces):
                criterion(model(xb), yb).backward()

        Gradients are summed over the ranks at the end of the loop; then the losses show the values of their global
        batches. All ranks need the same number of pieces. Leaving the loop early discards its gradients. RuntimeError
        if a loss is not a sum or mean over rows with one denominator (a root, the sum of two means over different
        numbers of rows), or if sums and means are mixed. For those, use `no_sync` and (loss / number of pieces).
        """
        return accumulate(self._coordinator, pieces)

    def register_comm_hook(self, hook: Hook) -> None:
        """Makes `hook(comm, gradients)` sum this model's gradients over the ranks, see `comm_hooks.fp16_compress`.

        The hook is called for each dtype of parameters, with all gradients of it as an array (count,), and sums in
        place. TypeError unless it is callable, RuntimeError in reproducible mode, ValueError if the ranks register
        different ones of `comm_hooks`. A call of all ranks.
        """
        if not callable(hook):
            raise TypeError(f"hook must be a function of a communicator and an array, got {type(hook).__name__}")
        if self._coordinator.shards is not None:
            raise RuntimeError("register_comm_hook: reproducible mode sums gradients in its own order, without hooks")
        same_everywhere(self.comm, "the communication hook", [described(hook)])
        for bucket in self._buckets:
            self._coordinator.use_hook(bucket, hook)

    # -- the model's own

    def unwrap(self) -> Module:
        """Returns the bare model, which may be changed and wrapped again, and ends this wrapper. A call of all ranks.

        The parameters keep their values and gradients, in each rank's private memory. Optimizers of these parameters
        keep their state. RuntimeError if gradients of earlier backwards are not synchronised yet.
        """
        if self._coordinator.pending or self._coordinator.accumulation is not None:
            raise RuntimeError(
                "unwrap: the gradients of the last backwards are not synchronised yet: call it after the loop over "
                "accumulate, or after a backward outside of no_sync"
            )
        self._coordinator.fence("unwrap", everywhere=True)
        for bucket in self._buckets:
            bucket.release()
        self._buckets = []
        return self.module

    @contextmanager
    def edit(self) -> Iterator[None]:
        """A context in which parameters may be changed, and no graph is recorded; entered by all ranks. Each rank
        changes a private copy; at the end rank 0's parameters and buffers are broadcast. An exception restores them."""
        flats = [bucket.flat for bucket in self._buckets]
        copies = [flat.open() for flat in flats]
        self._editing = True
        try:
            with no_grad():
                yield
            for copy in copies:
                self.comm.broadcast(copy)
            self._share_buffers()
        except BaseException:
            for flat in flats:
                flat.close(keep=False)
            raise
        finally:
            self._editing = False
        for flat in flats:
            flat.close(keep=True)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            if "module" in vars(self) and hasattr(self.module, name):
                raise AttributeError(f"{error}; the wrapped model has it: model.module.{name}") from None
            raise

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a wrapped model can't be copied or pickled, because its gradients belong to all ranks: take model.module"
        )

    def named_parameters(self, *how: Any, **named: Any) -> Iterator[tuple[str, Tensor]]:
        return self.module.named_parameters(*how, **named)

    def named_buffers(self, *how: Any, **named: Any) -> Iterator[tuple[str, Tensor]]:
        return self.module.named_buffers(*how, **named)

    def state_dict(self, **how: Any) -> dict[str, Tensor]:
        return self.module.state_dict(**how)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """As for a bare model; a call of all ranks, which then have what rank 0 has loaded."""
        with nullcontext() if self._editing else self.edit():
            return self.module.load_state_dict(state_dict, strict)

    def _share_buffers(self) -> None:
        for buffer in self.module.buffers():
            value = np.ascontiguousarray(buffer.array)
            self.comm.broadcast(value)
            np.copyto(buffer.array, value)


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
