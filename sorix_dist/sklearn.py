"""Estimators for scikit-learn that train a neural network on any number of ranks; needs the extra `sklearn`."""

from __future__ import annotations

import contextvars
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Self

import numpy as np

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.model_selection import train_test_split
    from sklearn.utils import check_random_state
    from sklearn.utils.class_weight import compute_sample_weight
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError('sorix_dist.sklearn needs scikit-learn 1.6: pip install "sorix_dist[sklearn]"') from error

from sorix_dist import nn, optim
from sorix_dist.core import Tensor, no_grad
from sorix_dist.core.arguments import as_bool, as_int, as_number, described, in_range
from sorix_dist.core.random import manual_seed
from sorix_dist.core.tensor import Array
from sorix_dist.launch.spawn import run
from sorix_dist.nn.summary import evaluation
from sorix_dist.parallel import DistributedDataParallel, broadcast, init
from sorix_dist.train.loops import fit
from sorix_dist.train.metrics import Accuracy, Metric
from sorix_dist.train.recorder import Recorder
from sorix_dist.train.stopping import EarlyStopping
from sorix_dist.utils.data import DataLoader, Dataset
from sorix_dist.utils.data.tables import missing_rows

OPTIMIZERS: dict[str, Callable[..., Any]] = {"adam": optim.Adam, "sgd": partial(optim.SGD, momentum=0.9)}
FLOATS = [np.float64, np.float32]
ROWS = 8192  # the number of rows that are predicted at a time


class NeuralNetwork(BaseEstimator):
    """The base class of Classifier and Regressor.

    hidden_layer_sizes: neurons of each hidden layer, with ReLU between; or model: a function of the numbers of inputs
        and outputs that makes a Module, instead. standardize: scale inputs (and a regressor's targets) by the mean and
        the standard deviation of the training data.
    optimizer: "adam", "sgd" (with momentum 0.9), or a function of parameters, lr= and weight_decay=.
    max_iter: epochs; training ends before if for n_iter_no_change of them the loss has not become better by tol: the
        one over the training data, or with early_stopping over a validation_fraction that is set aside.
    warm_start: `fit` goes on from the last one. random_state: of weights, order and validation part.
    verbose: show progress and time left. record: a folder of a Recorder, for `sorix-dist plot`.
    num_proc: ranks to train on, which are started for each fit (see sx.run); None trains in this process, or under
        mpirun on all ranks together, which then all call `fit` with the same data. virtual_shards: reproducible mode,
        in which the weights are bit for bit the same on any number of ranks up to it.

    After `fit`: model_ (a Module), history_ (the numbers of each epoch), loss_curve_, n_iter_.
    """

    def __init__(
        self,
        hidden_layer_sizes: tuple[int, ...] = (100,),
        *,
        model: Callable[[int, int], nn.Module] | None = None,
        standardize: bool = True,
        optimizer: str | Callable[..., Any] = "adam",
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        batch_size: int = 200,
        max_iter: int = 200,
        tol: float = 1e-4,
        n_iter_no_change: int = 10,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: bool = False,
        record: str | None = None,
        num_proc: int | None = None,
        virtual_shards: int | None = None,
    ) -> None:
        self.hidden_layer_sizes, self.model, self.standardize = hidden_layer_sizes, model, standardize
        self.optimizer, self.learning_rate, self.weight_decay = optimizer, learning_rate, weight_decay
        self.batch_size, self.max_iter, self.tol = batch_size, max_iter, tol
        self.n_iter_no_change, self.early_stopping = n_iter_no_change, early_stopping
        self.validation_fraction, self.warm_start = validation_fraction, warm_start
        self.random_state, self.verbose, self.record = random_state, verbose, record
        self.num_proc, self.virtual_shards = num_proc, virtual_shards

    def _checked(self, X: Any, y: Any, **options: Any) -> tuple[Array, Array]:
        for name in ("batch_size", "max_iter", "n_iter_no_change"):
            as_int(name, getattr(self, name), 1)
        for name in ("standardize", "early_stopping", "warm_start"):
            as_bool(name, getattr(self, name))
        as_number("tol", self.tol)
        in_range("validation_fraction", self.validation_fraction, 0, 1)
        if self.model is not None and (isinstance(self.model, nn.Module) or not callable(self.model)):
            raise TypeError(f"model must be a function that makes a Module, got {described(self.model)}")
        try:
            checked: tuple[Array, Array] = validate_data(self, X, y, dtype=FLOATS, **options)
            return checked
        except (TypeError, ValueError) as error:
            if len(shape := np.shape(y)) == 2 and shape[1] > 1:
                raise ValueError(
                    f"y must have one target for each sample, got shape {shape}: sklearn.multioutput has "
                    "MultiOutputClassifier and MultiOutputRegressor, which train an estimator for each column"
                ) from error
            for name in getattr(X, "columns", ()):
                if (kind := _no_numbers(X[name])) is not None:
                    raise ValueError(
                        f"X must hold numbers, got {kind} in the column {name!r}: drop it, or encode it, by "
                        "OneHotEncoder in a ColumnTransformer, or by pandas.get_dummies"
                    ) from error
            if len(rows := missing_rows(np.asarray(y))):
                raise ValueError(f"y must not be missing, got a missing value in row {rows[0]}") from error
            raise

    def _train(self, x: Array, y: Array, weight: Array | None, outputs: int, go_on: bool, epochs: int) -> Self:
        """Trains on y: classes as integers, or standardized targets of shape (N, 1)."""
        optimizer = OPTIMIZERS.get(self.optimizer) if isinstance(self.optimizer, str) else self.optimizer
        if not callable(optimizer):
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)} or a function, got {self.optimizer!r}")
        if self.standardize and not go_on:
            self._center, self._scale = _mean_and_deviation(x)
        x = self._scaled(x)
        if weight is not None:  # with a mean of 1, so that the scale of all weights changes nothing
            if (weight < 0).any():
                raise ValueError(f"class_weight must be >= 0, got {weight.min()}")
            if not (total := weight.sum()) > 0:
                raise ValueError("class_weight and sample_weight must leave a sample with a weight above 0, got none")
            y = np.column_stack([y, weight * (len(weight) / total)]).astype(x.dtype)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        if self.num_proc is None:
            seed = broadcast(seed)
        parts: list[tuple[Array, Array]] = [(x, y)]
        if self.early_stopping and epochs > 1:
            strata = (y if weight is None else y[:, 0]) if isinstance(self, Classifier) else None
            try:
                x, other_x, y, other_y = train_test_split(
                    x, y, test_size=float(self.validation_fraction), random_state=seed, stratify=strata
                )
            except ValueError as error:
                found = f"{len(x)} samples and validation_fraction={self.validation_fraction}: {error}"
                raise ValueError(f"early_stopping must set aside a sample of each class, got {found}") from error
            parts = [(x, y), (other_x, other_y)]
        job = _Job(
            make=self.model or _MLP(_sizes(self.hidden_layer_sizes)),
            shape=(x.shape[1], outputs),
            criterion=self._criterion if weight is None else self._weighted_criterion,
            metrics={"accuracy": _Accuracy()} if isinstance(self, Classifier) else {},
            optimizer=partial(optimizer, lr=self.learning_rate, weight_decay=self.weight_decay),
            parts=parts,
            batch_size=min(self.batch_size, len(x)),
            epochs=epochs,
            stopping=EarlyStopping("val_loss" if len(parts) > 1 else "loss", self.n_iter_no_change, max(0.0, self.tol)),
            seed=seed,
            state=self._state if go_on else None,
            verbose=self.verbose,
            record=self.record,
            virtual_shards=self.virtual_shards,
        )
        if self.num_proc is None:  # in a copy of the context: the random numbers of this process stay as they are
            self._state, history = contextvars.copy_context().run(job)
        else:
            self._state, history = run(job, num_proc=self.num_proc)[0]
        self.model_ = contextvars.copy_context().run(job.bare, self._state)
        self.history_ = [*(self.history_ if go_on else []), *history]
        self.n_iter_, self.loss_curve_ = len(self.history_), [epoch["loss"] for epoch in self.history_]
        return self

    _criterion: Callable[[Any, Any], Any]
    _state: dict[str, Any]
    _target_center: Any
    _target_scale: Any
    history_: list[dict[str, float]]

    @staticmethod
    def _weighted_criterion(output: Tensor, target: Tensor) -> Tensor:
        """The criterion for targets and their weights, the two columns of `target`."""
        raise NotImplementedError

    def _scaled(self, x: Array) -> Array:
        return ((x - self._center) / self._scale).astype(x.dtype) if self.standardize else x

    def _outputs(self, x: Any) -> Array:
        """The outputs of the model, computed by this rank without the others."""
        check_is_fitted(self, "model_")
        x = self._scaled(validate_data(self, x, reset=False, dtype=FLOATS))
        x = x.astype(next(iter(self.model_.parameters())).numpy().dtype)
        self.model_.eval()
        with no_grad():
            return np.concatenate([self.model_(Tensor(x[i : i + ROWS])).numpy() for i in range(0, len(x), ROWS)])


class Classifier(ClassifierMixin, NeuralNetwork):
    """A classifier by a neural network and cross-entropy; labels may be texts.

    class_weight: None, "balanced", or a dict of each class's weight. Other arguments: see NeuralNetwork.
    """

    _criterion = staticmethod(nn.functional.cross_entropy)

    def __init__(
        self, hidden_layer_sizes: tuple[int, ...] = (100,), *, class_weight: Any = None, **options: Any
    ) -> None:
        super().__init__(hidden_layer_sizes, **options)
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Trains on samples (N, features), labels (N), and weights (N) if given."""
        go_on = bool(self.warm_start and hasattr(self, "model_"))
        return self._fit(X, y, sample_weight, None, go_on, self.max_iter)

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Trains for one epoch on some samples. classes: all labels, needed by the first call."""
        go_on = hasattr(self, "model_")
        if classes is None and not go_on:
            raise ValueError("partial_fit: classes must be given in the first call, got None")
        return self._fit(X, y, sample_weight, classes, go_on, 1)

    def _fit(self, X: Any, y: Any, sample_weight: Any, classes: Any, go_on: bool, epochs: int) -> Self:
        X, y = self._checked(X, y, reset=not go_on)
        check_classification_targets(y)
        labels = np.unique(y)
        if not go_on:
            self.classes_ = labels if classes is None else np.unique(classes)
        if len(unknown := np.setdiff1d(labels, self.classes_)):
            raise ValueError(f"y must hold the known classes {self.classes_.tolist()}, got {unknown.tolist()}")
        weight = None
        if sample_weight is not None or self.class_weight is not None:
            weight = _check_sample_weight(sample_weight, X, dtype=X.dtype, ensure_non_negative=True)
            weight = weight * compute_sample_weight(self.class_weight, y)
        return self._train(X, np.searchsorted(self.classes_, y), weight, len(self.classes_), go_on, epochs)

    @staticmethod
    def _weighted_criterion(output: Tensor, target: Tensor) -> Tensor:
        rows = nn.functional.cross_entropy(output, target[:, 0].long(), reduction="none")
        return (rows * target[:, 1]).mean()

    def predict_proba(self, X: Any) -> Array:
        """The probability of each class (N, classes), in the order of `classes_`."""
        logits = self._outputs(X)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def predict(self, X: Any) -> Array:
        """The most probable label of each sample (N)."""
        best = self._outputs(X).argmax(axis=1)  # or NotFittedError, before `classes_` is missing
        return self.classes_[best]


# scikit-learn reads the names of parameters there.
_shared = inspect.signature(NeuralNetwork.__init__)
_class_weight = inspect.Parameter("class_weight", inspect.Parameter.KEYWORD_ONLY, default=None)
Classifier.__init__.__signature__ = _shared.replace(  # type: ignore[attr-defined]
    parameters=[*_shared.parameters.values(), _class_weight]
)


class Regressor(RegressorMixin, NeuralNetwork):
    """A regressor by a neural network and the squared error. Arguments: see NeuralNetwork."""

    _criterion = staticmethod(nn.functional.mse_loss)

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Trains on samples (N, features), targets (N), and weights (N) if given."""
        return self._fit(X, y, sample_weight, bool(self.warm_start and hasattr(self, "model_")), self.max_iter)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Trains for one epoch on some samples; the first call's say how inputs and targets are scaled."""
        return self._fit(X, y, sample_weight, hasattr(self, "model_"), 1)

    def _fit(self, X: Any, y: Any, sample_weight: Any, go_on: bool, epochs: int) -> Self:
        X, y = self._checked(X, y, reset=not go_on, y_numeric=True)
        if y.dtype.kind not in "biuf":
            raise ValueError(f"y must hold numbers, got {y.dtype}: Classifier takes labels")
        y = y.astype(X.dtype)[:, None]
        if not go_on:
            self._target_center, self._target_scale = _mean_and_deviation(y) if self.standardize else (0.0, 1.0)
        y = ((y - self._target_center) / self._target_scale).astype(X.dtype)
        weight = None
        if sample_weight is not None:
            weight = _check_sample_weight(sample_weight, X, dtype=X.dtype, ensure_non_negative=True)
        return self._train(X, y, weight, 1, go_on, epochs)

    @staticmethod
    def _weighted_criterion(output: Tensor, target: Tensor) -> Tensor:
        return ((output[:, 0] - target[:, 0]) ** 2 * target[:, 1]).mean()

    def predict(self, X: Any) -> Array:
        """The predicted target of each sample (N)."""
        return (self._outputs(X) * self._target_scale + self._target_center)[:, 0]


class _Accuracy(Accuracy):
    """Accuracy for labels (N), or for labels and weights in an array (N, 2)."""

    def update(self, found: Any, target: Any) -> None:
        super().update(found, target if target.ndim == 1 else target[:, 0].long())


@dataclass
class _MLP:
    hidden: tuple[int, ...]

    def __call__(self, inputs: int, outputs: int) -> nn.Module:
        sizes = (inputs, *self.hidden)
        layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))


@dataclass
class _Job:
    """The function of each rank: it trains, and returns the state of the model and the numbers of each epoch."""

    make: Callable[[int, int], nn.Module]
    shape: tuple[int, int]
    criterion: Callable[[Any, Any], Any]
    metrics: dict[str, Metric]
    optimizer: Callable[..., Any]
    parts: list[tuple[Array, Array]]
    batch_size: int
    epochs: int
    stopping: EarlyStopping
    seed: int
    state: dict[str, Any] | None
    verbose: bool
    record: str | None
    virtual_shards: int | None

    def __call__(self) -> tuple[dict[str, Any], list[dict[str, float]]]:
        if self.virtual_shards is not None:
            init(virtual_shards=self.virtual_shards)
        with evaluation(bare := self.bare(self.state)), no_grad():
            output = bare(Tensor(self.parts[0][0][:1]))
        if output.shape != (1, self.shape[1]):
            raise ValueError(
                f"model must give {self.shape[1]} outputs for each sample, got shape {tuple(output.shape)}"
            )
        model = DistributedDataParallel(bare)
        optimizer = self.optimizer(model.parameters())
        if self.state is not None:
            optimizer.load_state_dict(self.state["optimizer"])
        loader, *valid = (
            DataLoader(Dataset(*part), self.batch_size, shuffle=number == 0) for number, part in enumerate(self.parts)
        )
        history = fit(
            model,
            loader,
            self.criterion,
            optimizer,
            epochs=self.epochs,
            valid=valid[0] if valid else None,
            metrics=self.metrics if valid else None,
            early_stopping=self.stopping,
            recorder=None if self.record is None else Recorder(self.record),
            verbose=self.verbose,
        )
        model.unwrap()
        state = {name: value.numpy().copy() for name, value in model.module.state_dict().items()}
        return {"model": state, "optimizer": optimizer.state_dict()}, history

    def bare(self, state: dict[str, Any] | None) -> nn.Module:
        """The model, not wrapped, in the dtype of the data; sets the seed of this context."""
        manual_seed(self.seed)
        model = self.make(*self.shape)
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a function that makes a Module, got one that makes {described(model)}")
        model.to(self.parts[0][0].dtype)
        if state is not None:
            model.load_state_dict(state["model"])
        return model


def _sizes(given: Any) -> tuple[int, ...]:
    sizes = (given,) if isinstance(given, str) or not np.iterable(given) else given
    return tuple(as_int("hidden_layer_sizes: each", size, 1) for size in sizes)


def _no_numbers(column: Any) -> str | None:
    """The kind of the values in a column that can't be used as numbers, else None."""
    if (dtype := np.asarray(column).dtype).kind in "mM":
        return str(dtype)
    try:
        np.asarray(column, np.float64)
    except (TypeError, ValueError):
        return "texts"
    return None


def _mean_and_deviation(x: Array) -> tuple[Array, Array]:
    """Mean and deviation of each column; 1 for the deviation if the column is constant up to rounding."""
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    return mean, np.where(deviation > 10 * np.finfo(x.dtype).eps * np.abs(mean), deviation, 1).astype(x.dtype)
