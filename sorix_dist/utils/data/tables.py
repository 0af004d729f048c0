"""Tables as data sets: columns of frames, Arrow tables, Parquet files and dicts as arrays, and labels as integers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from sorix_dist.core.tensor import as_array

Array = np.ndarray[Any, Any]


def numbers(what: str, data: Any) -> Array:
    """`data` as an array of numbers. TypeError for anything else; it names a column of text, and how to encode it."""
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
        kind = type(values.flat[0]).__name__ if values.dtype == object and values.size else str(values.dtype)
        raise TypeError(
            f"{title} must hold numbers, got {kind}; LabelEncoder().fit_transform(values), from "
            "sorix_dist.utils.data, numbers labels"
        ) from error


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
    if isinstance(source, str | os.PathLike):
        import pyarrow.parquet

        wanted = None if columns is None else [*columns, *([] if target is None else [target])]
        source = pyarrow.parquet.read_table(source, columns=wanted)
    names = column_names(source)
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
        """Learns the classes of these labels."""
        self.classes_ = np.unique(np.asarray(labels))
        return self

    def transform(self, labels: Any) -> Array:
        """The integers of these labels, int64; ValueError for a label that `fit` did not see."""
        labels = np.asarray(labels)
        places = np.minimum(np.searchsorted(self.classes_, labels), len(self.classes_) - 1)
        unknown = self.classes_[places] != labels
        if unknown.any():
            first = labels[unknown].tolist()[0]
            raise ValueError(f"LabelEncoder: {first!r} is none of the classes {self.classes_.tolist()}")
        return np.asarray(places, np.int64)

    def fit_transform(self, labels: Any) -> Array:
        """Learns the classes of these labels and returns their integers."""
        return self.fit(labels).transform(labels)

    def inverse_transform(self, numbers: Any) -> Array:
        """The labels of these integers."""
        return np.asarray(self.classes_[np.asarray(numbers)])
