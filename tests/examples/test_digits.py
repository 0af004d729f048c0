"""The data file of the examples is what its README says."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "data"


@pytest.fixture(scope="module")
def digits() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "digits.npz", allow_pickle=False) as file:
        return dict(file)


def test_the_readme_names_the_hash() -> None:
    (named,) = re.findall(r"\b[0-9a-f]{64}\b", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert hashlib.sha256((FOLDER / "digits.npz").read_bytes()).hexdigest() == named


def test_shapes_types_and_ranges(digits: dict[str, np.ndarray]) -> None:
    described = {name: (array.dtype.name, array.shape) for name, array in digits.items()}
    assert described == {
        "images": ("uint8", (1797, 64)),
        "labels": ("uint8", (1797,)),
        "train": ("int16", (1438,)),
        "test": ("int16", (359,)),
    }
    assert digits["images"].min() == 0
    assert digits["images"].max() == 16


def test_counts_per_class_are_those_of_the_data_set(digits: dict[str, np.ndarray]) -> None:
    assert np.bincount(digits["labels"]).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_every_row_is_in_exactly_one_part(digits: dict[str, np.ndarray]) -> None:
    both = np.concatenate([digits["train"], digits["test"]])
    np.testing.assert_array_equal(np.sort(both), np.arange(1797))


def test_the_split_is_the_documented_one_and_stratified(digits: dict[str, np.ndarray]) -> None:
    labels = digits["labels"]
    random = np.random.RandomState(0)  # the stream that NumPy keeps frozen
    expected = []
    for digit in range(10):
        rows = random.permutation(np.flatnonzero(labels == digit))
        expected.append(rows[: round(0.2 * len(rows))])
    np.testing.assert_array_equal(digits["test"], np.sort(np.concatenate(expected)))

    share = np.bincount(labels[digits["test"]]) / np.bincount(labels)
    np.testing.assert_allclose(share, 0.2, atol=0.5 / 174)  # no class is off by more than rounding


def test_a_nearest_neighbour_reads_them(digits: dict[str, np.ndarray]) -> None:
    """Images and labels belong together: the label of the nearest training image is nearly always right."""
    images, labels, train, test = (digits[name].astype(np.int64) for name in ("images", "labels", "train", "test"))
    known, asked = images[train], images[test]
    distance = (asked**2).sum(axis=1, keepdims=True) - 2 * asked @ known.T + (known**2).sum(axis=1)
    assert (labels[train][distance.argmin(axis=1)] == labels[test]).mean() > 0.97
