"""The base class of metrics: counts of this rank, one collective that sums them, and a state to resume from. And exact
means: neither the order of the samples nor the rank that adds them matters."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from fractions import Fraction
from functools import reduce
from itertools import chain
from operator import add
from typing import Any, cast

import numpy as np

from sorix_dist.comm import Comm
from sorix_dist.core import Tensor
from sorix_dist.core.arguments import as_state
from sorix_dist.core.batch_numbers import BatchInt
from sorix_dist.core.capture import outside
from sorix_dist.core.own_numbers import is_of_part, warn_of_given
from sorix_dist.core.tensor import Array, as_array
from sorix_dist.parallel.world import communicator


class Metric(ABC):
    """A number, or several, over all samples of all ranks.

    comm: an mpi4py communicator if not all ranks of the job update and compute it.

    A subclass defines the initial sums (`_nothing`: values that add up by +), adds samples to `self.seen` in `update`,
    and computes the value from the sums over all ranks in `_answer`. Each rank counts its own samples: with a loader
    that gives every rank all rows (`shard=False`) each sample counts once per rank.
    """

    options: tuple[str, ...] = ()
    """The names of the attributes that must be the same on all ranks."""

    def __init__(self, comm: Any = None) -> None:
        self._comm = comm
        self.reset()

    def reset(self) -> None:
        """Sets the sums of this rank to those of no samples."""
        self.seen = self._nothing()

    @abstractmethod
    def update(self, found: Any, target: Any) -> None:
        """Adds samples of this rank, possibly none."""

    def compute(self) -> Any:
        """The value over all ranks since the last reset, with the same bits on any number of them. A call of all ranks.
        ValueError if a rank has another metric."""
        return self._answer(self._total())

    @abstractmethod
    def _nothing(self) -> dict[str, Any]: ...

    @abstractmethod
    def _answer(self, seen: dict[str, Any]) -> Any: ...

    def state_dict(self) -> dict[str, Any]:
        """The sums over all ranks since the last reset, as JSON values, the same on each rank. A call of all ranks."""
        return {**self._named_options(), **{name: _plain(value) for name, value in self._total().items()}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict()`, on any number of ranks. All ranks call it; rank 0 then has seen everything.

        ValueError if the state is that of another metric.
        """
        options, nothing = self._named_options(), self._nothing()
        if as_state("load_state_dict", state_dict).keys() != {**options, **nothing}.keys():
            raise ValueError(
                f"load_state_dict: state_dict must have {', '.join([*options, *nothing])}, got {', '.join(state_dict)}"
            )
        for name, value in options.items():
            if state_dict[name] != value:
                raise ValueError(f"load_state_dict: {name} is {value!r} here and was {state_dict[name]!r}")
        seen = {name: _parsed(name, state_dict[name], like) for name, like in nothing.items()}
        self.seen = seen if self._communicator().rank == 0 else nothing

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self.options)})"

    def _named_options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.options}

    def _communicator(self) -> Comm:
        if self._comm is None:
            return communicator()
        self._comm = communicator(self._comm)  # adopted once: it duplicates one of mpi4py's
        return cast(Comm, self._comm)

    def _total(self) -> dict[str, Any]:
        """The sum of what all ranks have seen; ValueError on every rank if one has another metric."""
        outside("compute() and state_dict() of a metric can't be captured")
        what = "compute() or state_dict() of a metric, a call of all ranks,"
        reports = self._communicator().gather_objects((repr(self), self.seen), what)
        for rank, (metric, _) in enumerate(reports):
            if metric != reports[0][0]:
                raise ValueError(
                    f"the metric must be the same on every rank: rank 0 has {reports[0][0]}, rank {rank} has {metric}"
                )
        return {name: reduce(add, (seen[name] for _, seen in reports)) for name in self.seen}


def _plain(value: Any) -> Any:
    """A sum as a JSON value; as text where JSON would lose digits, or has no such number."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list):
        return [entry for part in value for entry in part.tolist()]
    return str(value)


def _parsed(name: str, plain: Any, like: Any) -> Any:
    if isinstance(like, list):
        return [np.asarray(plain)] if len(plain) else []
    if not isinstance(like, np.ndarray):
        return type(like)(plain)
    counts = np.asarray(plain)
    if counts.shape != like.shape or counts.dtype.kind != "i" or (counts < 0).any():
        raise ValueError(f"load_state_dict: {name} must be integers >= 0 of shape {like.shape}, got {counts}")
    return counts.astype(like.dtype)


def exact_sum(values: Array) -> Fraction:
    """The sum of finite numbers without any rounding.

    `math.fsum` rounds once (Shewchuk 1997); what its result lacks is the next term, until nothing is missing.
    """
    numbers = values.ravel().tolist()
    if values.dtype.kind in "iub":
        return Fraction(sum(numbers))
    terms: list[float] = []
    try:
        while rest := math.fsum(chain(numbers, (-term for term in terms))):
            terms.append(rest)
    except OverflowError:
        return sum(map(Fraction, numbers), Fraction())
    return sum(map(Fraction, terms), Fraction())


def exact_dot(first: Array, second: Array) -> Fraction:
    """The sum of the products of finite numbers without any rounding.

    A product of two float64 is the rounded one and its error (Dekker 1971), unless it leaves the range of float64.
    """
    a, b = first.ravel().astype(np.float64), second.ravel().astype(np.float64)
    sizes = np.abs(np.concatenate([a, b]))
    if "i" in first.dtype.kind + second.dtype.kind or ((sizes > 1e120) | ((sizes < 1e-120) & (sizes > 0))).any():
        pairs = zip(first.ravel().tolist(), second.ravel().tolist())
        return sum((Fraction(x) * Fraction(y) for x, y in pairs), Fraction())
    product = a * b
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return exact_sum(np.concatenate([product, error]))


def _halves(x: Array) -> tuple[Array, Array]:
    """Two numbers of 26 bits whose sum is x (Veltkamp's splitting)."""
    scaled = x * 134217729.0  # 2**27 + 1
    high = scaled - (scaled - x)
    return high, x - high


class Mean(Metric):
    """The mean of all values, weighted: `mean.update(loss.item(), len(yb))` or `mean.update(loss_of_each_sample)`.

    `compute()` is the exact mean of the values and weights, rounded once to a float64. Its bits do not depend on the
    order, the ranks or the groups of the updates. So the mean of values per sample has the same bits on any number of
    ranks. `loss.item()` rounds differently on each number of ranks, and so does a mean of it. Before the backward it is
    the mean over this rank's rows, afterwards that over the global batch; both give the same mean.
    NaN without values, or if all weights are 0.
    """

    def _nothing(self) -> dict[str, Any]:
        return {"total": Fraction(), "weight": Fraction(), "odd": 0.0}  # odd: the sum of infinities and NaN

    def update(self, value: Any, weight: Any = 1) -> None:
        """Adds a number of this weight, or every element of a tensor or array, with this weight each.

        weight: a finite number >= 0, or an array of them of the shape of value; ValueError otherwise. Values of weight
        0 are ignored, also NaN such as the mean loss of no rows. A mean over rows before its backward, which is this
        rank's, counts by the rows of this rank if weight is x.shape[0] or len(x).
        """
        if isinstance(weight, BatchInt) and is_of_part(value):
            weight = weight.own  # this rank's mean and its rows
        elif isinstance(weight, int) and weight == 1:
            warn_of_given("the value of a metric", value)
        values, weights = _numbers("value", value), _numbers("weight", weight)
        if not (np.isfinite(weights).all() and (weights >= 0).all()):
            raise ValueError(f"weight must be finite and >= 0, got {weight!r}")
        if weights.ndim and weights.shape != values.shape:
            raise ValueError(
                f"weight must be a number or have the shape of value, got shapes {weights.shape} and {values.shape}"
            )
        if weights.ndim:
            counted = weights > 0
            values, weights = values[counted], weights[counted]
        elif not weights:
            return
        self.seen["weight"] += exact_sum(weights) if weights.ndim else Fraction(weights.item()) * values.size
        if not (finite := np.isfinite(values)).all():
            self.seen["odd"] = sum(values[~finite].ravel().tolist(), self.seen["odd"])
            values, weights = values[finite], weights[finite] if weights.ndim else weights
        if weights.ndim:
            self.seen["total"] += exact_dot(values, weights)
        else:
            self.seen["total"] += exact_sum(values) * Fraction(weights.item())

    def _answer(self, seen: dict[str, Any]) -> float:
        if not seen["weight"]:
            return math.nan
        return float(seen["odd"] or seen["total"] / seen["weight"])


class MSE(Mean):
    """The mean squared error of predictions."""

    def update(self, found: Any, target: Any) -> None:  # type: ignore[override]
        """Adds predictions and targets: numbers of one shape, such as (N,) or (N, d)."""
        predicted, wanted = _same_shape(found, target)
        super().update((predicted - wanted) ** 2)


class MAE(Mean):
    """The mean absolute error of predictions."""

    def update(self, found: Any, target: Any) -> None:  # type: ignore[override]
        """Adds predictions and targets: numbers of one shape, such as (N,) or (N, d)."""
        predicted, wanted = _same_shape(found, target)
        super().update(np.abs(predicted - wanted))


class R2(Metric):
    """The coefficient of determination, 1 - sum((y - f)²) / sum((y - mean of y)²), of one number a sample.

    1.0 is perfect; predicting the mean of the targets gives 0.0. If all targets are equal it is 1.0 for perfect
    predictions and 0.0 for others, as in scikit-learn's r2_score; NaN for fewer than two samples.
    """

    def _nothing(self) -> dict[str, Any]:
        return {"error": Fraction(), "total": Fraction(), "squares": Fraction(), "samples": 0, "odd": 0.0}

    def update(self, found: Any, target: Any) -> None:
        """Adds predictions and targets, both of shape (N,) or (N, 1)."""
        predicted, wanted = _same_shape(found, target)
        if wanted.ndim > 1 and wanted.size != len(wanted):
            raise ValueError(f"R2 takes one number a sample, got shape {wanted.shape}: use one R2 for each column")
        errors = (predicted - wanted) ** 2
        if not (np.isfinite(errors).all() and np.isfinite(wanted).all()):
            self.seen["odd"] += math.nan
            return
        self.seen["error"] += exact_sum(errors)
        self.seen["total"] += exact_sum(wanted)
        self.seen["squares"] += exact_dot(wanted, wanted)
        self.seen["samples"] += wanted.size

    def _answer(self, seen: dict[str, Any]) -> float:
        if seen["odd"] or seen["samples"] < 2:
            return math.nan
        spread = seen["squares"] - seen["total"] ** 2 / seen["samples"]
        return float(1 - seen["error"] / spread) if spread else float(not seen["error"])


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


def _same_shape(found: Any, target: Any) -> tuple[Array, Array]:
    """Predictions and targets in float64. Shapes (N) and (N, 1) are refused: their difference would be a matrix."""
    predicted, wanted = (
        np.asarray(x.visible if isinstance(x, Tensor) else _numbers(name, x), np.float64)
        for name, x in (("predictions", found), ("target", target))
    )
    if predicted.shape != wanted.shape:
        raise ValueError(
            f"predictions and target must have the same shape, got {predicted.shape} and {wanted.shape}"
            + ("; `.squeeze(1)` removes the axis of length 1" if predicted.size == wanted.size else "")
        )
    return predicted, wanted
