"""Tables as data sets: columns of frames, Arrow tables, Parquet files and dicts as arrays, and labels as integers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from sorix_dist.core.arguments import described
from sorix_dist.core.tensor import Array, as_array


def numbers(what: str, data: Any) -> Array:
    """`data` as an array of numbers. TypeError for anything else; it names a column of text, and how to encode it, or
    the row where a value is missing."""
    try:
        return as_array(data)
    except (TypeError, ValueError) as error:
        names = column_names(data)
        columns = [(f"column {name!r} of {what}", column(data, name)) for name in names]
        if not names and not isinstance(data, list | tuple):
            name = getattr(data, "name", None)
            columns = [(what if name is None else f"column {name!r} of {what}", np.asarray(data))]
        text = next(((title, values) for title, values in columns if values.dtype.kind not in "biuf"), None)
        if text is None:
            raise
        title, values = text
        missing = missing_rows(values)
        if values.ndim == 0:
            kind, advice = described(data), ""
        elif missing.size:
            kind, advice = f"a missing value in row {missing[0]}", "; drop such rows, or fill them (in pandas: fillna)"
        else:
            wrong = [entry for entry in values.flat if not isinstance(entry, int | float | np.number)]
            kind = type(wrong[0]).__name__ if values.dtype == object and wrong else str(values.dtype)
            advice = "; LabelEncoder().fit_transform(values), from sorix_dist.utils.data, numbers labels"
        raise TypeError(f"{title} must hold numbers, got {kind}{advice}") from error


def missing_rows(values: Array) -> Array:
    """The rows of an array of any kind that hold None, NaN, or pandas's NA or NaT."""
    rows = values if values.dtype.kind in "Of" and values.ndim else ()
    return np.array([row for row, entry in enumerate(rows) if any(map(_is_missing, np.ravel(entry)))], np.intp)


def _is_missing(value: Any) -> bool:
    return value is None or type(value).__name__ in ("NAType", "NaTType") or bool(value != value)


def column_names(table: Any) -> list[str]:
    """The names of a table's columns; none of anything else."""
    if isinstance(table, dict):
        return list(table)
    names: Any = getattr(table, "column_names", None)
    return list(getattr(table, "columns", ()) if names is None else names)


def column(table: Any, name: str) -> Array:
    """A column of a frame, an Arrow table, a data set of Hugging Face's `datasets` or a dict."""
    values = table[name]
    return np.asarray(values.to_numpy() if hasattr(values, "to_numpy") else values)


def read_table(
    source: Any, target: str | None = None, columns: Sequence[str] | None = None, dtype: Any = np.float32
) -> tuple[Array, Array | None]:
    """The arrays X and y of a table, for `Dataset(*read_table("flights.parquet", target="delay"))`.

    source: a pandas or polars frame, an Arrow table, a data set of Hugging Face's `datasets`, a dict of columns, or
    the path of a Parquet file (read by pyarrow). target: the column of y, which keeps its integers; columns: those of
    X, None for all others. X has shape (rows, columns) and the dtype `dtype`.
    KeyError for a column that is not there; TypeError, with its name, for one that does not hold numbers.
    """
    if isinstance(columns, str):
        raise TypeError(f"read_table: columns must be a list of names, got {columns!r}; write [{columns!r}]")
    if hasattr(target, "shape"):
        raise TypeError(f"read_table: target must be the name of a column, got {described(target)}")
    if isinstance(source, str | os.PathLike):
        wanted = None if columns is None else [*columns, *([] if target is None else [target])]
        source = _parquet(source, wanted)
    names = column_names(source)
    if not names:
        raise TypeError(f"read_table: source must be a table with columns, got {described(source)}")
    chosen = [name for name in names if name != target] if columns is None else list(columns)
    for name in (*chosen, *([] if target is None else [target])):
        if name not in names:
            raise KeyError(f"read_table: there is no column {name!r}; the columns are {names}")
    if not chosen:
        raise ValueError(f"read_table: the table must have a column beside the target, got {names}")
    x = np.stack([_column_of_numbers(source, name).astype(dtype) for name in chosen], axis=1)
    if target is None:
        return x, None
    y = _column_of_numbers(source, target)
    return x, y.astype(dtype) if y.dtype.kind == "f" else y


def _parquet(path: Any, columns: list[str] | None) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("read_table: a Parquet file needs pyarrow: pip install pyarrow") from error
    try:
        return pyarrow.parquet.read_table(path, columns=columns)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(
            f"read_table: {os.fspath(path)!r} is no Parquet file; a CSV file: read_table(pandas.read_csv(path))"
        ) from error


def _column_of_numbers(table: Any, name: str) -> Array:
    values = numbers(f"column {name!r}", column(table, name))
    if values.ndim != 1:
        raise ValueError(f"read_table: column {name!r} must hold one number per row, got shape {values.shape}")
    return values


class LabelEncoder:
    """Numbers labels of any sortable kind: label i of the sorted `classes_` becomes the integer i (as scikit-learn's).

    labels = LabelEncoder(); y = labels.fit_transform(frame["species"]); labels.inverse_transform(predicted)
    """

    classes_: Array

    def fit(self, labels: Any) -> LabelEncoder:
        """Learns the classes of these labels. TypeError for labels of several kinds, ValueError for missing ones."""
        labels = _vector(labels)
        if (missing := missing_rows(labels)).size:
            raise ValueError(
                f"LabelEncoder: labels must not be missing, got {labels[missing[0]]!r} in row {missing[0]}; drop such "
                "rows, or fill them (in pandas: fillna)"
            )
        try:
            self.classes_ = np.unique(labels)
        except TypeError as error:
            kinds = sorted({type(label).__name__ for label in labels})
            raise TypeError(f"LabelEncoder: labels must be of one kind, got {' and '.join(kinds)}") from error
        return self

    def transform(self, labels: Any) -> Array:
        """The integers of these labels, int64; ValueError for a label that `fit` did not see."""
        labels, known = _vector(labels), {label: number for number, label in enumerate(self._fitted().tolist())}
        unknown = [label for label in labels.tolist() if label not in known]
        if unknown:
            raise ValueError(f"LabelEncoder: {unknown[0]!r} is none of the classes {list(known)}")
        return np.array([known[label] for label in labels.tolist()], np.int64)

    def fit_transform(self, labels: Any) -> Array:
        """Learns the classes of these labels and returns their integers."""
        return self.fit(labels).transform(labels)

    def inverse_transform(self, numbers: Any) -> Array:
        """The labels of these integers; ValueError for an integer that stands for no class."""
        numbers, classes = np.asarray(numbers), self._fitted()
        inside = numbers.dtype.kind in "iu" and (numbers >= 0) & (numbers < len(classes))
        if (wrong := numbers[~np.broadcast_to(inside, numbers.shape)]).size:
            raise ValueError(f"LabelEncoder: numbers must be integers in [0, {len(classes)}), got {wrong.flat[0]!r}")
        return np.asarray(classes[numbers.astype(np.intp)])

    def _fitted(self) -> Array:
        if not hasattr(self, "classes_"):
            raise ValueError("LabelEncoder: call fit(labels) first, which learns the classes")
        return self.classes_


def _vector(labels: Any) -> Array:
    array = np.asarray(labels)
    if array.ndim != 1:
        raise ValueError(f"LabelEncoder: labels must be a vector, got {described(labels)}")
    return array
