"""Data sets by PyTorch's names, tables, and PyTorch's options of a loader."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist.comm import run_threads
from sorix_dist.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    LabelEncoder,
    LengthBucketSampler,
    Sampler,
    StackDataset,
    Subset,
    TensorDataset,
    random_split,
    read_table,
)
from sorix_dist.utils.data.dataset import dataset_digest
from tests.support.utils.ranks import place

X, Y = np.arange(20.0).reshape(10, 2), np.arange(10)


class Squares:
    """A data set that makes its samples itself."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return np.float64([index, index**2]), index


def test_samples_are_overwritten() -> None:
    data = Dataset(X.copy(), Y.copy())
    data[0] = np.array([3, 4]), np.array([1])
    data[1:3] = np.ones((2, 2)), [7, 8]
    assert data.X[:3].tolist() == [[3, 4], [1, 1], [1, 1]]
    assert data.y[:3].tolist() == [1, 7, 8]
    only = Dataset(X.copy())
    only[1] = -1
    assert only.X[1].tolist() == [-1, -1]
    assert repr(only) == "Dataset(len=10, has_labels=False)"


def test_tensor_dataset() -> None:
    data = TensorDataset(sx.tensor(X), Y)
    assert len(data) == 10
    assert [part.tolist() for part in data[3]] == [[6, 7], 3]
    assert [len(part) for part in next(iter(DataLoader(TensorDataset(X), 4)))] == [4]
    batches = [[part.tolist() for part in batch] for batch in DataLoader(data, 4)]
    assert batches == [[part.tolist() for part in batch] for batch in DataLoader(Dataset(X, Y), 4)]
    for wrong in ((X, Y[1:]), (), (X, 3)):
        with pytest.raises(ValueError, match="TensorDataset: tensors must have the same length, got shapes"):
            TensorDataset(*wrong)


@pytest.mark.parametrize("rank", range(3))
def test_subset_and_concat(rank: int) -> None:
    data = Dataset(X, Y)
    half = Subset(data, [9, 1, 1])
    both: Any = ConcatDataset([half, Squares(), TensorDataset(X, Y)])
    assert len(both) == 17
    assert [int(both[i][1]) for i in range(17)] == [9, 1, 1, 0, 1, 2, 3, *range(10)]
    assert int(both[-1][1]) == 9
    with pytest.raises(IndexError, match=r"index must be in \[-17, 17\), got 17"):
        both[17]
    with place(rank, 3):
        labels = [int(y) for _, yb in DataLoader(both, 5) for y in yb]
        assert labels == [
            [9, 1, 1, 0, 1, 2, 3, *range(10)][i]
            for start in range(0, 17, 5)
            for size in [min(5, 17 - start)]
            for i in range(start + size * rank // 3, start + size * (rank + 1) // 3)
        ]
        batch = next(iter(DataLoader(half, 3)))
        assert batch[1].tolist() == [[9], [1], [1]][rank]
    for wrong, message in (([10], r"in \[0, 10\), got 10"), ([[1]], "a vector of integers"), ([0.5], "of integers")):
        with pytest.raises(ValueError, match=message):
            Subset(data, wrong)


def test_random_split() -> None:
    data = Dataset(X, Y)
    for lengths, counts in (([7, 3], [7, 3]), ([0.5, 0.25, 0.25], [6, 2, 2]), ([10, 0], [10, 0])):
        parts = random_split(data, lengths, generator=1)
        assert [len(part) for part in parts] == counts
        assert sorted(i for part in parts for i in part.indices.tolist()) == list(range(10))
    again = [random_split(data, [5, 5], seed)[0].indices.tolist() for seed in (1, 1, 2, np.random.default_rng(1))]
    assert again[0] == again[1] == again[3] != again[2]
    drawn = []
    for _ in range(2):
        sx.manual_seed(4)
        drawn.append([random_split(data, [5, 5])[0].indices.tolist() for _ in range(2)])
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[0][1]
    for wrong in ([5, 4], [0.5, 0.4], [11, -1]):
        with pytest.raises(ValueError, match="lengths must add up to 10 samples"):
            random_split(data, wrong)


def test_digests() -> None:
    data = Dataset(X, Y)
    parts: list[Any] = [
        data, Dataset(X[::-1], Y), Dataset(X.astype(np.float32), Y), Dataset(X * 1.05, Y),
        Dataset(X.reshape(10, 2, 1), Y), Subset(data, [0, 1]), Subset(data, [1, 0]), ConcatDataset([data, data]),
        TensorDataset(Y), TensorDataset(Y[::-1]),
    ]  # fmt: skip
    digests = [dataset_digest(part) for part in parts]
    assert None not in digests
    assert len(set(digests)) == len(parts)
    for unknown in (Squares(), Subset(Squares(), [0]), ConcatDataset([data, Squares()])):
        assert dataset_digest(unknown) is None
    labels = np.zeros(100_000, np.int64)
    one_other = labels.copy()
    one_other[77_777] = 1
    assert Dataset(labels).digest() != Dataset(one_other).digest()


def test_digest_in_another_process() -> None:
    script = (
        "import numpy as np; from sorix_dist.utils.data import Dataset;"
        "print(Dataset(np.random.default_rng(0).random((100, 9)), np.arange(100)).digest())"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert int(answer.stdout) == Dataset(np.random.default_rng(0).random((100, 9)), np.arange(100)).digest()


def test_digest_reads_little_of_a_large_map(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    with path.open("wb") as file:
        file.truncate(1 << 36)  # no disk has to hold it
    mapped = np.memmap(path, np.uint8, "r", shape=(1 << 20, 1 << 16))
    assert isinstance(Dataset(mapped).digest(), int)


class Frame:
    """What a frame is to us: columns by name, which NumPy can read."""

    def __init__(self, **columns: Any) -> None:
        self.data = {name: np.asarray(values) for name, values in columns.items()}
        self.columns = list(columns)

    def __getitem__(self, name: str) -> Any:
        return self.data[name]

    def __len__(self) -> int:
        return len(self.data[self.columns[0]])

    def to_numpy(self) -> Any:
        return self.__array__()

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.stack([values.astype(object) for values in self.data.values()], axis=1)


FRAME = Frame(width=[1.0, 2.0, 3.0], height=[4, 5, 6], kind=["oak", "ash", "oak"])


def test_tables() -> None:
    encoder = LabelEncoder()
    x, y = read_table(
        {"width": FRAME["width"], "height": FRAME["height"], "kind": encoder.fit_transform(FRAME["kind"])}, "kind"
    )
    assert x.tolist() == [[1, 4], [2, 5], [3, 6]]
    assert x.dtype == np.float32
    assert y is not None
    assert y.tolist() == [1, 0, 1]
    assert encoder.inverse_transform(y).tolist() == ["oak", "ash", "oak"]
    with pytest.raises(ValueError, match="'elm' is none of the classes"):
        encoder.transform(["elm"])
    assert read_table(FRAME, "height", ["width"])[1].tolist() == [4, 5, 6]  # type: ignore[union-attr]
    with pytest.raises(KeyError, match="there is no column 'weight'; the columns are"):
        read_table(FRAME, "weight")
    for make in (
        lambda: read_table(FRAME, "kind"),
        lambda: Dataset(FRAME),
        lambda: Dataset(FRAME["width"], FRAME["kind"]),
    ):
        with pytest.raises(TypeError, match=r"must hold numbers, got (str|<U3); LabelEncoder"):
            make()
    with pytest.raises(TypeError, match="column 'kind' of X must hold numbers"):
        Dataset(FRAME)
    with pytest.raises(TypeError, match=r"dataset is a Frame, a table of columns: give Dataset\(\*read_table"):
        DataLoader(FRAME)


def test_frames_of_pandas_and_parquet(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"a": [1.0, 2.0], "b": [3, 4], "kind": ["x", "y"], "label": [0, 1]})
    with pytest.raises(TypeError, match="column 'kind' of y must hold numbers, got str; LabelEncoder"):
        Dataset(frame[["a", "b"]], frame["kind"])
    with pytest.raises(TypeError, match="column 'kind' of X must hold numbers, got str; LabelEncoder"):
        Dataset(frame)
    frame.to_parquet(tmp_path / "table.parquet")
    for source in (frame, tmp_path / "table.parquet"):
        x, y = read_table(source, "label", ["a", "b"])
        assert (x.tolist(), np.asarray(y).tolist()) == ([[1, 3], [2, 4]], [0, 1])


class Hugging:
    """What a data set of Hugging Face's `datasets` is to us."""

    column_names = ("image", "label")

    def __init__(self, numpy: bool = False) -> None:
        self.numpy = numpy

    def with_format(self, kind: str) -> Hugging:
        assert kind == "numpy"
        return Hugging(True)

    def __len__(self) -> int:
        return 10

    def __getitem__(self, key: Any) -> Any:
        assert self.numpy
        return {"image": X[key], "label": Y[key]}


@pytest.mark.parametrize("kind", ["own", "datasets"])
def test_data_sets_of_hugging_face(kind: str) -> None:
    data: Any = Hugging()
    if kind == "datasets":
        datasets = pytest.importorskip("datasets")
        data = datasets.Dataset.from_dict({"image": X.tolist(), "label": Y.tolist()})
    seen = list(DataLoader(data, 4, shuffle=True, seed=1))
    order = Sampler(10, True, 1).order(0)
    assert [i for batch in seen for i in batch["label"].tolist()] == order.tolist()
    assert np.array_equal(np.concatenate([batch["image"].array for batch in seen]), X[order])
    with place(0, 3):
        batch = next(iter(DataLoader(data, 2)))
        assert (batch["image"].shape, batch["label"].shape) == ((0, 2), (0,))


def test_pytorch_options() -> None:
    data = Dataset(X, Y)
    with pytest.warns(RuntimeWarning, match="persistent_workers, pin_memory has no effect"):
        list(DataLoader(data, 4, pin_memory=True, persistent_workers=True, num_workers=1))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run_threads(lambda: [list(loader) for loader in [DataLoader(data, 4, pin_memory=True)] * 2], 3)
    assert [Path(warning.filename).name for warning in said] == [Path(__file__).name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader = DataLoader(data, 4, shuffle=None, pin_memory=False, timeout=0, prefetch_factor=None, generator=3)
    assert not loader.sampler.shuffle  # type: ignore[union-attr]
    with pytest.raises(TypeError, match="unexpected keyword argument 'batchsize'"):
        DataLoader(data, batchsize=3)

    class TorchGenerator:
        def initial_seed(self) -> int:
            return 5

    orders = [
        [y for _, yb in DataLoader(data, 4, shuffle=True, **options) for y in yb.tolist()]
        for options in ({"seed": 5}, {"generator": 5}, {"generator": TorchGenerator()}, {"generator": 6})
    ]
    assert orders[0] == orders[1] == orders[2] != orders[3]
    with pytest.raises(ValueError, match="seed and generator exclude each other"):
        DataLoader(data, shuffle=True, seed=1, generator=1)
    with pytest.raises(TypeError, match="generator must be an integer >= 0 or a generator, got str"):
        DataLoader(data, shuffle=True, generator="1")
    batches = BatchSampler(Sampler(10, True, 5), 4, drop_last=True)
    loader = DataLoader(data, batch_sampler=batches)
    assert [y for _, yb in loader for y in yb.tolist()] == orders[0][:8]
    with pytest.raises(ValueError, match="batch_sampler excludes"):
        DataLoader(data, 4, batch_sampler=batches)
    with pytest.raises(TypeError, match="batch_sampler must be a Sampler, or an object whose __iter__"):
        DataLoader(data, batch_sampler=4)


class Sequences:
    """Sequences of several lengths, and a label."""

    lengths = np.random.default_rng(0).integers(1, 30, 101)

    def __len__(self) -> int:
        return 101

    def __getitem__(self, index: int) -> Any:
        return np.full((self.lengths[index], 2), index + 1.0), index


@pytest.mark.parametrize("shuffle", [False, True])
def test_length_buckets(shuffle: bool) -> None:
    data = Sequences()

    def batches(rank: int, size: int, epoch: int) -> Any:
        with place(rank, size):
            sampler = LengthBucketSampler(data.lengths, 8, shuffle, seed=3, padding=-1, pool=4)
            loader = DataLoader(data, 8, sampler=sampler)
            loader.set_epoch(epoch)
            return list(loader)

    one = batches(0, 1, 0)
    assert sorted(i for _, yb in one for i in yb.tolist()) == list(range(101))
    padded = sum(x.array[..., 0].size for x, _ in one)
    at_random = sum(int(data.lengths[i : i + 8].max()) * 8 for i in range(0, 101, 8))
    assert data.lengths.sum() <= padded < 0.75 * at_random
    for x, yb in one:
        lengths = data.lengths[yb.array]
        assert x.shape == (len(yb), lengths.max(), 2)
        for row, length, i in zip(x.array, lengths, yb.tolist(), strict=True):
            assert (row[:length] == i + 1).all()
            assert (row[length:] == -1).all()
    split = [batches(rank, 3, 0) for rank in range(3)]
    for whole, parts in zip(one, zip(*split, strict=True), strict=True):
        assert np.array_equal(whole[0].array, np.concatenate([x.array for x, _ in parts]))
    loader = DataLoader(data, 8, sampler=LengthBucketSampler(data.lengths, 8, shuffle))
    plain = list(loader.in_order())
    assert [i for _, yb in plain for i in yb.tolist()] == list(range(101))
    assert all(x.shape[1] == data.lengths[yb.array].max() for x, yb in plain)
    other = batches(0, 1, 1)
    assert ([yb.tolist() for _, yb in other] == [yb.tolist() for _, yb in one]) != shuffle
    with pytest.raises(ValueError, match="batch_size must be that of the sampler, 8, got 9"):
        DataLoader(data, 9, sampler=LengthBucketSampler(data.lengths, 8))
    with pytest.raises(ValueError, match="sample 7 must have an array of its length 101"):
        list(DataLoader(data, 101, sampler=LengthBucketSampler(data.lengths + 100, 101, shuffle=False)))
    with pytest.raises(ValueError, match="lengths must be a vector of integers >= 0"):
        LengthBucketSampler([1.5], 8)


def test_stacked_data_sets() -> None:
    first, second = Dataset(np.arange(6.0)), TensorDataset(np.arange(6), np.arange(6) * 2)
    pairs, named = StackDataset(first, second), StackDataset(x=first, y=second)
    assert (len(pairs), pairs[4], named[4]) == (6, (4.0, (4, 8)), {"x": 4.0, "y": (4, 8)})
    assert pairs.digest() == StackDataset(first, second).digest() != StackDataset(second, first).digest()
    (batch,) = DataLoader(named, batch_size=6)
    assert batch["x"].tolist() == batch["y"][0].tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match=r"must have the same length, got \[6, 2\]"):
        StackDataset(first, Dataset(np.arange(2)))
    with pytest.raises(ValueError, match="by position or by name, and at least one"):
        StackDataset(first, y=second)
