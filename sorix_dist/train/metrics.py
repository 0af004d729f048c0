"""Metrics over all samples of all ranks: `update` is local and cheap, `compute` is a call of all ranks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import numpy as np

from sorix_dist.comm import Comm
from sorix_dist.core import Tensor
from sorix_dist.core.tensor import as_array
from sorix_dist.parallel.check import same_everywhere
from sorix_dist.parallel.world import communicator
from sorix_dist.train.exact import ExactMean
from sorix_dist.utils.data.sampler import whole

Array = np.ndarray[Any, Any]


class Metric(ABC):
    """What all metrics have in common.

    comm: an mpi4py communicator if not all ranks of the job update and compute it.

    Samples are counted by whoever sees them: with a loader that gives every rank all rows (`shard=False`) each of
    them counts once a rank.
    """

    options: ClassVar[tuple[str, ...]] = ()
    """The names of the attributes in which the metrics of all ranks must be alike."""

    def __init__(self, comm: Any = None) -> None:
        self._comm = comm
        self.reset()

    @abstractmethod
    def reset(self) -> None:
        """Forgets everything that this rank has seen."""

    @abstractmethod
    def _seen(self) -> dict[str, Any]:
        """What this rank has seen, as plain values."""

    @abstractmethod
    def _together(self, comm: Comm) -> dict[str, Any]:
        """What all ranks have seen, in the form of `_seen`; a call of all ranks."""

    @abstractmethod
    def _take(self, seen: Mapping[str, Any]) -> None:
        """Makes this rank one that has seen this, and nothing else."""

    def state_dict(self) -> dict[str, Any]:
        """What all ranks together have seen since the last reset: a call of all ranks, the same for everyone."""
        return {**self._named_options(), **self._together(self._ranks())}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict()`, on any number of ranks. All ranks call it; rank 0 then has seen everything.

        ValueError if the state is that of another metric.
        """
        own = {**self._named_options(), **self._seen()}
        if state_dict.keys() != own.keys():
            raise ValueError(f"load_state_dict: state_dict must have {', '.join(own)}, got {', '.join(state_dict)}")
        for name, value in self._named_options().items():
            if state_dict[name] != value:
                raise ValueError(f"load_state_dict: {name} is {value!r} here and was {state_dict[name]!r}")
        self._take(state_dict)
        if self._communicator().rank != 0:
            self.reset()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self.options)})"

    def _named_options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.options}

    def _communicator(self) -> Comm:
        if self._comm is None:
            return communicator()
        self._comm = communicator(self._comm)  # once, for it is a duplicate of one of mpi4py's
        return cast(Comm, self._comm)

    def _ranks(self) -> Comm:
        """The communicator, whose ranks have all come to the same metric."""
        comm = self._communicator()
        same_everywhere(comm, "the metric", [repr(self)])
        return comm


class Mean(Metric):
    """The mean of all values, weighted: `mean.update(loss.item(), len(yb))` or `mean.update(loss_of_each_sample)`.

    `compute()` is the exact mean of the values and weights that were given, rounded once to a float64: the same
    bits in whatever order, on whatever rank and in whatever groups they came. So the mean of values per sample has
    the same bits on every number of ranks. `loss.item()` differs between numbers of ranks by its own rounding, and so
    then does their mean. It may be taken before the backward, when it is the mean over this rank's rows, or after.
    """

    def reset(self) -> None:
        self._mean = ExactMean()

    def update(self, value: Any, weight: Any = 1) -> None:
        """Adds a number of this weight, or every element of a tensor or array, with this weight each.

        weight: a finite number >= 0, or an array of them of the shape of value. Values of weight 0 are ignored,
        also NaN: the mean loss of no rows does no harm.
        """
        values, weights = _numbers("value", value), _numbers("weight", weight)
        if not (np.isfinite(weights).all() and (weights >= 0).all()):
            raise ValueError(f"weight must be finite and >= 0, got {weight!r}")
        if weights.ndim == 0:
            if not weights.any():
                return
            if values.ndim == 0:
                self._mean.add_one(values.item(), weights.item())
            else:
                self._mean.add(values, weights.item())
            return
        if weights.shape != values.shape:
            raise ValueError(
                f"weight must be a number or have the shape of value, got shapes {weights.shape} and {values.shape}"
            )
        for one, share in zip(values.reshape(-1).tolist(), weights.reshape(-1).tolist()):
            if share:
                self._mean.add_one(one, share)

    def compute(self) -> float:
        """The mean over all ranks; NaN if there is nothing, or nothing but weights of 0. A call of all ranks."""
        return _mean_of(self._together(self._ranks())).value()

    def _seen(self) -> dict[str, Any]:
        # In hexadecimal, because readers of JSON may not keep integers of this length.
        return {"total": hex(self._mean.total), "weight": hex(self._mean.weight), "odd": sorted(self._mean.odd)}

    def _together(self, comm: Comm) -> dict[str, Any]:
        together = Mean()
        together._mean = sum(map(_mean_of, comm.gather_objects(self._seen())), ExactMean())
        return together._seen()

    def _take(self, seen: Mapping[str, Any]) -> None:
        self._mean = _mean_of(seen)


def _mean_of(seen: Mapping[str, Any]) -> ExactMean:
    return ExactMean(int(seen["total"], 16), int(seen["weight"], 16), frozenset(seen["odd"]))


class _Counts(Metric):
    """Metrics that are counts of samples: exact, whoever counts them."""

    shape: tuple[int, ...] = ()

    def reset(self) -> None:
        self.counts = np.zeros(self.shape, np.int64)

    def _seen(self) -> dict[str, Any]:
        return {"counts": self.counts.tolist()}

    def _together(self, comm: Comm) -> dict[str, Any]:
        counts = self.counts.copy()
        comm.all_reduce(counts)
        return {"counts": counts.tolist()}

    def _take(self, seen: Mapping[str, Any]) -> None:
        counts = np.asarray(seen["counts"])
        if counts.shape != self.shape or counts.dtype.kind != "i" or (counts < 0).any():
            raise ValueError(f"load_state_dict: counts must be integers >= 0 of shape {self.shape}, got {counts}")
        self.counts = counts.astype(np.int64)


class Accuracy(_Counts):
    """The share of samples whose label is predicted right.

    ignore_index: a label that does not count; top_k: right if the label is among the k classes with the largest
    logits, of equal ones the first.
    """

    options = ("ignore_index", "top_k")
    shape = (2,)

    def __init__(self, ignore_index: int | None = None, top_k: int = 1, *, comm: Any = None) -> None:
        self.ignore_index, self.top_k = _option("ignore_index", ignore_index), whole("top_k", top_k, 1)
        super().__init__(comm)

    def update(self, logits_or_labels: Any, target: Any) -> None:
        """Counts samples: logits (N, C) or (N, C, ...), or predicted labels, and target (N) or (N, ...)."""
        found, wanted = _pair(logits_or_labels, target)
        keep = _kept(wanted, self.ignore_index)
        if found.shape == wanted.shape:
            if self.top_k > 1:
                raise ValueError(f"top_k={self.top_k} needs logits, got labels of shape {found.shape}")
            right = found == wanted
        else:
            classes = found.shape[1]
            if self.top_k > classes:
                raise ValueError(f"top_k must be at most the number of classes {classes}, got {self.top_k}")
            _check_range("target", wanted, keep, classes)
            right = _among_largest(found, np.where(keep, wanted, 0), self.top_k)
        self.counts += (int(np.count_nonzero(right & keep)), int(np.count_nonzero(keep)))

    def compute(self) -> float:
        """Right samples divided by samples, over all ranks; NaN if there are none. A call of all ranks."""
        right, samples = self._together(self._ranks())["counts"]
        return right / samples if samples else math.nan


class ConfusionMatrix(_Counts):
    """How often samples of each label (row) are predicted as each label (column).

    num_classes: labels are 0 to num_classes - 1; ignore_index: a label that does not count.
    """

    options = ("num_classes", "ignore_index")

    def __init__(self, num_classes: int, ignore_index: int | None = None, *, comm: Any = None) -> None:
        self.num_classes = whole("num_classes", num_classes, 1)
        self.ignore_index = _option("ignore_index", ignore_index)
        self.shape = (self.num_classes, self.num_classes)
        super().__init__(comm)

    def update(self, logits_or_labels: Any, target: Any) -> None:
        """Counts samples: logits (N, C) or (N, C, ...), or predicted labels, and target (N) or (N, ...)."""
        found, wanted = _pair(logits_or_labels, target)
        keep = _kept(wanted, self.ignore_index)
        if found.shape != wanted.shape:
            if found.shape[1] != self.num_classes:
                raise ValueError(f"logits must have {self.num_classes} classes in axis 1, got shape {found.shape}")
            found = found.argmax(axis=1)
        _check_range("target", wanted, keep, self.num_classes)
        _check_range("the predicted label", found, keep, self.num_classes)
        pairs = wanted[keep].astype(np.int64) * self.num_classes + found[keep].astype(np.int64)
        self.counts += np.bincount(pairs, minlength=self.num_classes**2).reshape(self.shape)

    def compute(self) -> Array:
        """The counts over all ranks, int64 of shape (num_classes, num_classes). A call of all ranks."""
        return np.array(self._together(self._ranks())["counts"], np.int64)


def _numbers(name: str, value: Any) -> Array:
    """`value` as an array; Python's floats stay float64."""
    if isinstance(value, float | int) and not isinstance(value, np.generic):
        array = np.asarray(value)
        if array.dtype.kind in "biuf":
            return array
    try:
        return as_array(value, np.float64 if isinstance(value, list | tuple) else None)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a number, or a tensor or array of numbers, got {value!r}") from error


def _pair(found: Any, target: Any) -> tuple[Array, Array]:
    """Logits or labels, and integer labels, of shapes that fit."""
    found, target = (x.array if isinstance(x, Tensor) else as_array(x) for x in (found, target))
    if target.dtype.kind not in "iub":
        if target.size:
            raise TypeError(f"target must hold integers, got {target.dtype}")
        target = target.astype(np.int64)  # an empty list
    if target.ndim == 0:
        raise ValueError("target must have one label per sample, got a single number")
    if found.shape == target.shape:
        if found.dtype.kind not in "iub" and found.size:
            raise TypeError(f"predicted labels must be integers, got {found.dtype} of the target's shape {found.shape}")
    elif found.ndim != target.ndim + 1 or (found.shape[:1] + found.shape[2:]) != target.shape:
        raise ValueError(
            f"logits must have a class axis after the first of target {target.shape}, and labels its shape, "
            f"got {found.shape}"
        )
    return found, target


def _among_largest(logits: Array, labels: Array, k: int) -> Array:
    """Whether each label's logit is among the k largest, of equal ones the first; never if it is NaN."""
    index = np.expand_dims(labels, 1)
    own = np.take_along_axis(logits, index, 1)
    if k == 1:
        right: Array = (logits.argmax(axis=1) == labels) & (own == own)[:, 0]
        return right
    classes = np.arange(logits.shape[1]).reshape(-1, *[1] * (labels.ndim - 1))
    # Before it come larger logits, equal ones of smaller labels, and all if one of the two is NaN.
    before = ~(logits <= own) | ((logits == own) & (classes < index))
    right = before.sum(axis=1) < k
    return right


def _kept(target: Array, ignore_index: int | None) -> Array:
    return np.ones(target.shape, bool) if ignore_index is None else target != ignore_index


def _check_range(name: str, labels: Array, keep: Array, classes: int) -> None:
    wrong = keep & ((labels < 0) | (labels >= classes))
    if wrong.any():
        place = np.unravel_index(int(wrong.argmax()), wrong.shape)
        raise IndexError(f"{name} must be in [0, {classes}), got {labels[place]} in row {place[0]}")


def _option(name: str, value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer)):
        raise ValueError(f"{name} must be an integer or None, got {value!r}")
    return None if value is None else int(value)
