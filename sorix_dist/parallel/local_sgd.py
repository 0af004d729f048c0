"""Local SGD and DiLoCo: virtual workers train replicas of a model separately, and average them every few batches.

A virtual worker is a virtual shard of every global batch, with weights, buffers and an optimizer state of its own. So
the result depends on the number of virtual shards, and not on the number of ranks. The sum is that of reproducible
mode: what a worker's weights have moved takes the place of its gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from zlib import crc32

import numpy as np

from sorix_dist.comm.blas import ask_for_long_slices
from sorix_dist.core.arguments import as_bool, as_int, as_state
from sorix_dist.core.capture import outside
from sorix_dist.core.fingerprint import as_text
from sorix_dist.nn import Module
from sorix_dist.optim import SGD
from sorix_dist.optim.optimizer import Optimizer
from sorix_dist.parallel.comm_hooks import Hook, fp16_compress
from sorix_dist.parallel.consistency import describe_modules, describe_state, same_everywhere
from sorix_dist.parallel.coordinator import Coordinator
from sorix_dist.parallel.data_parallel import DistributedDataParallel
from sorix_dist.parallel.forward import batch_of
from sorix_dist.parallel.groups import InOrder, check_batch, rows_of_worker
from sorix_dist.parallel.module_state import Numbers
from sorix_dist.parallel.workers import Workers
from sorix_dist.parallel.world import agree_on_seed, virtual_shards, world

_STATE = ("workers", "batches", "since", "rows", "history", "options", "states", "outer")


class LocalSGD:
    """Averages the weights of virtual workers every `every` batches, and sends no message in between (Stich 2019, Local
    SGD Converges Fast and Communicates Little).

        sx.init(virtual_shards=8)                    # 8 workers, on 1 to 8 ranks
        local = sx.LocalSGD(model, optimizer, every=16)
        for xb, yb in loader:
            for x, y in local.workers(xb, yb):       # each worker of this rank, and its rows of the batch
                optimizer.zero_grad()
                criterion(model(x), y).backward()
                optimizer.step()
        local.synchronise()                          # the last batches

    In the inner loop the model and the optimizer have the weights and the state of one worker, which trains as a
    single process does. Outside of it the model has the weights of the last sum, the same on every rank. A worker keeps
    its optimizer state (momentum, say) at a sum. It counts in the average by its rows since the last sum: with plain
    SGD and every=1, a step is that of the global batch. Buffers such as batch norm's running statistics are averaged
    too; integer ones become the largest.

    model: the bare model; rank 0 broadcasts its weights. optimizer: of its parameters. every: the number of batches
    between two sums; all ranks may change this attribute alike (to 1 for a warm-up, say). hook:
    `comm_hooks.fp16_compress` halves what travels: what each worker has moved is rounded to float16, with one scale for
    8,192 weights, and so is the sum. What a worker's rounding takes is added to what it moves until the next sum, and
    is in the checkpoint (error feedback). With two or more workers on a rank, only the sums travel as float16.
    overlap: whether a sum travels between hosts while the workers train on, which hides a slow network. It is complete
    at the next sum: each worker then moves by the mean of what all had moved, less what it had moved itself (Shen et
    al. 2019, Faster Distributed Deep Net Training: Computation and Communication Decoupled SGD). So averages come one
    round late, also for the model outside of the loop; `synchronise()` completes them.
    The constructor is a call of all ranks. RuntimeError without `init(virtual_shards=...)`, ValueError for another
    hook, if the model is wrapped, or if the ranks have other models, options or optimizer states.
    In a checkpoint save `model=model, local=local`, without the optimizer: `local` has the states of all workers.
    """

    outer: Optimizer | None = None
    _known = "", ""  # the options of the optimizers in Python's form, and as text

    def __init__(
        self, model: Module, optimizer: Optimizer, every: int, *, hook: Hook | None = None, overlap: bool = False
    ) -> None:
        name = type(self).__name__
        _check_arguments(name, model, optimizer)
        if hook is not None and hook is not fp16_compress:
            raise ValueError(
                f"{name}: hook must be None or comm_hooks.fp16_compress, got {hook!r}: others sum over the ranks, and "
                "the result would depend on their number"
            )
        self.every, self.overlap = as_int(f"{name}: every", every, 1), as_bool(f"{name}: overlap", overlap)
        self.model, self.optimizer = model, optimizer
        comm = world()
        if virtual_shards(comm) is None:
            raise RuntimeError(
                f"{name}: the result depends on the number of workers, which is that of virtual shards: call "
                "sx.init(virtual_shards=8), say, before anything else. It is a power of two, at least the number of "
                "ranks"
            )
        agree_on_seed(comm)
        same_everywhere(comm, "the model's parameters and buffers", describe_state(model))
        same_everywhere(comm, "the model's modules and their options", describe_modules(model))
        same_everywhere(
            comm,
            f"every and the optimizer of {name}",
            [f"every={self.every}", f"hook={as_text(hook)}", f"overlap={overlap}", self._options()],
        )
        self._coordinator = Coordinator(comm)  # of its own: backwards of wrapped models do not concern it
        assert isinstance(self._coordinator.group, InOrder)
        self._group, self._shards = self._coordinator.group, self._coordinator.group.shards
        self._workers = Workers(self, model, optimizer, self._coordinator, hook is not None, overlap)
        digest = crc32(b"".join(array.tobytes() for array in self._workers.initial.values()))
        same_everywhere(comm, f"the optimizer's state of {name}", [f"one with the digest {digest:08x}"])
        self._numbers = Numbers(model)
        self._broken = False
        self.batches = 0
        self._count_from_here()
        self._workers.begin_round()
        ask_for_long_slices()

    def _count_from_here(self) -> None:
        self._since = 0  # batches since the last sum
        self._rows = np.zeros(self._shards.count, np.int64)  # of each worker since then
        self._history = 0  # a digest of the optimizer's options since then

    def workers(self, *batch: Any) -> Iterator[Any]:
        """Yields a loader's batch worker by worker: for each worker of this rank its rows, in the form that was given.

        The loop body is one worker's step; a worker without rows in this batch is left out. The end of every
        `every`-th loop is a call of all ranks, which averages the workers. RuntimeError if an argument is not rows of
        a loader's batch (`sx.replicated(x)` is passed as it is), if the body changes options of the optimizer, or if it
        leaves gradients that no `optimizer.step()` has used.
        """
        name = f"{type(self).__name__}.workers"
        outside(f"{name}: the loop over workers can't be captured, but the step of a worker can")
        self._refuse_broken(name)
        check_batch(name, batch)
        rows, options = batch_of(batch, self._group).rows, self._options()
        shown, numbers = self._workers.begin_batch(), self._numbers
        numbers.begin()
        self._broken = True  # until the loop ends
        try:
            for worker in self._shards.owned:
                start, stop = self._shards.rows(worker, rows.total)
                if start == stop:
                    continue
                numbers.restore()
                own = rows_of_worker(batch, start - rows.start, stop - rows.start, self._workers.sync.group)
                with self._workers.turn(worker, self.batches, shown):
                    yield own if len(own) > 1 else own[0]
                    self._check_turn(name, worker, options)
                    numbers.compare(self._group)
        finally:
            self._workers.end_batch(shown, self.batches + 1)
        self._broken = False
        self.batches += 1
        self._since += 1
        self._rows += [stop - start for start, stop in self._bounds(rows.total)]
        self._history = crc32(options.encode(), self._history)
        self._coordinator.rows = rows
        if self._since >= self.every:
            self._sum(start=self.overlap)

    def _bounds(self, total: int) -> list[tuple[int, int]]:
        return [self._shards.rows(worker, total) for worker in range(self._shards.count)]

    def _check_turn(self, name: str, worker: int, options: str) -> None:
        if self._options() != options:
            raise RuntimeError(
                f"{name}: the optimizer's options have changed in the step of a worker, so that the next one would "
                "train with others: step schedulers after the loop over workers"
            )
        if not self._workers.sync.stepped and self._workers.has_gradients():
            raise RuntimeError(
                f"{name}: worker {worker} has gradients that no optimizer.step() has used, and they would be lost: "
                "step for every batch (to accumulate, cut the worker's rows into pieces), or call optimizer.zero_grad()"
            )

    def synchronise(self) -> None:
        """Averages the workers now, if they have trained since the last sum. A call of all ranks, for before an
        evaluation and at the end; without it the model has the weights of the last sum.

        RuntimeError if the ranks are not at the same batch with the same weights and options; FloatingPointError if
        weights are not finite. No worker's weights are mixed then.
        """
        if self.overlap and self._since:
            self._sum(start=True)
        self._sum(start=False)

    def _sum(self, start: bool) -> None:
        """Completes the sum that is under way and starts another one, or without `start` averages the workers."""
        name = f"{type(self).__name__}.synchronise"
        self._refuse_broken(name)
        self._broken = True  # until the sum is complete
        shares = self._rows / max(1, self._rows.sum())
        self._workers.write_drifts(shares)
        digest = crc32(f"{self._since} of {self.every}".encode(), self._history)
        for bucket in self._workers.buckets:
            words = bucket.flat.data.view(np.uint64)  # whole cache lines
            digest = crc32(np.add.reduce(words.reshape(8, -1)), digest)  # 5 times as fast as that of all bytes
        self._coordinator.steps = self.batches
        self._coordinator.before_step(digest, self)
        self._coordinator.steps -= 1  # until the sum is complete
        leaves = [(leaf, leaf.hooks) for bucket in self._workers.buckets for leaf in bucket.leaves]
        for leaf, _ in leaves:
            leaf.hooks = None  # they are functions of gradients
        try:
            self._coordinator.synchronise(1.0)
        except (RuntimeError, FloatingPointError) as error:
            error.add_note(
                f"in {name} after {self.batches} batches, where the gradient of a worker is what its weights have moved"
            )
            raise
        finally:
            for leaf, hooks in leaves:
                leaf.hooks = hooks
        workers = self._workers
        has_sum = workers.under_way if self.overlap else self._since > 0
        if start:
            workers.start_sums()
        if has_sum:
            workers.round_sums()
            with workers.sync.sum():
                self._move()
        if self._since:
            workers.average_buffers(shares)
        self._broken = False
        self._count_from_here()
        if start:
            workers.train_on()
        else:
            workers.begin_round()

    def _move(self) -> None:
        """Moves the weights by the mean of what the workers have moved, which is in the gradients."""
        for bucket in self._workers.buckets:
            bucket.flat.data -= bucket.flat.grad

    def unwrap(self) -> Module:
        """Averages the workers, ends this object, and returns the model, an ordinary one again. A call of all ranks.
        Make another optimizer, because this one has the state of a rank's last worker."""
        self.synchronise()
        for bucket in self._workers.buckets:
            bucket.release()
        self._broken = True
        return self.model

    def describe(self) -> str:
        """The optimizers and their options, for an error message."""
        return f"{self._options()} after {self.batches} batches"

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """The states of all workers: those of the optimizer and, between two sums, weights and buffers. A call of all
        ranks. It fits any number of ranks. Save the model beside it."""
        self._refuse_broken(f"{type(self).__name__}.state_dict")
        with self._workers.sync.sum():
            outer = None if self.outer is None else self.outer.state_dict()
        return {
            "workers": self._shards.count,
            "batches": self.batches,
            "since": self._since,
            "rows": self._rows.copy(),
            "history": self._history,
            "options": [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups],
            "states": self._workers.state_dict(self._since > 0 or self._workers.under_way),
            "outer": outer,
            "overlap": self.overlap,
            "sums": self._workers.complete(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict()` with the same number of workers, on any number of ranks. ValueError says what
        does not fit; nothing is changed then."""
        self.check_state_dict(state_dict)
        self._workers.complete()
        self._workers.rewind()
        self._workers.begin_round()
        self._broken = False
        self.batches, self._since = int(state_dict["batches"]), int(state_dict["since"])
        self._rows, self._history = np.array(state_dict["rows"], np.int64), int(state_dict["history"])
        for group, options in zip(self.optimizer.param_groups, state_dict["options"], strict=True):
            group.update(options)
        sums = state_dict.get("sums", [])
        self._workers.load_state_dict(_as_arrays(state_dict["states"]), self._since > 0 or len(sums) > 0, sums)
        if self.outer is not None:
            with self._workers.sync.sum():
                self.outer.load_state_dict(state_dict["outer"])

    def check_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Raises what `load_state_dict` would raise for this state, and changes nothing."""
        name, own = f"{type(self).__name__}.load_state_dict", self._shards.count
        as_state(name, state_dict)
        if missing := [key for key in _STATE if key not in state_dict]:
            raise ValueError(f"{name}: state_dict lacks {missing}")
        if state_dict["workers"] != own:
            raise ValueError(
                f"{name}: the state is that of {state_dict['workers']} workers, on which the result depends, and this "
                f"run has {own}: call sx.init(virtual_shards={state_dict['workers']})"
            )
        if (state_dict["outer"] is None) != (self.outer is None):
            raise ValueError(f"{name}: the state is that of {'DiLoCo' if self.outer is None else 'LocalSGD'}")
        if state_dict.get("overlap", False) != self.overlap:
            raise ValueError(f"{name}: the state is that of overlap={not self.overlap}: give the same here")
        if len(state_dict["options"]) != len(self.optimizer.param_groups):
            raise ValueError(f"{name}: the state is that of an optimizer of {len(state_dict['options'])} groups")
        between = state_dict["since"] > 0 or len(state_dict.get("sums", [])) > 0
        saved = {key: (str(a.dtype), a.shape[1:]) for key, a in _as_arrays(state_dict["states"]).items()}
        wanted = {
            key: (str(of_workers[0].dtype), of_workers[0].shape)
            for key, of_workers in self._workers.arrays(between).items()
        }
        for key in sorted({*saved, *wanted}):
            if saved.get(key) != wanted.get(key):
                raise ValueError(f"{name}: '{key}' must be {wanted.get(key)}, got {saved.get(key)}")
        if self.outer is not None:
            with self._workers.sync.sum():
                self.outer.check_state_dict(state_dict["outer"])

    def _options(self) -> str:
        optimizers = [self.optimizer] if self.outer is None else [self.optimizer, self.outer]
        groups = [(o, [*map(group.get, o.defaults)]) for o in optimizers for group in o.param_groups]
        if self._known[0] != (values := str([own for _, own in groups])):
            found = []
            for o, own in groups:
                options = [f"{key}={as_text(value)}" for key, value in zip(o.defaults, own, strict=True)]
                found.append(f"{type(o).__name__}({', '.join(options)})")
            self._known = values, f"{type(self).__name__} of {', '.join(found)}"
        return self._known[1]

    def _refuse_broken(self, name: str) -> None:
        if self._broken:
            raise RuntimeError(
                f"{name}: this object was unwrapped, or a sum has failed, or the loop over workers was left early (by "
                "break, return or an exception), so that workers lack a batch. Load a checkpoint to go on; `continue` "
                "ends the step of a single worker"
            )


class DiLoCo(LocalSGD):
    """LocalSGD with an outer optimizer: the mean of what the workers have moved is its gradient (Douillard et al. 2023,
    DiLoCo: Distributed Low-Communication Training of Language Models, algorithm 1).

    optimizer: the inner one, AdamW in the paper; every: 500 there; outer: an optimizer of the model's parameters, by
    default `optim.SGD(model.parameters(), lr=0.7, momentum=0.9, nesterov=True)`, the paper's. All else as in LocalSGD,
    which it is with the outer SGD(lr=1).
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        every: int,
        outer: Optimizer | None = None,
        *,
        hook: Hook | None = None,
        overlap: bool = False,
    ) -> None:
        _check_arguments("DiLoCo", model, optimizer)
        if outer is None:
            outer = SGD(model.parameters(), lr=0.7, momentum=0.9, nesterov=True)
        _check_arguments("DiLoCo", model, outer, "outer")
        if outer is optimizer:
            raise ValueError("DiLoCo: outer must be another optimizer than the inner one, got the same")
        self.outer = outer
        super().__init__(model, optimizer, every, hook=hook, overlap=overlap)

    def _move(self) -> None:
        assert self.outer is not None
        self.outer.step()


def _check_arguments(name: str, model: Any, optimizer: Any, argument: str = "optimizer") -> None:
    if isinstance(model, DistributedDataParallel):
        raise TypeError(f"{name}: model must be the bare model, got a wrapped one: give model.unwrap()")
    if not isinstance(model, Module):
        raise TypeError(f"{name}: model must be a Module, got {type(model).__name__}")
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"{name}: {argument} must be an Optimizer, got {type(optimizer).__name__}")
    own = {id(parameter): key for key, parameter in model.named_parameters()}
    if not own:
        raise ValueError(f"{name}: model must have parameters to train, got a {type(model).__name__} without any")
    if any(id(parameter) not in own for group in optimizer.param_groups for parameter in group["params"]):
        raise ValueError(f"{name}: {argument} must have parameters of the model alone, got others too")
    wrapped = [own[id(p)] for p in model.parameters() if p.leaf is not None and p.leaf.sync is not None]
    if wrapped:
        raise ValueError(
            f"{name}: model must be a bare one: its parameter '{wrapped[0]}' belongs to another wrapper, whose "
            "unwrap() gives the model back"
        )


def _as_arrays(states: Mapping[str, Any]) -> dict[str, Any]:
    return {name: np.asarray(value) for name, value in states.items()}
